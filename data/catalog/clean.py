"""What may be pretrained on without touching a held-out task, and what the tables cannot tell.

Excluded is every relative, certain or possible. A dataset without a recorded path to the task is `clean` as
far as the tables go; of those, the ones with the task's own modality and organ, and Decathlon tasks from the
same hospital, are listed as `unknown`: the same patients may have been published twice without a word, and
only content can tell (`medloom data curate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError, nearest
from ..sample import Organ
from .graph import Relative
from .records import Basis, Dataset
from .vocabulary import Companion

if TYPE_CHECKING:
    from .catalog import Catalog


@dataclass(frozen=True, slots=True)
class CleanFor:
    """The answer for one task."""

    task: str
    targets: tuple[str, ...]  # dataset ids that the task stands for; never to be pretrained on
    clean: tuple[Dataset, ...]  # no recorded path to a target
    excluded: tuple[Relative, ...]  # certain and possible relatives, surest first
    # Of `clean`: the the same modality and organ as a target, or (Decathlon) hospital; nothing recorded.
    unknown: tuple[Dataset, ...]

    @property
    def limits(self) -> tuple[str, ...]:
        """What this answer cannot know, in sentences."""
        recalled = sum(relative.basis is Basis.RECALLED for relative in self.excluded)
        found = [
            "a relation that nobody recorded: no entry is no proof that two sets share no patient",
            "private sets and own records without `overlaps`",
        ]
        if recalled:
            found.append(f"{recalled} of the {len(self.excluded)} exclusions rest on recalled relations")
        if self.unknown:
            found.append(
                f"{len(self.unknown)} clean sets have the task's modality and organ or hospital: "
                "only content can tell (`medloom data curate`)"
            )
        if not self.excluded:
            found.append("no relation of the task is recorded at all, so nothing could be excluded")
        return tuple(found)

    @property
    def ids(self) -> frozenset[str]:
        """Ids that must not reach pretraining: targets and relatives."""
        return frozenset(self.targets) | {relative.id for relative in self.excluded}


def clean_for(catalog: Catalog, task: str) -> CleanFor:
    """See `Catalog.clean_for`."""
    targets = targets_of(catalog, task)
    nearest_first: dict[str, Relative] = {}
    for target in targets:
        for relative in catalog.related(target):
            known = nearest_first.get(relative.id)
            if relative.id not in targets and (known is None or _rank(relative) < _rank(known)):
                nearest_first[relative.id] = relative
    touched = {*targets, *nearest_first}
    clean = tuple(dataset for dataset in catalog if dataset.id not in touched)
    subjects = [catalog[target] for target in targets]
    houses = {catalog.msd[target].institution for target in targets if target in catalog.msd}
    unknown = tuple(
        dataset
        for dataset in clean
        if any(_alike(dataset, subject) for subject in subjects)
        or (dataset.id in catalog.msd and catalog.msd[dataset.id].institution in houses)
    )
    excluded = tuple(sorted(nearest_first.values(), key=_rank))
    return CleanFor(task, targets, clean, excluded, unknown)


def targets_of(catalog: Catalog, task: str) -> tuple[str, ...]:
    """Dataset ids that a held-out task stands for.

    Raises:
        ConfigError: neither a dataset nor a task record, or a record that names no dataset of the catalogue.
    """
    if task in catalog:
        return (task,)
    from ..config import find_config, read_yaml

    try:
        record = read_yaml(find_config("tasks", task))
    except ConfigError as error:
        near = nearest(task, {dataset.id for dataset in catalog})
        raise ConfigError(f"{task}: neither a dataset of the catalogue nor a task record{near}") from error
    named = [str(record.get("source", {}).get("dataset")), *map(str, record.get("related") or [])]
    targets = tuple(name for name in named if name in catalog)
    if not targets:
        raise ConfigError(
            f"{task}: names no dataset of the catalogue; list the catalogue's ids in the record's `related`"
        )
    return targets


def _rank(relative: Relative) -> tuple[str, int, str]:
    return relative.level, len(relative.path), relative.id


# Regions whose images show these organs as well: an abdominal CT is a liver CT.
_SHOWN: dict[Organ, frozenset[Organ]] = {
    Organ.ABDOMEN: frozenset({
        Organ.LIVER, Organ.GALLBLADDER, Organ.KIDNEY, Organ.ADRENAL, Organ.PANCREAS, Organ.SPLEEN,
        Organ.STOMACH, Organ.COLON, Organ.PELVIS,
    }),
    Organ.CHEST: frozenset({Organ.LUNG, Organ.HEART, Organ.MEDIASTINUM, Organ.ESOPHAGUS}),
    Organ.PELVIS: frozenset({
        Organ.BLADDER, Organ.PROSTATE, Organ.UTERUS, Organ.CERVIX, Organ.OVARY, Organ.COLON,
    }),
    Organ.HEAD_NECK: frozenset({Organ.BRAIN, Organ.EYE, Organ.EAR, Organ.ORAL, Organ.THYROID}),
    Organ.WHOLE_BODY: frozenset(Organ) - {Organ.PHANTOM, Organ.ANIMAL, Organ.CELL, Organ.BLOOD},
    Organ.MULTI_ORGAN: frozenset(Organ) - {Organ.PHANTOM, Organ.ANIMAL},
}  # fmt: skip


def _alike(one: Dataset, other: Dataset) -> bool:
    """Whether two datasets may show the same: modality and organ in common, as far as these are known."""
    modalities = [{m for m in d.modalities if not isinstance(m, Companion)} for d in (one, other)]
    organs = [set(d.organs).union(*(_SHOWN.get(organ, ()) for organ in d.organs)) for d in (one, other)]
    return all(not first or not second or first & second for first, second in (modalities, organs))
