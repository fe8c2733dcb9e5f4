"""Which labelled samples of a source are for scoring while training: one rule for the probes and the stream.

As declared, where the source has a training and a validation split. Else three tenths of the subjects, by a
hash, so that one subject stays on one side in every run; of few subjects a hash may take all or none, and
then it is one of them. Whatever a run learns labels from (`targets.py`) leaves these samples out, so that its
probes do not score what it was shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..shards.manifest import SourceEntry
from ..shards.reader import Shards

VALIDATION_TENTHS = 3  # of the subjects, where a source declares no validation split
FEW = 500  # samples of a source that are looked at for a hash that takes all subjects or none


@dataclass(frozen=True, slots=True)
class Validation:
    """metadata of a sample -> whether it validates. A test sample does neither that nor train."""

    declared: bool
    only: int | None = None  # the one subject that validates, by its digest

    @classmethod
    def of(
        cls, shards: Shards, source: SourceEntry, labelled: Callable[[Mapping[str, Any]], bool]
    ) -> Validation:
        """The rule of a source for one kind of labels.

        Args:
            labelled: whether a sample has them.
        """
        if {"train", "val"} <= set(source.splits):
            return cls(True)
        if source.count > FEW:
            return cls(False)
        metas = [meta for meta in map(shards.meta, shards.refs(source.id)) if meta.get("split") != "test"]
        subjects = {subject_digest(meta) for meta in metas if labelled(meta)}
        taken = sum(map(_hashed, subjects))
        return cls(False, None if 0 < taken < len(subjects) or not subjects else min(subjects))

    def __call__(self, meta: Mapping[str, Any]) -> bool:
        """Whether probes score this sample."""
        if self.declared:
            return meta.get("split") == "val"
        digest = subject_digest(meta)
        return _hashed(digest) if self.only is None else digest == self.only

    def withholds(self, meta: Mapping[str, Any]) -> bool:
        """Whether labels of this sample are for scoring only: test or validation."""
        return meta.get("split") in ("test", "val") or self(meta)


def with_label(key: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a sample has a label of this key."""
    return lambda meta: (meta.get("labels") or {}).get(key) is not None


def with_mask(meta: Mapping[str, Any]) -> bool:
    """Whether a sample has a label map."""
    return bool(meta.get("mask"))


def subject_digest(meta: Mapping[str, Any]) -> int:
    """64 bits of a sample's subject, or of its key where that is unknown."""
    text = str(meta.get("subject") or meta["key"])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _hashed(digest: int) -> bool:
    return digest % 10 < VALIDATION_TENTHS
