"""nnU-Net v2's raw layout from shards: imagesTr, labelsTr, imagesTs, dataset.json.

Volumes with a label map and not of split `test` are for training. nnU-Net wants labels 0..K without gaps:
other values are renumbered in their order, and dataset.json names them. Each channel is a file of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ShardError
from ..normalise import kind
from ..shards.manifest import SourceEntry
from ..shards.reader import SampleRef, Shards
from .plain import nifti_bytes

SUFFIX = ".nii.gz"


@dataclass(frozen=True, slots=True)
class Plan:
    """What all cases share."""

    channels: tuple[str, ...]  # names
    numbers: dict[int, int]  # mask value -> label of nnU-Net
    names: dict[int, str]  # mask value -> name
    training: int

    def files(
        self, shards: Shards, ref: SampleRef, meta: Mapping[str, Any]
    ) -> list[tuple[str, Callable[[], bytes]]]:
        """(name below the dataset's folder, what makes its bytes) of a case; channels first."""
        place = "Tr" if trains(meta) else "Ts"
        sample = functools.cache(lambda: shards.sample(ref))

        def channel(number: int) -> bytes:
            return nifti_bytes(sample().image[number : number + 1], meta["affine"], meta["spacing"])

        def labels() -> bytes:
            mask = sample().mask
            assert mask is not None
            table = np.zeros(
                max(self.numbers, default=0) + 1, np.uint8 if len(self.names) < 256 else np.uint16
            )
            for value, label in self.numbers.items():
                table[value] = label
            return nifti_bytes(table[mask][None], meta["affine"], meta["spacing"])

        files: list[tuple[str, Callable[[], bytes]]] = [
            (f"images{place}/{meta['key']}_{number:04d}{SUFFIX}", functools.partial(channel, number))
            for number in range(len(self.channels))
        ]
        return files if meta["mask"] is None else [*files, (str(self.mask_name(meta)), labels)]

    def mask_name(self, meta: Mapping[str, Any]) -> str | None:
        """File of a case's label map, if it has one."""
        return f"labels{'Tr' if trains(meta) else 'Ts'}/{meta['key']}{SUFFIX}" if meta["mask"] else None

    def facts(self, source: SourceEntry) -> dict[str, Any]:
        """dataset.json."""
        labels = {"background": 0} | {self.names[value]: label for value, label in self.numbers.items()}
        return {
            "name": source.dataset,
            "licence": source.licence,
            "channel_names": {str(number): name for number, name in enumerate(self.channels)},
            "labels": labels,
            "numTraining": self.training,
            "file_ending": SUFFIX,
        }


def trains(meta: Mapping[str, Any]) -> bool:
    """Whether nnU-Net trains on this case."""
    return meta["mask"] is not None and meta["split"] != "test"


def plan(shards: Shards, refs: Sequence[SampleRef]) -> Plan:
    """Plan the export of these samples; reads their key.json.

    Raises:
        ShardError: several datasets, pictures, or different numbers of channels.
    """
    metas = [shards.meta(ref) for ref in refs]
    datasets = sorted({meta["dataset"] for meta in metas})
    if len(datasets) != 1 or any(meta["ndim"] != 3 for meta in metas):
        raise ShardError(
            f"{shards.root}: layout nnunet holds the volumes of one dataset; name one of "
            f"{', '.join(s.id for s in shards.manifest.sources if s.ndim == 3) or '(there are no volumes)'} "
            "with --sources"
        )
    counts = sorted({int(meta["shape"][0]) for meta in metas})
    if len(counts) != 1:
        raise ShardError(f"{datasets[0]}: cases of {counts} channels; nnU-Net wants the same number in all")
    names = {int(v): str(n) for meta in metas if meta["mask"] for v, n in meta["mask"]["classes"].items()}
    present = {int(value) for meta in metas if meta["mask"] for value in meta["mask"]["present"]}
    names = {value: names.get(value, str(value)) for value in sorted(names.keys() | present) if value}
    if len(set(names.values())) != len(names):
        names = {value: f"{name} {value}" for value, name in names.items()}
    numbers = {value: label for label, value in enumerate(names, 1)}
    # The name of a channel chooses nnU-Net's normalisation: "CT" by the dataset's statistics, else z-scores.
    word = {"hu": "CT", "given": "noNorm"}.get(kind(metas[0]), str(metas[0]["modality"]))
    channels = tuple(
        word if counts[0] == 1 or word in ("CT", "noNorm") else f"{word} {n}" for n in range(counts[0])
    )
    return Plan(channels, numbers, names, sum(trains(meta) for meta in metas))
