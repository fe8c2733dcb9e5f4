"""Files and folders of new images -> Inputs: one image file, one DICOM series, or one file a channel.

The choice: what is to be predicted is read by the readers and described by the same code as training shards
(`samples_of`), so that the network sees what it was trained on. Names stay on this machine: the keys that the
readers need are salted with a draw that is thrown away.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.errors import ConfigError, ReadError
from ...data.ingest.ingest import samples_of
from ...data.layouts.base import Source, has_suffix, stem_of, walk
from ...data.layouts.dicom_tree import is_slice
from ...data.reading import parse_reading, told
from ...data.sample import Given, Record, Sample, parse_modality
from ..record import TaskRecord

if TYPE_CHECKING:
    from ...data.readers.dicom import Header

logger = logging.getLogger(__name__)

_SALT = secrets.token_bytes(32)  # nobody needs these keys after this process
_CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net's file a channel


@dataclass(frozen=True, slots=True)
class Input:
    """One image to be predicted, or a file that cannot be one."""

    name: str  # where its outputs go, below the output folder and without suffix; unique
    paths: tuple[Path, ...] = ()
    given: Given | None = None
    fault: str | None = None

    @property
    def stamp(self) -> list[list[int]]:
        """Size and time of change of every file: a changed file is predicted again."""
        found = [path.stat() for path in self.paths]
        return [[status.st_size, status.st_mtime_ns] for status in found]


def find_inputs(paths: Sequence[Path], *, channels: bool = False) -> list[Input]:
    """What there is to predict, by name.

    Args:
        paths: files, folders or both. In a folder every file with an image's suffix counts, and every DICOM
            object; slices that share a series are one image, wherever they lie.
        channels: join nnU-Net's `CASE_0000`, `CASE_0001`, ... to one image of several channels.

    Raises:
        ConfigError: a path does not exist, or there is no image at all.
    """
    named: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            named += list(walk(path))
        elif path.is_file():
            named.append((path.name, path))
        else:
            raise ConfigError(f"{path}: no such file or folder; give an image, a DICOM series or a folder")
    plain, dicom, ignored = _sorted_out(named, alone=all(path.is_file() for path in paths))
    if ignored:
        logger.info("%d files left out, no images", ignored)
    inputs = [*(_by_channel(plain) if channels else _one_each(plain)), *_series(dicom)]
    if not inputs:
        raise ConfigError(f"{paths[0]}: holds no image that medloom reads; see docs/formats.md")
    return sorted(_unique(inputs), key=lambda item: item.name)


def source_of(record: TaskRecord, root: Path, modality: str | None = None) -> Source:
    """How the task's source reads its files, for files that lie elsewhere.

    Args:
        modality: overrides the record's; None and none there: what each file says.
    """
    word = modality or record.source.get("modality")
    return Source(
        dataset="predict",
        layout=str(record.source["layout"]),
        root=root,
        modality=parse_modality(str(word)) if word else None,
        fourth_axis=str(record.source.get("fourth_axis") or "channels"),
        reading=parse_reading(_mapping(record.source.get("reading")), f"task {record.name}: source.reading"),
        burned_in="keep",  # the output is no more public than the input
    )


def read_input(item: Input, source: Source) -> Iterator[Sample]:
    """The images of an input, one at a time. Raises ReadError."""
    if item.fault:
        raise ReadError(item.fault)
    record = Record(
        dataset=source.dataset, name=item.name, subject=item.name, paths=item.paths,
        modality=source.modality, given=item.given,
    )  # fmt: skip
    yield from samples_of(source, told(record, source.reading), _SALT)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sorted_out(
    named: Sequence[tuple[str, Path]], alone: bool
) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]], int]:
    """(image files, DICOM objects, number of other files); a file that was named is never left out."""
    from ...data.readers import SUFFIXES, array, dicom, npz

    bare = {*array.SUFFIXES, *npz.SUFFIXES, *dicom.SUFFIXES}  # arrays say nothing of their axes and spacing
    suffixes = tuple(suffix for suffix in SUFFIXES if suffix not in bare)
    plain: list[tuple[str, Path]] = []
    objects: list[tuple[str, Path]] = []
    ignored = 0
    for name, path in named:
        if has_suffix(name, suffixes):
            plain.append((name, path))
        elif path.name != "DICOMDIR" and (has_suffix(name, dicom.SUFFIXES) or _is_dicom(path)):
            objects.append((name, path))
        elif alone:
            plain.append((name, path))  # the reader says what is wrong with it
        else:
            ignored += 1
    return plain, objects, ignored


def _is_dicom(path: Path) -> bool:
    """Whether a file without a known suffix carries DICOM's preamble."""
    from ...data.readers.source import head_of

    try:
        return head_of(path)[128:132] == b"DICM"
    except ReadError:
        return False


def _one_each(plain: Sequence[tuple[str, Path]]) -> list[Input]:
    return [Input(_without_suffix(name), (path,)) for name, path in plain]


def _by_channel(plain: Sequence[tuple[str, Path]]) -> list[Input]:
    cases: dict[str, dict[str, Path]] = {}
    for name, path in plain:
        stem = _without_suffix(name)
        found = _CHANNEL.search(stem)
        cases.setdefault(stem[: found.start()] if found else stem, {})[found[1] if found else ""] = path
    inputs = []
    for name, files in cases.items():
        numbers = sorted(files)
        given = Given(channels=tuple(numbers)) if len(numbers) > 1 else None
        inputs.append(Input(name, tuple(files[number] for number in numbers), given))
    return inputs


def _series(objects: Sequence[tuple[str, Path]]) -> list[Input]:
    """DICOM objects: slices by series, named by their folder; every other object by itself."""
    from ...data.readers import dicom, messages

    alone: list[Input] = []
    series: dict[str, list[tuple[str, Header]]] = {}
    with messages.quiet():
        for name, path in objects:
            try:
                header = dicom.header(path)
            except ReadError as error:
                alone.append(Input(_without_suffix(name), (path,), fault=str(error)))
                continue
            if is_slice(header):
                series.setdefault(header.series_uid, []).append((name, header))
            elif header.is_image or header.is_empty:
                alone.append(Input(_without_suffix(name), (path,)))
    return alone + [_stack(uid, members) for uid, members in sorted(series.items())]


def _stack(uid: str, members: Sequence[tuple[str, Header]]) -> Input:
    """The slices of a series, called as their folder where they share one."""
    folders = {name.rpartition("/")[0] for name, _ in members}
    folder = folders.pop() if len(folders) == 1 else ""
    if len(members) == 1:
        return Input(_without_suffix(members[0][0]), (members[0][1].path,))
    return Input(folder or f"series-{uid}", tuple(header.path for _, header in sorted(members, key=_order)))


def _order(member: tuple[str, Header]) -> tuple[int, str]:
    """Only a tidy order: the reader sorts by position."""
    return member[1].instance_number or 0, member[0]


def _unique(inputs: Sequence[Input]) -> Iterator[Input]:
    """Names that several files share (a.png and a.jpg, two series in a folder) get what tells them apart."""
    shared = Counter(item.name for item in inputs)
    taken: set[str] = set()
    for item in inputs:
        name = item.name
        if shared[name] > 1:
            suffix = item.paths[0].name.removeprefix(stem_of(item.paths[0].name))
            name = f"{name}-{suffix.lstrip('.').replace('.', '-') or 'file'}"
        number, first = 1, name
        while name in taken:
            number += 1
            name = f"{first}-{number}"
        taken.add(name)
        yield replace(item, name=name)


def _without_suffix(name: str) -> str:
    return name[: name.rfind("/") + 1] + stem_of(name)
