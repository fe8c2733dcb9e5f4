"""Records of encoders that others trained: where the weights are, how their names map to ours, what they eat.

A record is one YAML file in configs/zoo; `extends: NAME` takes the keys of another record that it does not
give itself. Nothing of a hub was asked when they were written: hub ids, licences and training data come from
public papers and code, and `checked` says how far the mapping was tested.

- upstream-class: on the state of the class that its authors train, built from a published library; features
  are the same.
- keys-only: names and shapes as published code expects them; the class itself is in no library.
- unchecked: from reading only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...data.config import CONFIGS, read_yaml, structured
from ...data.errors import CheckpointError, ConfigError, nearest

FOLDER = CONFIGS / "zoo"
CHECKED = ("upstream-class", "keys-only", "unchecked")
AXES = ("zyx", "xyz")
PREFIX = "zoo:"


@dataclass(kw_only=True)
class Download:
    """Where the file is; one of `hub`, `timm`, `url` and `by_hand`."""

    hub: str | None = None  # ORG/NAME of the Hugging Face hub
    file: str | None = None  # in that repository, or what the file of `url` is called
    revision: str | None = None  # None: the newest, since no commit is known here
    timm: str | None = None  # name of a timm model with a tag of weights: timm fetches it
    url: str | None = None  # of the file itself
    sha256: str | None = None  # of the file, where it is known
    gated: bool = False  # the hub asks for a login and for agreement to terms
    by_hand: str | None = None  # how to get it, where no command can


@dataclass(kw_only=True)
class KeyRules:
    """From the names in the file to those of our encoder; regular expressions of Python, applied in order."""

    inside: list[str] = field(default_factory=list)  # keys to go down, where they are there
    drop: list[str] = field(default_factory=list)  # a name that one of these is found in is left out
    rename: list[list[str]] = field(
        default_factory=list
    )  # [pattern, new]; `new#0`, `new#1` are joined, `<3+1>` is 4
    zeros: list[list[str]] = field(default_factory=list)  # [pattern, bias that the source has not]
    axes: str = "zyx"  # order of the source's spatial axes: zyx is ours (slice first)


@dataclass(kw_only=True)
class ZooRecord:
    """One encoder of others."""

    name: str  # that of the file
    title: str  # one line
    paper: str  # arXiv number or DOI
    home: str  # page for people
    licence: str  # of the weights, as their page or code is said to state it; unknown where sources disagree
    download: Download = field(default_factory=Download)
    encoder: dict[str, Any] = field(default_factory=dict)  # section of ours; empty with download.timm
    mapping: KeyRules = field(default_factory=KeyRules)
    input: dict[str, Any] = field(default_factory=dict)  # as in encoder.json: crop, channels, modalities
    intensity: str = ""  # what range it was trained on, in words
    trained_on: list[str] = field(default_factory=list)  # ids of the catalogue that are known; never all
    checked: str = "unchecked"
    upstream: str = ""  # the class that it was checked against
    note: str = ""  # what differs from its authors' own use


def names() -> list[str]:
    """All names, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def split_name(text: str) -> tuple[str, Path | None] | None:
    """(name, file) of `zoo:NAME`, `zoo:NAME@FILE` or a bare name; None: it means something else.

    A bare name stands behind a registry's name and a path that exists.
    """
    name, sign, file = text.removeprefix(PREFIX).partition("@")
    path = Path(file).expanduser() if sign else None
    if text.startswith(PREFIX):
        return name, path
    if name not in names() or Path(text).exists():
        return None
    from ..hub.registry import registry

    return None if text in registry() else (name, path)


def load_record(name: str) -> ZooRecord:
    """The record of that name.

    Raises:
        CheckpointError: no such record, with near names.
        ConfigError: a record that cannot be right, with the key.
    """
    if name not in names():
        raise CheckpointError(f"{PREFIX}{name}: no such encoder in the zoo{nearest(name, set(names()))}")
    return _read(name, FOLDER)


def records() -> list[ZooRecord]:
    """All records, by name."""
    return [load_record(name) for name in names()]


@lru_cache(maxsize=256)
def _read(name: str, folder: Path) -> ZooRecord:
    path = folder / f"{name}.yaml"
    record = structured(ZooRecord, {**_values(path, folder), "name": name}, where=str(path))
    _check(record, str(path))
    return record


def _values(path: Path, folder: Path) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("extends", None)
    return {**_values(folder / f"{base}.yaml", folder), **values} if base else values


def _check(record: ZooRecord, where: str) -> None:
    ways = [key for key in ("hub", "timm", "url", "by_hand") if getattr(record.download, key)]
    if len(ways) != 1:
        raise ConfigError(f"{where}: download: give one of hub, timm, url and by_hand, not {ways}")
    if record.download.hub and not record.download.file:
        raise ConfigError(f"{where}: download.file: which file of {record.download.hub} holds the weights?")
    if bool(record.encoder) == bool(record.download.timm):
        raise ConfigError(f"{where}: encoder: needed, unless download.timm names the network")
    for key, value, known in (
        ("checked", record.checked, CHECKED), ("mapping.axes", record.mapping.axes, AXES),
    ):  # fmt: skip
        if value not in known:
            raise ConfigError(f"{where}: {key}: unknown {value!r}{nearest(value, known)}")
    for rule in (*record.mapping.rename, *record.mapping.zeros):
        if len(rule) != 2:
            raise ConfigError(f"{where}: mapping: {rule}: expected a pair [pattern, new name]")
    for pattern in (*record.mapping.drop, *(rule[0] for rule in record.mapping.rename)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{where}: mapping: {pattern!r}: no regular expression ({error})") from error
