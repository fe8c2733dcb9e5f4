"""The user's collection: which datasets, where, under which licence, and which of them are held out.

A collection is a YAML file (see `CollectionConfig`, `SourceConfig`); `scan` turns it into Records without
opening pixels. The choice: everything that makes a collection unusable as a whole (missing folder, a subject
in two splits, a held-out rule that holds nothing out) stops the scan, before hours of building; what spoils
one image (missing file, unknown label) is listed as a Failure and the scan goes on.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotations.kinds import parse_kinds, tidy_labels
from .annotations.names import read_names
from .annotations.options import check_annotations
from .config import structured
from .errors import CollectionError, ConfigError, nearest
from .layouts import LAYOUTS, Refusal, Source
from .layouts.base import SPLITS, Progress
from .privacy import BURNED_IN, as_salt, check_slug, key_of, load_salt, subject_key
from .reading import parse_reading, told
from .sample import Record, parse_modality, parse_organ

__all__ = ["Collection", "Exclusion", "Failure", "HeldOut", "Scan", "Source", "scan", "source_of_config"]

logger = logging.getLogger(__name__)

FOURTH_AXES = ("channels", "frames")


@dataclass
class HeldOutConfig:
    """A rule of `held_out`: these images never reach pretraining shards."""

    dataset: str = "???"
    splits: list[str] = field(default_factory=list)  # empty: every split, and images without one


@dataclass
class SourceConfig:
    """An entry of `sources`: one dataset as it lies on this disk."""

    dataset: str = "???"  # id: a-z 0-9 _ -
    layout: str = "???"  # a key of data.layouts.LAYOUTS
    root: str = "."  # relative to the collection's root
    modality: str | None = None  # null: from the layout, or from each file
    organ: str | None = None
    licence: str = "unknown"
    splits: list[str] | None = None  # only these splits
    exclude: list[str] = field(default_factory=list)  # globs on the record's name and on its relative paths
    classes: list[str] = field(default_factory=list)  # declared class labels; others are failures
    mask_classes: dict[int, str] = field(default_factory=dict)  # names of mask values
    mask_values: Any = None  # null: as they are | nonzero | {value in the file: value in the shard}
    fourth_axis: str = "channels"  # what a 4D file's last axis is: channels | frames
    reading: dict[str, Any] = field(default_factory=dict)  # of slides, films, loops: see data/reading.py
    burned_in: str = "refuse"  # images of DICOM files whose BurnedInAnnotation is YES: refuse | keep
    mask_names: str | None = None  # file of names of mask values, relative to `root` of the source
    masks_from: str = "files"  # files | polygons: draw the masks from the outlines
    consensus: str | None = None  # of several annotators, where there is no other mask: majority | staple
    label_kinds: dict[str, Any] = field(default_factory=dict)  # see data/annotations/kinds.py
    options: dict[str, Any] = field(default_factory=dict)  # of the layout


@dataclass
class CollectionConfig:
    """The collection's YAML."""

    name: str = "???"
    root: str | None = "."  # relative to the YAML; null: must be given on the command line
    salt: str | None = None  # null: MEDLOOM_SALT or ~/.config/medloom/salt
    held_out: list[HeldOutConfig] = field(default_factory=list)
    sources: list[SourceConfig] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A checked held-out rule; no splits means all of the dataset."""

    dataset: str
    splits: tuple[str, ...] = ()

    def covers(self, record: Record) -> bool:
        """Whether `record` is held out by this rule."""
        return record.dataset == self.dataset and (not self.splits or record.split in self.splits)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was found but cannot be used."""

    dataset: str
    key: str  # salted; the name itself may identify a person
    path: str  # relative to the source's root
    reason: str


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An image that the collection's own `exclude` or `splits` leaves out."""

    dataset: str
    key: str
    path: str
    reason: str


@dataclass(slots=True)
class Scan:
    """What lies in a collection, sources in the YAML's order, names sorted within a source."""

    records: list[tuple[Source, Record]] = field(default_factory=list)  # for pretraining
    failures: list[Failure] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)
    held_out: list[tuple[Source, Record]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Collection:
    """A checked collection."""

    name: str
    root: Path  # absolute
    sources: tuple[Source, ...]
    held_out: tuple[HeldOut, ...] = ()
    salt_text: str | None = field(default=None, repr=False)

    @property
    def salt(self) -> bytes:
        """The salt of all keys. Raises ConfigError when it is too short or cannot be read."""
        return as_salt(self.salt_text, f"collection {self.name}: salt") if self.salt_text else load_salt()

    @classmethod
    def load(
        cls, path: str | Path, *, root: str | Path | None = None, overrides: Sequence[str] = ()
    ) -> Collection:
        """Read and check a collection's YAML.

        `root` and an override `root=...` are relative to the working folder, the YAML's own to the YAML.

        Raises:
            ConfigError: unknown key, layout, modality, organ, split; a held-out rule without a source.
            CollectionError: no root, a missing folder, no sources, a dataset id given twice.
        """
        path = Path(path)
        config = structured(CollectionConfig, path, list(overrides), where=str(path))
        base = path.parent
        if root is not None or any(item.startswith("root=") for item in overrides):
            base = Path()
        where = root if root is not None else config.root
        if where is None:
            raise CollectionError(f"{path}: root is null; say where the datasets lie with --root FOLDER")
        folder = (base / Path(where).expanduser()).absolute()
        if not folder.is_dir():
            raise CollectionError(f"{folder}: no such folder (root of collection {config.name}); see --root")
        if not config.sources:
            raise CollectionError(f"{path}: no sources; list at least one dataset under `sources`")
        sources = tuple(
            source_of_config(source, folder, f"{path}: sources[{index}]")
            for index, source in enumerate(config.sources)
        )
        ids = [source.dataset for source in sources]
        for dataset in ids:
            if ids.count(dataset) > 1:
                raise CollectionError(
                    f"{path}: dataset {dataset!r} is given twice; every source needs its own id"
                )
        rules = tuple(_rule(rule, ids, f"{path}: held_out[{i}]") for i, rule in enumerate(config.held_out))
        return cls(config.name, folder, sources, rules, config.salt)


def source_of_config(config: SourceConfig, root: Path, where: str) -> Source:
    """Check one entry of `sources`; `root` is the collection's, `where` begins the messages.

    Raises:
        ConfigError: unknown layout, modality, organ, split, fourth_axis, or a wrong key in `options`.
        CollectionError: the folder does not exist.
    """
    if config.layout not in LAYOUTS:
        raise ConfigError(f"{where}.layout: unknown {config.layout!r}{nearest(config.layout, set(LAYOUTS))}")
    if config.fourth_axis not in FOURTH_AXES:
        hint = nearest(config.fourth_axis, FOURTH_AXES)
        raise ConfigError(f"{where}.fourth_axis: unknown {config.fourth_axis!r}{hint}")
    if config.burned_in not in BURNED_IN:
        raise ConfigError(
            f"{where}.burned_in: unknown {config.burned_in!r}{nearest(config.burned_in, BURNED_IN)}"
        )
    try:
        check_slug(config.dataset)
        modality = parse_modality(config.modality) if config.modality else None
        organ = parse_organ(config.organ) if config.organ else None
    except (ConfigError, CollectionError) as error:
        raise ConfigError(f"{where}: {error}") from error
    folder = (root / Path(config.root).expanduser()).absolute()
    if not folder.is_dir():
        raise CollectionError(f"{folder}: no such folder (root of source {config.dataset})")
    layout = LAYOUTS[config.layout]
    source = Source(
        dataset=config.dataset,
        layout=config.layout,
        root=folder,
        modality=modality,
        organ=organ,
        licence=config.licence,
        splits=_splits(config.splits or [], f"{where}.splits"),
        exclude=tuple(config.exclude),
        classes=tuple(config.classes),
        mask_classes=(read_names(folder / config.mask_names) if config.mask_names else {})
        | dict(config.mask_classes),
        mask_values=_mask_values(config.mask_values, f"{where}.mask_values"),
        fourth_axis=config.fourth_axis,
        reading=parse_reading(config.reading, f"{where}.reading"),
        burned_in=config.burned_in,
        label_kinds=parse_kinds(config.label_kinds, f"{where}.label_kinds"),
        masks_from=config.masks_from,
        consensus=config.consensus,
        options=structured(layout.Options, config.options, where=f"{where}.options ({config.layout})"),
    )
    return check_annotations(layout.describe(source), where)


def scan(collection: Collection, progress: Progress | None = None, *, may_be_empty: bool = False) -> Scan:
    """List everything in the collection; opens no pixels, and the same files give the same Scan.

    `progress(done, total, "scan | dataset")` counts within the source being scanned.

    Raises:
        CollectionError: a source holds nothing or nothing usable, a subject is in two splits of a dataset, a
            held-out rule names a split that no image has.
    """
    result = Scan()
    salt = collection.salt
    for source in collection.sources:
        good = _scan_source(source, salt, result, progress)
        rules = [rule for rule in collection.held_out if rule.dataset == source.dataset]
        _check_rules(source, rules, good)
        for record in good:
            if any(rule.covers(record) for rule in rules):
                result.held_out.append((source, record))
            elif source.splits and record.split not in source.splits:
                reason = f"split {record.split or 'none'} is not among {', '.join(source.splits)}"
                result.excluded.append(_listed(Exclusion, source, salt, record, reason))
            else:
                result.records.append((source, record))
    if not (result.records or result.held_out or may_be_empty):
        raise CollectionError(
            f"collection {collection.name}: empty, {len(result.excluded)} images were excluded; "
            "see `exclude` and `splits` of its sources"
        )
    return result


def _scan_source(source: Source, salt: bytes, result: Scan, progress: Progress | None) -> list[Record]:
    """Usable records of a source, by name; failures and exclusions go to `result`."""
    layout = LAYOUTS[source.layout]
    items = sorted(layout.scan(source.root, source, source.options, progress), key=lambda item: item.name)
    if not items:
        raise CollectionError(
            f"{source.root}: layout {source.layout} finds no image (source {source.dataset})"
        )
    good: list[Record] = []
    keys: set[str] = set()
    splits: dict[str, Record] = {}
    failed = 0
    for item in items:
        if pattern := _excluded_by(item, source):
            reason = f"exclude {pattern!r}"
            result.excluded.append(_listed(Exclusion, source, salt, item, reason))
            continue
        reason = item.reason if isinstance(item, Refusal) else _fault(item, source)
        key = key_of(salt, source.dataset, item.name)
        if isinstance(item, Record):
            _check_subject(item, splits, salt)
            if reason is None and key in keys:
                reason = "is listed twice; the first one counts"
        if reason is None and isinstance(item, Record):
            keys.add(key)
            good.append(told(item, source.reading))
        else:
            failed += 1
            result.failures.append(_listed(Failure, source, salt, item, str(reason)))
    if failed:
        logger.warning("%s: %d of %d images cannot be used", source.dataset, failed, len(items))
    if failed and not good:
        first = result.failures[-failed]
        raise CollectionError(
            f"source {source.dataset}: none of {failed} images can be used; "
            f"the first, {first.path}: {first.reason}"
        )
    return good


def _fault(record: Record, source: Source) -> str | None:
    label = record.labels.get("class")
    if label is not None and source.classes and label not in source.classes:
        return f"label {label!r} is not among the declared classes{nearest(str(label), source.classes)}"
    try:
        for labels in (record.labels, *(reading.labels for reading in record.readings)):
            tidy_labels(labels, source.label_kinds)
    except CollectionError as error:
        return str(error)
    return None


def _check_subject(record: Record, first_of: dict[str, Record], salt: bytes) -> None:
    """Remember the first record of each subject that has a split; raise when a later one disagrees."""
    if record.split is None:
        return
    first = first_of.setdefault(record.subject, record)
    if first.split != record.split:
        subject = subject_key(salt, record.dataset, record.subject)
        raise CollectionError(
            f"{record.dataset}: subject {subject} is in two splits, "
            f"{first.split} ({first.name}) and {record.split} ({record.name}); "
            "mend the split or the subject column, or exclude the images"
        )


def _check_rules(source: Source, rules: Sequence[HeldOut], records: Sequence[Record]) -> None:
    found = {record.split for record in records if record.split}
    for rule in rules:
        for split in rule.splits:
            if split not in found:
                have = ", ".join(sorted(found)) or "no splits at all"
                raise CollectionError(
                    f"held_out: {source.dataset} has no image of split {split!r} (it has {have}); "
                    "the rule would hold nothing out"
                )


def _excluded_by(item: Record | Refusal, source: Source) -> str | None:
    paths = item.paths if isinstance(item, Record) else (item.path,)
    names = {item.name, *(source.relative(path) for path in paths)} if source.exclude else set()
    for pattern in source.exclude:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def _listed(kind: type, source: Source, salt: bytes, item: Record | Refusal, reason: str) -> Any:
    path = item.paths[0] if isinstance(item, Record) else item.path
    return kind(source.dataset, key_of(salt, source.dataset, item.name), source.relative(path), reason)


def _rule(config: HeldOutConfig, datasets: Sequence[str], where: str) -> HeldOut:
    if config.dataset not in datasets:
        raise ConfigError(f"{where}: no source {config.dataset!r}{nearest(config.dataset, set(datasets))}")
    return HeldOut(config.dataset, _splits(config.splits, f"{where}.splits"))


def _splits(words: Sequence[str], where: str) -> tuple[str, ...]:
    for word in words:
        if word not in SPLITS:
            raise ConfigError(f"{where}: unknown split {word!r}{nearest(word, SPLITS)}")
    return tuple(words)


def _mask_values(value: Any, where: str) -> dict[int, int] | str | None:
    if value is None or value == "nonzero":
        return value
    if isinstance(value, Mapping):
        try:
            return {int(old): int(new) for old, new in value.items()}
        except (TypeError, ValueError):
            pass
    raise ConfigError(f"{where}: expected null, nonzero or {{value: value}}, found {value!r}")
