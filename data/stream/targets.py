"""What supervision travels with a sample: its class and its label map, in the numbers of the run.

Datasets seldom label the same things, so each is a *head* of its own: {"derm_ham10000": ["akiec", ...],
"modality_mednist": [...]}. A class is numbered through all heads in this order, and a label map has a
background of each dataset's own, since what one calls background another may have outlined. With
`data.labels_shared` equal words mean the same everywhere, and there is one head, "all".

Labels of test samples, and of those that probes validate on (`validation.py`), never leave the shards: they
are -1, unknown, like those of a sample that has none. Its pixels are read as ever.

The classes come from the manifest. It does not list structures: these are taken from the metadata of up to
`SURVEYED` samples a source, and one that occurs in none of them is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, nearest
from ..shards.manifest import SourceEntry
from ..shards.reader import Shards
from .config import StreamConfig
from .validation import Validation, with_label, with_mask

log = logging.getLogger(__name__)

UNKNOWN = -1
BACKGROUND = "background"
SHARED = "all"  # the one head of a run whose words mean the same everywhere
SURVEYED = 500  # samples a source whose metadata are read for the names of structures
_MOST = 1 << 15  # numbers that fit a label map on its way to the device, int16

Heads = dict[str, list[str]]


class Targets:
    """Classes and structures of a run, and their numbers.

    Args:
        config: its `labels`, `labels_shared` and `masks`.
        sources: all that the run reads.

    Raises:
        ConfigError: no source has such labels, or label maps.
    """

    def __init__(self, config: StreamConfig, shards: Shards, sources: Sequence[SourceEntry]) -> None:
        self.key, self.shared = config.labels, config.labels_shared
        self.classes = _joined(class_heads(self.key, sources, shared=self.shared), self.shared)
        self.structures = _joined(structure_heads(shards, sources), self.shared) if config.masks else {}
        if config.masks and not self.structures:
            raise ConfigError("data.masks is true, but no source has label maps: leave it out")
        self._class = _numbers(self.classes)
        self._structure = _numbers(self.structures)
        self._validation = {
            kind: {(s.dataset, s.ndim): Validation.of(shards, s, labelled) for s in sources if wanted(s)}
            for kind, labelled, wanted in (
                ("label", with_label(self.key), lambda s: self.key and self.key in s.labels),
                ("mask", with_mask, lambda s: config.masks and s.masks),
            )
        }

    def label(self, meta: Mapping[str, Any]) -> int:
        """Number of the class of a sample; -1 where it is unknown or withheld."""
        value = (meta.get("labels") or {}).get(self.key)
        if value is None or isinstance(value, list) or self._withholds("label", meta):
            return UNKNOWN
        return self._class.get((self._head(meta), str(value)), UNKNOWN)

    def table(self, meta: Mapping[str, Any]) -> np.ndarray | None:
        """Stored value of a label map -> number, int16 [n], the last for all beyond; None: all is unknown."""
        mask, head = meta.get("mask"), self._head(meta)
        if mask is None or head not in self.structures or self._withholds("mask", meta):
            return None
        names = {int(value): str(name) for value, name in (mask.get("classes") or {}).items()}
        table = np.full(max(names, default=0) + 2, UNKNOWN, np.int16)
        for value, name in names.items():
            table[value] = self._structure.get((head, name), UNKNOWN)
        table[0] = self._structure[head, BACKGROUND]
        return table

    def describe(self) -> list[str]:
        """Lines for the log."""
        lines = []
        for what, heads in ((f"labels {self.key!r}", self.classes), ("label maps", self.structures)):
            if heads:
                count = sum(map(len, heads.values()))
                where = ", ".join(heads)
                lines.append(f"{what}: {count} classes of {where}; not read: test and validation")
        return lines

    def _withholds(self, kind: str, meta: Mapping[str, Any]) -> bool:
        return self._validation[kind][meta["dataset"], meta["ndim"]].withholds(meta)

    def _head(self, meta: Mapping[str, Any]) -> str:
        return SHARED if self.shared else meta["dataset"]


def class_heads(label: str, sources: Sequence[SourceEntry], *, shared: bool = False) -> Heads:
    """Dataset -> its classes: in the declared order where there is one, else sorted.

    Left out, with a line in the log: labels that are numbers or several at once, that take too many values to
    be listed in the manifest, and, unless classes are shared, that take one only.

    Raises:
        ConfigError: nothing is left.
    """
    heads: Heads = {}
    if not label:
        return heads
    for source in sources:
        counts = source.labels.get(label)
        if not counts:
            continue
        kind = source.label_kinds.get(label, {})
        words = [str(v) for v in kind.get("order") or kind.get("values") or sorted(counts)]
        reason = _unfit(kind.get("kind", "single"), counts, words, shared)
        if reason:
            log.info("labels %r of %s are not learnt: %s", label, source.id, reason)
            continue
        known = heads.setdefault(source.dataset, [])
        known += [word for word in words if word not in known]
    if not heads:
        there = sorted({name for source in sources for name in source.labels})
        raise ConfigError(f"data.labels is {label!r}: no source has such classes{nearest(label, there)}")
    return heads


def structure_heads(shards: Shards, sources: Sequence[SourceEntry]) -> Heads:
    """Dataset -> background and the structures of its label maps, by stored value."""
    heads: Heads = {}
    for source in (source for source in sources if source.masks):
        refs = list(shards.refs(source.id))
        found: dict[tuple[int, str], None] = {}
        for ref in refs[:: -(-len(refs) // SURVEYED)]:
            classes = (shards.meta(ref)["mask"] or {}).get("classes") or {}
            found |= dict.fromkeys((int(value), str(name)) for value, name in classes.items())
        known = heads.setdefault(source.dataset, [BACKGROUND])
        known += [name for name in dict.fromkeys(name for _, name in sorted(found)) if name not in known]
    return {name: known for name, known in heads.items() if len(known) > 1}


def _unfit(kind: str, counts: Mapping[str, int], words: Sequence[str], shared: bool) -> str:
    if kind not in ("single", "ordinal"):
        return f"they are of kind {kind}, not one class of several"
    if "*" in counts:
        return "too many values"
    return "" if shared or len(words) > 1 else f"all are {words[0]!r}"


def _joined(heads: Heads, shared: bool) -> Heads:
    if not shared or not heads:
        return heads
    return {SHARED: list(dict.fromkeys(name for names in heads.values() for name in names))}


def _numbers(heads: Heads) -> dict[tuple[str, str], int]:
    pairs = [(head, name) for head, names in heads.items() for name in names]
    if len(pairs) > _MOST:
        raise ConfigError(f"{len(pairs)} classes: at most {_MOST}; leave sources out with data.sources")
    return {pair: number for number, pair in enumerate(pairs)}
