"""Who stands where: ranks of the encoders within a protocol, over all tasks, as the Decathlon ranks.

Cells of the ranking are task x structure x metric on per-case values (ranking.py). A missing, failed or
leaked score ranks last: an encoder that saw the test data has no result on that task. Encoders are compared
within a protocol, a share of the labels and 2D or 3D; `scratch` stands beside every protocol, `random` beside
the frozen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..metrics import info
from ..ranking import Cell as RankCell
from ..ranking import Rank, rank_methods
from .results import Entry, Results, case_metrics, case_values, tasks_of


@dataclass(slots=True)
class Standing:
    """The leaderboard of one protocol and share of the labels, over 2D or over 3D tasks."""

    protocol: str
    fraction: float
    ndim: int
    entries: dict[tuple[str, str], Entry]  # (task, encoder)
    tasks: list[str]
    cells: list[RankCell]
    ranks: list[Rank] = field(default_factory=list)  # best first; empty with a single encoder

    @property
    def detail(self) -> str:
        """Share of the labels and dimensions, in words."""
        return f"{100 * self.fraction:g} % of the labels, {self.ndim}D"

    @property
    def encoders(self) -> list[str]:
        """Names, best first."""
        ranked = [rank.method for rank in self.ranks]
        return [*ranked, *dict.fromkeys(e for _, e in self.entries if e not in ranked)]


def standings(results: Results) -> list[Standing]:
    """One for each protocol, share and number of dimensions with a score, in the order of the grid.

    An encoder that takes 2D images has no place among those of 3D tasks, and the other way round; one that
    takes both stands in both.
    """
    every = list(results.entries.values())
    probed = [entry for entry in every if entry.arm != "scratch"] or every
    keys = dict.fromkeys((entry.protocol, entry.fraction, entry.ndim) for entry in probed)
    return [_standing(every, *key) for key in keys]


def _standing(every: Sequence[Entry], protocol: str, fraction: float, ndim: int) -> Standing:
    same = [entry for entry in every if (entry.fraction, entry.ndim) == (fraction, ndim)]
    tasks = tasks_of(entry for entry in same if entry.protocol == protocol)
    entries = {
        (entry.task, entry.encoder): entry
        for entry in same
        if entry.task in tasks and (entry.protocol == protocol or entry.arm == "scratch")
    }
    encoders = list(dict.fromkeys(encoder for _, encoder in entries))
    cells = [cell for task in tasks for cell in _rank_cells(task, entries, encoders)]
    ranks = rank_methods(cells) if cells and len(encoders) > 1 else []
    return Standing(protocol, fraction, ndim, entries, tasks, cells, ranks)


def _rank_cells(
    task: str, entries: Mapping[tuple[str, str], Entry], encoders: Sequence[str]
) -> list[RankCell]:
    present = [entry for (name, _), entry in entries.items() if name == task]
    cells = []
    for metric, structure in case_metrics(present[0]):
        values = {entry.encoder: case_values(entry, metric, structure) for entry in present}
        # Every encoder scores the same cases; one that was evaluated on others cannot be compared.
        places = next(iter(values.values())).keys()
        rows: dict[str, np.ndarray | None] = dict.fromkeys(encoders)
        for entry in present:
            found = values[entry.encoder]
            if entry.leakage != "leaked" and found.keys() == places:
                rows[entry.encoder] = np.array([found[place] for place in places])
        patients = [patient for _, patient in places]
        better = info(metric).higher_is_better
        cells.append(RankCell(task, structure, metric, better, rows, patients))
    return cells
