"""The registry of released encoders: configs/weights.yaml, name -> where its files lie and what they are.

A hub is trusted with bytes only: an entry pins the commit and the SHA-256 of encoder.safetensors, so a
repository that was changed later, by whomever, is noticed instead of used. MEDLOOM_WEIGHTS adds registries
of your own (YAML files, separated as in PATH; later ones win), for encoders that stay inside a house.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...data.config import CONFIGS, read_yaml, structured
from ...data.errors import ConfigError
from ..artefact import WEIGHTS

SHIPPED = CONFIGS / "weights.yaml"
VARIABLE = "MEDLOOM_WEIGHTS"

REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(kw_only=True)
class Release:
    """One released encoder. Its files lie in `repo`, or in `folder`, or nowhere (then `train` makes them)."""

    name: str = ""  # the key of the entry
    title: str = ""  # one line
    repo: str | None = None  # ORG/NAME on the hub
    revision: str | None = None  # its commit, 40 hexadecimal digits
    folder: str | None = None  # of the artefact, relative to the file of the registry
    sha256: str | None = None  # of encoder.safetensors
    bytes: int | None = None  # of encoder.safetensors
    architecture: str = ""  # name of the encoder, e.g. vit3d
    ndim: int = 2
    parameters: int | None = None
    licence: str = ""  # of the weights
    train: str = ""  # the command that makes it

    @property
    def where(self) -> str:
        """Where the files lie, in words."""
        if self.repo:
            return f"{self.repo}@{str(self.revision)[:8]}"
        return self.folder or "not published"

    def here(self) -> bool:
        """Whether the weights are on this disk; does not ask the network."""
        from .fetch import cached
        from .names import of_release

        if self.repo is not None:
            return cached(of_release(self)) is not None
        return self.folder is not None and (Path(self.folder) / WEIGHTS).is_file()


def registry() -> dict[str, Release]:
    """All entries by name, those of MEDLOOM_WEIGHTS over the shipped ones.

    Raises:
        ConfigError: a file that is missing or not YAML, an unknown key, an entry that pins nothing.
    """
    named = [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    found: dict[str, Release] = {}
    for path in (SHIPPED, *named):
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        found.update(_read(path, stamp))
    return found


def entry(
    name: str, record: dict[str, Any], *, title: str, licence: str,
    repo: str | None = None, commit: str | None = None, folder: str | None = None,
) -> str:  # fmt: skip
    """The lines of a registry for an artefact that lies in `repo` at `commit`, or in `folder`.

    Args:
        record: its encoder.json.
    """
    import yaml

    release = Release(
        name=name, title=title, repo=repo, revision=commit, folder=folder, sha256=record["sha256"],
        bytes=record["bytes"],
        architecture=record["architecture"]["name"], ndim=record["ndim"], parameters=record["parameters"],
        licence=licence,
    )  # fmt: skip
    _check(release, name)
    said = {key: value for key, value in asdict(release).items() if key != "name" and value}
    return yaml.safe_dump({name: said}, sort_keys=False, allow_unicode=True, width=110)


@lru_cache(maxsize=16)
def _read(path: Path, stamp: int) -> dict[str, Release]:
    """The entries of one file; `stamp` tells its versions apart."""
    found: dict[str, Release] = {}
    for name, values in read_yaml(path).items():
        where = f"{path}: {name}"
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected keys such as repo, revision and sha256")
        release = structured(Release, {**values, "name": name}, where=where)
        _check(release, where)
        if release.folder is not None:
            release.folder = str((path.parent / release.folder).resolve())
        found[name] = release
    return found


def _check(release: Release, where: str) -> None:
    """Refuse what would not pin the weights."""
    if not _NAME.fullmatch(release.name):
        raise ConfigError(f"{where}: a name has small letters, digits, '.', '_' and '-' only: rename it")
    if release.repo is not None and release.folder is not None:
        raise ConfigError(f"{where}: has both repo and folder: keep one")
    if release.repo is not None:
        if not REPOSITORY.fullmatch(release.repo):
            raise ConfigError(f"{where}: repo {release.repo!r}, expected ORG/NAME")
        if not COMMIT.fullmatch(release.revision or ""):
            raise ConfigError(
                f"{where}: revision {release.revision!r}, expected the commit (40 hexadecimal digits): a "
                "branch or a tag may move"
            )
    if release.repo is None and release.folder is None:
        if not release.train:
            raise ConfigError(f"{where}: needs repo or folder, or the command in `train` that makes it")
    elif not _SHA256.fullmatch(release.sha256 or ""):
        raise ConfigError(
            f"{where}: sha256 {release.sha256!r}, expected that of encoder.safetensors (64 hexadecimal "
            "digits)"
        )
