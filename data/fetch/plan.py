"""What has to be fetched for a dataset of the catalogue: files with their digests, or nothing, and why.

Fetched are direct files of datasets that need no account: the ten Decathlon archives and MedMNIST's .npz (MD5
known), and every `download` of the table that is a file by its address. All others are reached by hand
(`steps`); addresses of pages are never guessed into addresses of files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ..catalog import Catalog, Dataset
from ..catalog.vocabulary import Access
from ..errors import ConfigError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_FILES = (*ARCHIVES, ".npz", ".nii", ".nii.gz", ".gz", ".h5", ".hdf5")
# Addresses of files whose name is not in them: figshare's archives of an article, shares of Nextcloud.
_NAMELESS = re.compile(r"figshare\.com/ndownloader/|/s/[A-Za-z0-9]+/download$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Part:
    """One file to fetch, or one that the user has already."""

    name: str  # of the file on this disk
    url: str = ""
    md5: str | None = None
    given: Path | None = None  # a file or folder that the user has

    @property
    def archive(self) -> bool:
        """Whether it will be unpacked, by its name."""
        return self.name.lower().endswith(ARCHIVES)

    @property
    def folder(self) -> str:
        """Name of the folder that it is unpacked to."""
        lower = self.name.lower()
        suffix = next((s for s in (*ARCHIVES, ".gz") if lower.endswith(s)), "")
        return self.name[: len(self.name) - len(suffix)] or "data"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one dataset."""

    dataset: Dataset
    folder: str  # of the dataset, in the user's
    parts: tuple[Part, ...] = ()  # none: it has to be fetched by hand
    layout: str | None = None  # where it is known before anything has come
    size: int | None = None  # of MedMNIST's images
    reason: str = ""  # why there are no parts


def plan(catalog: Catalog, identifier: str, size: int | None = None) -> Plan:
    """The plan for one dataset.

    Args:
        size: of MedMNIST's images; None: 28, the one that the papers compare at.

    Raises:
        ConfigError: an unknown dataset, or a size that it does not come in.
    """
    dataset = catalog[identifier]
    if dataset.id in catalog.medmnist:
        return _medmnist(catalog, dataset, size)
    if size is not None:
        raise ConfigError(f"--size {size}: belongs to the sets of MedMNIST, {dataset.id} is none")
    if dataset.id in catalog.msd:
        task = catalog.msd[dataset.id]
        part = Part(_name(task.url_aws, dataset.id), task.url_aws, task.archive_md5)
        return Plan(dataset, dataset.id, (part,), "msd")
    if dataset.id == "medmnist":
        raise ConfigError(f"medmnist: is eighteen sets, fetch them one by one: {', '.join(catalog.medmnist)}")
    if dataset.access not in (Access.OPEN, Access.UNKNOWN):
        return Plan(dataset, dataset.id, reason=_REASONS[dataset.access])
    direct = [url for url in dataset.download if is_file(url)]
    names = [_name(url, dataset.id) for url in direct]
    if not direct or len(set(names)) < len(names):
        return Plan(dataset, dataset.id, reason="the catalogue knows no address of a file")
    parts = tuple(Part(name, url) for name, url in zip(names, direct, strict=True))
    return Plan(dataset, dataset.id, parts)


def given(plan: Plan, paths: Sequence[Path]) -> Plan:
    """The plan with files or folders that the user has, in the place of downloads.

    Raises:
        ConfigError: one does not exist, several folders, or two that would lie in one folder.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder (--from)")
    paths = [inner for path in paths for inner in _archives_in(path)]
    if len(paths) > 1 and any(path.is_dir() for path in paths):
        raise ConfigError("--from: give one folder, or files; put what belongs together into one folder")
    known = {part.name: part for part in plan.parts}
    if len(known) == 1 and len(paths) == 1 and paths[0].is_file():
        parts = [Part(plan.parts[0].name, md5=plan.parts[0].md5, given=paths[0].absolute())]
    else:
        parts = [
            Part(
                _UNSAFE.sub("_", path.name),
                md5=known[path.name].md5 if path.name in known else None,
                given=path.absolute(),
            )
            for path in paths
        ]
    names = [part.folder for part in parts]
    if len(set(names)) < len(names):
        raise ConfigError(f"--from: two of {', '.join(path.name for path in paths)} would lie in one folder")
    return Plan(plan.dataset, plan.folder, tuple(parts), plan.layout, plan.size)


def _archives_in(path: Path) -> list[Path]:
    """The files of a folder of downloads; any other path, and a folder that is unpacked already, itself."""
    inner = sorted(entry for entry in path.iterdir() if entry.name[0] != ".") if path.is_dir() else []
    packed = any(entry.name.lower().endswith(ARCHIVES) for entry in inner)
    return inner if packed and all(entry.is_file() for entry in inner) else [path]


def is_file(url: str) -> bool:
    """Whether the address is, by itself, that of a file which can be fetched and unpacked here."""
    split = urlsplit(url)
    if split.scheme not in ("http", "https"):
        return False
    return split.path.lower().endswith(_FILES) or _NAMELESS.search(f"{split.netloc}{split.path}") is not None


def _medmnist(catalog: Catalog, dataset: Dataset, size: int | None) -> Plan:
    known = catalog.medmnist[dataset.id]
    size = size or 28
    if size not in known.url:
        sizes = ", ".join(map(str, known.sizes))
        raise ConfigError(f"--size {size}: {dataset.id} comes in {sizes}")
    name = dataset.id if size == 28 else f"{dataset.id}_{size}"
    part = Part(f"{name}.npz", known.url[size], known.md5.get(size))
    return Plan(dataset, name, (part,), "medmnist", size)


def _name(url: str, identifier: str) -> str:
    """A tame file name; that of the dataset where the address has none."""
    name = _UNSAFE.sub("_", unquote(PurePosixPath(urlsplit(url).path).name)).lstrip(".")
    return name if name.lower().endswith(_FILES) else f"{identifier}.zip"


_REASONS: dict[Access, str] = {
    Access.REGISTRATION: "it asks for a free account, or for terms to be clicked",
    Access.CHALLENGE: "it is reached through a challenge's site, which has to be joined",
    Access.APPLICATION: "a person has to approve your application",
    Access.GONE: "it was withdrawn",
}
