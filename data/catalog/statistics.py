"""Count the catalogue: by modality, organ, category, task, year, access, terms, basis; and modality by organ.

A dataset with two modalities counts in both, so columns add up to more than the datasets; images are never
added up, since a slide, a volume and a frame are not one unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from .licences import terms
from .records import Dataset

UNKNOWN = "unknown"

_COMMERCIAL: dict[bool | None, list[str]] = {True: ["allowed"], False: ["not allowed"], None: []}

_BY: dict[str, Callable[[Dataset], Iterable[str]]] = {
    "modality": lambda d: d.modalities,
    "organ": lambda d: d.organs,
    "category": lambda d: [d.category] if d.category else [],
    "task": lambda d: d.tasks,
    "year": lambda d: [str(d.year)] if d.year else [],
    "dims": lambda d: d.dims,
    "access": lambda d: [d.access],
    "commercial use": lambda d: _COMMERCIAL[terms(d.licence).commercial],
    "facts": lambda d: [d.basis],
}


def statistics(datasets: Iterable[Dataset]) -> dict[str, Any]:
    """Counts of datasets.

    Returns:
        {"datasets": N, "by": {"modality": {"mri": 460, ..., "unknown": 5}, ...},
         "modality x organ": {"mri": {"brain": 281, ...}, ...}}; most frequent first, years in order.
    """
    datasets = list(datasets)
    counted: dict[str, dict[str, int]] = {}
    for name, values in _BY.items():
        counts = Counter(str(value) for dataset in datasets for value in (list(values(dataset)) or [UNKNOWN]))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if name == "year":
            ordered = sorted(counts.items())
        counted[name] = dict(ordered)
    pairs = Counter((str(m), str(o)) for d in datasets for m in d.modalities for o in d.organs)
    crossed: dict[str, dict[str, int]] = {}
    for (modality, organ), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        crossed.setdefault(modality, {})[organ] = count
    return {"datasets": len(datasets), "by": counted, "modality x organ": crossed}
