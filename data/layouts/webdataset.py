"""WebDataset shards that others wrote: tars (compressed or not) whose members share a key per sample.

`root` is searched for tars, or `shards` lists them as globs or braces (`train-{000..099}.tar`). A sample is a
run of members with the same path up to the first dot of the file name. Unknown members are counted in the
log; a tar that is cut short gives what came before, and is listed as a failure; the second of two equal names
is refused. The price: all headers are read at every scan, about 20 us a member.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ReadError
from ..interop import archive
from ..sample import Record
from .base import Progress, Refusal, Source, as_it_is, counted, has_suffix, subject_pattern, walk
from .members import Converter, Group, MemberOptions

LARGEST_FIELD = 4 << 20  # bytes of a .json, .cls or .txt member
_BRACES = re.compile(r"\{((?P<low>\d+)\.\.(?P<high>\d+)|(?P<words>[^{}]*,[^{}]*))\}")
_FIELDS = ("json", "cls", "txt")


@dataclass
class Options(MemberOptions):
    """Keys of `options` in a source of layout webdataset; the fields are those of KEY.json, cls and txt."""

    shards: list[str] = field(default_factory=list)  # globs or braces below the root; empty: every tar


describe = as_it_is  # shards say nothing beyond their samples


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image in the tars.

    Raises:
        CollectionError: a pattern of `shards` finds no file, or the folder holds medloom's own shards.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    if (root / "manifest.json").is_file() and (root / "build.json").is_file():
        raise CollectionError(f"{root}: these are shards of medloom already; read them as they are")
    converter = Converter(source, options, subject_pattern(options.subject_pattern))
    for name, path in counted(tars(root, options.shards), source.dataset, progress):
        try:
            tar = archive.opened(path)
        except ReadError as error:
            yield Refusal(name, path, str(error))
            continue
        if tar.fault:
            yield Refusal(name, path, tar.fault)
        for repeated in getattr(tar, "repeated", ()):
            yield Refusal(
                f"{name}/{repeated}", archive.join(path, repeated), "is twice in its tar; the first counts"
            )
        for group in groups(tar, path, name):
            yield from converter.records(group)
    converter.report()


def tars(root: Path, patterns: list[str]) -> list[tuple[str, Path]]:
    """(relative name, path) of the tars, sorted; those of the patterns, or all below `root`.

    Raises:
        CollectionError: a pattern finds nothing.
    """
    if not patterns:
        return [(name, path) for name, path in walk(root) if has_suffix(name, archive.TARS)]
    found: dict[str, Path] = {}
    for pattern in patterns:
        for text in expand(pattern):
            plain = not any(sign in text for sign in "*?[")
            hits = [root / text] if plain else sorted(root.glob(text))
            if not hits or not all(hit.is_file() for hit in hits):
                raise CollectionError(f"{root / text}: no such file (options.shards)")
            found |= {hit.relative_to(root).as_posix(): hit for hit in hits}
    return sorted(found.items())


def expand(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{train,val}.tar` written out, as the shell and webdataset do."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    if found["low"]:
        width = len(found["low"]) if found["low"].startswith("0") else 0
        words = [str(number).zfill(width) for number in range(int(found["low"]), int(found["high"]) + 1)]
    else:
        words = found["words"].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [text for word in words for text in expand(before + word + after)]


def groups(tar: archive.Archive, path: Path, name: str) -> Iterator[Group]:
    """Samples of one tar, in stored order: runs of members with one key."""
    current: Group | None = None
    for member in tar.names():
        folder, _, file = member.removeprefix("./").rpartition("/")
        stem, _, extension = file.partition(".")
        if file.startswith((".", "__")) or not extension:
            continue
        key = f"{name}/{folder}/{stem}" if folder else f"{name}/{stem}"
        if current is None or current.name != key:
            if current is not None:
                yield current
            current = Group(key, path)
        _add(current, tar, member, extension.lower())
    if current is not None:
        yield current


def _add(group: Group, tar: archive.Archive, member: str, extension: str) -> None:
    kind = extension.rpartition(".")[2]
    if kind == "npz":
        try:
            arrays = archive.Zip(tar.open(member), member).names()
        except ReadError as error:
            group.fault = str(error)
            return
        for array in arrays:
            leaf = extension if len(arrays) == 1 else f"{extension[:-4]}.{array}".lstrip(".").lower()
            group.members[leaf if leaf.endswith(".npy") else f"{leaf}.npy"] = (
                f"{member}{archive.SEPARATOR}{array}"
            )
    elif kind in _FIELDS and tar.size(member) <= LARGEST_FIELD:
        try:
            group.fields |= _fields(kind, extension, tar.read(member).decode("utf-8-sig"))
        except ValueError as error:
            group.fault = f"{extension} cannot be read: {str(error)[:80]}"
    else:
        group.members.setdefault(extension, member)


def _fields(kind: str, extension: str, text: str) -> dict[str, Any]:
    if kind != "json":
        return {extension: text.strip()}
    value = json.loads(text)
    return value if isinstance(value, dict) else {extension: value}
