"""Who stands where: ranks of the encoders within a protocol, over all tasks, as the Decathlon ranks.

Cells of the ranking are task x structure x metric on per-case values (ranking.py). A missing, failed or
leaked score ranks last: an encoder that saw the test data has no result on that task. Encoders are compared
within a protocol and a share of the labels; `scratch` stands beside every protocol, `random` beside the
frozen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ranking import Cell as RankCell
from ..ranking import Rank, rank_methods
from ..verdict import info
from .results import Entry, Results, case_metrics, case_values, tasks_of


@dataclass(slots=True)
class Standing:
    """The leaderboard of one protocol and share of the labels."""

    protocol: str
    fraction: float
    entries: dict[tuple[str, str], Entry]  # (task, encoder)
    tasks: list[str]
    cells: list[RankCell]
    ranks: list[Rank] = field(default_factory=list)  # best first; empty with a single encoder

    @property
    def encoders(self) -> list[str]:
        """Names, best first."""
        ranked = [rank.method for rank in self.ranks]
        return [*ranked, *dict.fromkeys(e for _, e in self.entries if e not in ranked)]


def standings(results: Results) -> list[Standing]:
    """One for each protocol and share that has scores of an encoder, in the order of the grid."""
    keys = dict.fromkeys(
        (entry.protocol, entry.fraction) for entry in results.entries.values() if entry.arm != "scratch"
    )
    keys = keys or dict.fromkeys((entry.protocol, entry.fraction) for entry in results.entries.values())
    return [_standing(results, *key) for key in keys]


def _standing(results: Results, protocol: str, fraction: float) -> Standing:
    entries = {
        (entry.task, entry.encoder): entry
        for entry in results.entries.values()
        if entry.fraction == fraction and (entry.protocol == protocol or entry.arm == "scratch")
    }
    tasks = tasks_of(entries.values())
    encoders = list(dict.fromkeys(encoder for _, encoder in entries))
    cells = [cell for task in tasks for cell in _rank_cells(task, entries, encoders)]
    ranks = rank_methods(cells) if cells and len(encoders) > 1 else []
    return Standing(protocol, fraction, entries, tasks, cells, ranks)


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
