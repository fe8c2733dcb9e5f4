"""nnU-Net's raw folders: `imagesTr/CASE_0000.nii.gz`, a file a channel, `labelsTr/CASE.nii.gz`, `imagesTs`.

Isensee et al., Nature Methods 18:203 (2021); dataset.json as nnU-Net v2 writes it (`channel_names`, `labels`,
`file_ending`, and `dataset` where the cases are listed), or v1 (`modality`). The channels of a case become
one image; that their grids agree is checked when they are read. `imagesTr` is split "train", `imagesTs` is
"test", with masks where `labelsTs` has them. Nothing but the JSON is opened: about 10 us a file.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CollectionError, nearest
from ..sample import Given, Record
from .base import Progress, Refusal, Source, counted, readable, subject_in, subject_pattern, walk
from .msd import mask_classes_of, modality_of

logger = logging.getLogger(__name__)

_COLOURS = 3  # of natural pictures, which are one file in spite of three channel names


@dataclass
class Options:
    """Keys of `options` in a source of layout nnunet_raw."""

    channels: list[str] = field(default_factory=list)  # names to keep, in this order; empty: all
    include_unlabelled: bool = True  # imagesTs
    subject_pattern: str | None = None  # one group on the case's name; default: the case


@dataclass(slots=True)
class Case:
    """Files of one case, before they are looked at."""

    name: str  # imagesTr/CASE
    split: str
    files: dict[int, Path]  # by channel
    mask: Path | None
    fault: str | None = None


def describe(source: Source) -> Source:
    """Fill modality and mask classes from dataset.json where the collection does not state them."""
    facts = _read(source.root)
    channels = _channels(source.root, facts, source.options)
    modality = source.modality or modality_of({"channel_names": channels}, source)
    return replace(source, modality=modality, mask_classes=source.mask_classes or mask_classes_of(facts))


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per case.

    Raises:
        CollectionError: no dataset.json, not one of nnU-Net, or a channel that it does not name.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    facts = _read(root)
    pattern = subject_pattern(options.subject_pattern)
    every = _channels(root, facts, Options())
    kept = _channels(root, facts, options)
    cases = list(_listed(root, facts) or _found(root, facts, options))
    declared = facts.get("numTraining")
    training = sum(case.split == "train" for case in cases)
    if isinstance(declared, int) and declared != training:
        logger.warning(
            "%s: dataset.json says %d training cases, there are %d", source.dataset, declared, training
        )
    picture = len(every) == _COLOURS and all(set(case.files) <= {0} for case in cases)
    for case in counted(cases, source.dataset, progress):
        first = case.files[min(case.files)]
        subject = subject_in(case.name.partition("/")[2], pattern)
        reason = case.fault or _fault(root, case, {0: "picture"} if picture else every)
        if reason is None and not subject:
            reason = f"options.subject_pattern {options.subject_pattern!r} does not match"
        if reason is not None:
            yield Refusal(case.name, first, reason)
            continue
        numbers = [0] if picture else list(kept)
        yield Record(
            dataset=source.dataset,
            name=case.name,
            subject=subject,
            paths=tuple(case.files[number] for number in numbers),
            modality=source.modality,
            organ=source.organ,
            licence=source.licence,
            split=case.split,
            mask=case.mask,
            given=Given(channels=tuple(kept.values())) if len(numbers) > 1 else None,
        )


def _read(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CollectionError(f"{path}: missing; layout nnunet_raw needs it (or use layout cases)") from error
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path}: cannot be read as JSON: {error}") from error
    named = facts.get("channel_names") or facts.get("modality") if isinstance(facts, dict) else None
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        raise CollectionError(
            f"{path}: has no `channel_names` such as {{'0': 'CT'}}; layout nnunet_raw needs them (or use msd)"
        )
    return facts


def _channels(root: Path, facts: dict[str, Any], options: Options) -> dict[int, str]:
    """Names of the channels by number, those that are kept in the order in which they are wanted."""
    named = facts.get("channel_names") or facts["modality"]
    every = {int(key): str(named[key]) for key in sorted(named, key=int)}
    if not options.channels:
        return every
    numbers = {name.lower(): number for number, name in every.items()}
    for name in options.channels:
        if name.lower() not in numbers:
            hint = nearest(name, set(every.values()))
            raise CollectionError(f"{root / 'dataset.json'}: no channel {name!r} (options.channels){hint}")
    return {numbers[name.lower()]: name for name in options.channels}


def _ending(root: Path, facts: dict[str, Any]) -> str:
    ending = str(facts.get("file_ending") or ".nii.gz")
    if not ending.startswith("."):
        raise CollectionError(f"{root / 'dataset.json'}: file_ending {ending!r}, expected e.g. '.nii.gz'")
    return ending


def _listed(root: Path, facts: dict[str, Any]) -> list[Case]:
    """Training cases of the `dataset` in dataset.json, where it has one."""
    entries = facts.get("dataset")
    if not entries:
        return []
    path, cases = root / "dataset.json", []
    for case, entry in sorted(entries.items()) if isinstance(entries, dict) else ():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not (isinstance(images, list) and images and all(isinstance(i, str) for i in images)):
            raise CollectionError(f"{path}: case {case!r} of `dataset` lists no images")
        files = {number: root / posixpath.normpath(image) for number, image in enumerate(images)}
        mask = root / posixpath.normpath(label) if isinstance(label, str) else None
        cases.append(Case(f"imagesTr/{case}", "train", files, mask))
    if not cases:
        raise CollectionError(f"{path}: `dataset` is no table of cases")
    return cases


def _found(root: Path, facts: dict[str, Any], options: Options) -> Iterator[Case]:
    """Cases of imagesTr and imagesTs, by what lies there."""
    ending = _ending(root, facts)
    folders = {"imagesTr": "train"} | ({"imagesTs": "test"} if options.include_unlabelled else {})
    if not (root / "imagesTr").is_dir():
        raise CollectionError(f"{root}: has no folder imagesTr; layout nnunet_raw needs it")
    for folder, split in folders.items():
        if not (root / folder).is_dir():
            continue
        names = {name: path for name, path in walk(root / folder) if "/" not in name}
        masks = root / folder.replace("images", "labels")
        labelled = dict(walk(masks)) if masks.is_dir() else {}
        cases: dict[str, Case] = {}
        for name, path in names.items():
            if not name.lower().endswith(ending.lower()):
                continue
            case, _, number = name[: -len(ending)].rpartition("_")
            if not case or not (len(number) == 4 and number.isdecimal()):
                stem = name[: -len(ending)]
                fault = f"its name does not end in a channel's number; rename it to {stem}_0000{ending}"
                cases[stem] = Case(f"{folder}/{stem}", split, {0: path}, None, fault)
                continue
            known = cases.setdefault(case, Case(f"{folder}/{case}", split, {}, labelled.get(case + ending)))
            known.files[int(number)] = path
            if split == "train" and known.mask is None:
                known.fault = f"{masks.name}/{case}{ending}: no such label map"
        _refuse_stacks(root / folder, ending, cases, names)
        yield from cases.values()


def _refuse_stacks(folder: Path, ending: str, cases: dict[str, Case], names: dict[str, Path]) -> None:
    """TIFF volumes have their spacing in CASE.json; their pages would be read as pictures."""
    if ending.lower() not in (".tif", ".tiff"):
        return
    for case in cases:
        if f"{case}.json" in names:
            raise CollectionError(
                f"{folder / case}.json: volumes in TIFF with their spacing beside them are not read; "
                "convert them to .nii.gz"
            )


def _fault(root: Path, case: Case, channels: dict[int, str]) -> str | None:
    for number, name in channels.items():
        if number not in case.files:
            return f"channel {number:04d} ({name}) is missing; complete the case or exclude it"
    for number in case.files:
        if number not in channels:
            return f"has a channel {number:04d}, which dataset.json does not name"
    for path in case.files.values():
        if why := readable(path):
            return f"{path.name}: {why}"
    if case.mask is not None and (why := readable(case.mask)):
        return f"mask {case.mask.relative_to(root) if case.mask.is_relative_to(root) else case.mask}: {why}"
    return None
