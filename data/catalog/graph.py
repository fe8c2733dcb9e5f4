"""Which datasets share cases: the recorded relations followed to their ends.

A relation says how the cases of two datasets lie to each other (a part, a whole, an overlap). Followed along
a path, relations still say that the two ends share cases, or leave it open: a part of LiTS lies in every set
that contains LiTS (certain), another part of that set may or may not be LiTS's (possible). Both levels are
relatives, since a held-out set must not be touched. The walk is a shortest-path search over (dataset, how its
cases lie to those of the start), 3 ms for the largest family; a stored closure would be stale after every own
record.


Two facts cut the possible ones short. Members of an umbrella (MedMNIST, TCGA) are separate sets, so no path
runs from one to another through it; and images of one kind (MR, CT, slides ...) are not among images of
another, so no possible relative has only other kinds than the start. Certain ones stand whatever their kind.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from ..sample import Modality
from .records import Basis, Overlap
from .vocabulary import RelationKind


class Level(StrEnum):
    """How sure it is that two datasets share cases."""

    CERTAIN = "certain"  # follows from the recorded relations, if these are right
    POSSIBLE = "possible"  # connected by a chain that leaves it open


@dataclass(frozen=True, slots=True)
class Relative:
    """A dataset that shares, or may share, cases with another."""

    id: str
    level: Level
    path: tuple[Overlap, ...]  # from the other dataset to this one

    @property
    def basis(self) -> Basis:
        """The weakest basis on the path: recalled when any step is."""
        bases = {step.basis for step in self.path}
        return next(b for b in (Basis.RECALLED, Basis.OWN, Basis.READ) if b in bases)

    @property
    def steps(self) -> str:
        """The path as a chain from the other dataset to this one, in the signs of `SIGNS`."""
        here, chain = self.id, self.id
        for step in reversed(self.path):
            forward = step.b == here  # the step was walked from a to b
            here = step.a if forward else step.b
            sign = _SIGN[_WAYS[step.relation][0 if forward else 1]]
            chain = f"{here} {sign}{'?' * (step.basis is Basis.RECALLED)} {chain}"
        return chain


class _Lie(IntEnum):
    """How the cases of a dataset lie to those of the start."""

    EQUAL = 0
    PART = 1  # inside
    WHOLE = 2  # around
    COMMON = 3  # some in common
    OPEN = 4  # may have some in common


class _Way(IntEnum):
    """One step, seen from where it starts."""

    SAME = 0
    UP = 1  # to a set that holds this one
    DOWN = 2  # to a part of this one
    ACROSS = 3


# (lie before, way of the step) -> lie after: plain set logic, with OPEN where it says nothing.
_AFTER: dict[tuple[_Lie, _Way], _Lie] = {
    (_Lie.EQUAL, _Way.UP): _Lie.WHOLE,
    (_Lie.EQUAL, _Way.DOWN): _Lie.PART,
    (_Lie.EQUAL, _Way.ACROSS): _Lie.COMMON,
    (_Lie.PART, _Way.UP): _Lie.COMMON,
    (_Lie.PART, _Way.DOWN): _Lie.PART,
    (_Lie.PART, _Way.ACROSS): _Lie.COMMON,
    (_Lie.WHOLE, _Way.UP): _Lie.WHOLE,
    (_Lie.COMMON, _Way.UP): _Lie.COMMON,
}

_WAYS: dict[RelationKind, tuple[_Way, _Way]] = {  # seen from a, seen from b
    RelationKind.CONTAINS: (_Way.DOWN, _Way.UP),
    RelationKind.DERIVED_FROM: (_Way.UP, _Way.DOWN),
    RelationKind.MEMBER_OF: (_Way.UP, _Way.DOWN),
    RelationKind.SHARES_CASES: (_Way.ACROSS, _Way.ACROSS),
    RelationKind.SAME_AS: (_Way.SAME, _Way.SAME),
}

# Modalities whose images may turn up among each other's: a functional MR study ships its T1, a PET/CT its CT.
_KINDS: tuple[frozenset[Modality], ...] = (
    frozenset({Modality.MRI, Modality.FMRI, Modality.DMRI}),
    frozenset({Modality.CT, Modality.CBCT}),
    frozenset({Modality.PET, Modality.SPECT}),
    frozenset(
        {Modality.XRAY, Modality.MAMMOGRAPHY, Modality.DBT, Modality.DSA, Modality.FLUOROSCOPY, Modality.CBCT}
    ),
    frozenset({Modality.HISTOPATHOLOGY, Modality.CYTOLOGY, Modality.MICROSCOPY, Modality.EM}),
    frozenset({
        Modality.FUNDUS, Modality.SLO, Modality.FLUORESCEIN_ANGIOGRAPHY, Modality.SLIT_LAMP, Modality.OCT,
        Modality.OCTA,
    }),
    frozenset({
        Modality.PHOTOGRAPHY, Modality.DERMOSCOPY, Modality.ENDOSCOPY, Modality.COLPOSCOPY, Modality.INFRARED,
        Modality.SLIT_LAMP,
    }),
    frozenset({Modality.ULTRASOUND}),
)  # fmt: skip


def kinds(modalities: Iterable[str]) -> frozenset[int] | None:
    """Numbers of the kinds of image among these modalities; None: not known, or of none of the kinds."""
    present = set(modalities)
    found = frozenset(number for number, members in enumerate(_KINDS) if present & members)
    return None if not found or Modality.OTHER in present else found


_SIGN = {_Way.SAME: "=", _Way.UP: "<", _Way.DOWN: ">", _Way.ACROSS: "~"}
SIGNS = "= the same cases   < is inside   > holds   ~ shares some   ? this step was recalled, not re-read"

Edges = Mapping[str, list[tuple[str, _Way, Overlap]]]


def edges(overlaps: Iterable[Overlap]) -> Edges:
    """Steps that lead from each dataset."""
    found: dict[str, list[tuple[str, _Way, Overlap]]] = defaultdict(list)
    for overlap in overlaps:
        from_a, from_b = _WAYS[overlap.relation]
        found[overlap.a].append((overlap.b, from_a, overlap))
        found[overlap.b].append((overlap.a, from_b, overlap))
    return dict(found)


def relatives(start: str, leading: Edges, apart: Callable[[str], bool]) -> list[Relative]:
    """All datasets that share or may share cases with `start`: certain ones first, then by length of path.

    Of several paths the surest is kept, then the shortest, then the one with the fewest recalled steps.

    Args:
        apart: whether a dataset has only images of other kinds than the start (see `kinds`).
    """
    best: dict[str, tuple[int, int, int]] = {}
    paths: dict[str, tuple[Overlap, ...]] = {}
    done: set[tuple[str, _Lie, bool]] = set()
    queue: list[tuple[int, int, int, str, _Lie, bool, tuple[Overlap, ...]]] = []
    number = 0  # breaks ties in the order of the table, before overlaps would be compared
    heapq.heappush(queue, (0, 0, number, start, _Lie.EQUAL, False, ()))
    while queue:
        length, recalled, _, here, lie, joined, path = heapq.heappop(queue)
        if (here, lie, joined) in done:
            continue
        done.add((here, lie, joined))
        rank = (int(lie is _Lie.OPEN), length, recalled)
        if here != start and rank < best.get(here, (2, 0, 0)):
            best[here], paths[here] = rank, path
        for there, way, overlap in leading.get(here, ()):
            member = overlap.relation is RelationKind.MEMBER_OF
            if member and way is _Way.DOWN and (joined or lie is _Lie.OPEN):
                continue
            after = lie if way is _Way.SAME else _AFTER.get((lie, way), _Lie.OPEN)
            if after is _Lie.OPEN and apart(there):
                continue
            number += 1
            more = recalled + (overlap.basis is Basis.RECALLED)
            up = member and way is _Way.UP
            heapq.heappush(queue, (length + 1, more, number, there, after, up, (*path, overlap)))
    ordered = sorted(best, key=lambda name: (best[name], name))
    return [
        Relative(name, Level.POSSIBLE if best[name][0] else Level.CERTAIN, paths[name]) for name in ordered
    ]
