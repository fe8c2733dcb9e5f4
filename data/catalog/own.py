"""The user's own records, in YAML, beside the built-in ones.

    datasets:
      - {id: our-liver-ct, name: Our liver CT, modalities: [ct], organs: [liver], licence: internal}
    overlaps:
      - {a: our-liver-ct, relation: shares-cases, b: lits}

Files are taken from `$MEDLOOM_CATALOG` (files or folders, separated as in PATH), else from
`$XDG_CONFIG_HOME/medloom/catalog/*.yaml`. An own record never replaces a built-in one: a correction is a
patch (`medloom catalog report-error`), and a copy of a known dataset is an own record with `same-as`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import ConfigError, nearest
from .parsing import Parser, dataset, overlap
from .records import Dataset, Overlap
from .vocabulary import IDENTIFIER


@dataclass
class OwnDataset:
    """One dataset; the fields and words of `Dataset`. Only `id` is required."""

    id: str
    name: str = ""
    year: int | None = None
    modalities: list[str] = field(default_factory=list)
    organs: list[str] = field(default_factory=list)
    category: str = ""
    dims: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    n_images: int | None = None
    n_subjects: int | None = None
    unit: str = ""
    formats: list[str] = field(default_factory=list)
    access: str = "unknown"
    licence: str = ""
    homepage: str = ""
    download: list[str] = field(default_factory=list)
    paper: str = ""
    notes: str = ""


@dataclass
class OwnOverlap:
    """One relation; an end may be a built-in dataset."""

    a: str
    relation: str
    b: str
    evidence_url: str = ""


@dataclass
class OwnFile:
    """One YAML file."""

    datasets: list[OwnDataset] = field(default_factory=list)
    overlaps: list[OwnOverlap] = field(default_factory=list)


def own_files() -> list[Path]:
    """Where the user's records lie.

    Raises:
        ConfigError: MEDLOOM_CATALOG names something that does not exist.
    """
    stated = os.environ.get("MEDLOOM_CATALOG")
    if stated is None:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return sorted((base / "medloom" / "catalog").glob("*.yaml"))
    return yaml_files(Path(part).expanduser() for part in stated.split(os.pathsep) if part)


def yaml_files(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and the *.yaml of the folders among them.

    Raises:
        ConfigError: a path does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder of own catalogue records")
        files += sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return files


def read_own(files: Iterable[Path], known: Iterable[str]) -> tuple[list[Dataset], list[Overlap]]:
    """Read own records.

    Args:
        known: ids of the built-in datasets; an own record may relate to them but not repeat one.

    Raises:
        ConfigError: wrong key or word (with near ones), an id that is taken, a relation to an unknown id.
    """
    from ..config import structured

    parser, taken = Parser(), set(known)
    datasets: list[Dataset] = []
    overlaps: list[Overlap] = []
    for path in files:
        content = structured(OwnFile, path, where=str(path))
        datasets += [_dataset(path, item, parser, taken) for item in content.datasets]
        for item in content.overlaps:
            try:
                row = {"a": item.a, "relation": item.relation, "b": item.b, "basis": "own"}
                made = overlap(row | {"evidence_url": item.evidence_url}, parser)
            except ConfigError as error:
                raise ConfigError(f"{path}: overlap {item.a}: {error}") from error
            overlaps.append(replace(made, origin=str(path)))
    for one in overlaps:
        for end in (one.a, one.b):
            if end not in taken:
                raise ConfigError(f"{one.origin}: overlap `{one}`: no dataset {end}{nearest(end, taken)}")
    return datasets, overlaps


def _dataset(path: Path, item: OwnDataset, parser: Parser, taken: set[str]) -> Dataset:
    """One record, checked; its id is added to `taken`."""
    if not IDENTIFIER.fullmatch(item.id):
        raise ConfigError(f"{path}: id {item.id!r}: use lower-case letters, digits and single hyphens")
    if item.id in taken:
        raise ConfigError(
            f"{path}: id {item.id} is taken; choose another, and relate it to {item.id} with same-as"
        )
    taken.add(item.id)
    row = {
        name: ";".join(value) if isinstance(value, list) else "" if value is None else str(value)
        for name, value in vars(item).items()
    }
    try:
        return dataset(row | {"name": item.name or item.id, "sources": ""}, parser, origin=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {item.id}: {error}") from error
