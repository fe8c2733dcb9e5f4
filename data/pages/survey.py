"""Which samples the gallery shows: modality x organ, every dataset in turn, evenly spaced within each.

A source of one modality and one organ needs no metadata to be read; of a mixed one at most `READ` samples are
read, evenly spaced, and its counts are scaled and said to be estimates. The same shards give the same choice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

from ..sample import MODALITIES, Organ
from ..shards.manifest import SourceEntry
from ..shards.reader import SampleRef, Shards

READ = 2000  # samples of a mixed source whose metadata is read

_ORGANS = [str(organ) for organ in Organ]


@dataclass(slots=True)
class Cell:
    """One modality of one organ: how many samples there are, and candidates to show, datasets in turn."""

    modality: str
    organ: str
    count: int = 0
    estimated: bool = False
    refs: list[SampleRef] = field(default_factory=list)


def survey(shards: Shards, most: int) -> list[Cell]:
    """The cells in the vocabularies' order, each with at most `most` candidates.

    Raises:
        ShardError: metadata cannot be read.
    """
    cells: dict[tuple[str, str], Cell] = {}
    candidates: dict[tuple[str, str], list[list[SampleRef]]] = defaultdict(list)
    first = 0
    for source in shards.manifest.sources:
        for modality, organ, count, refs in _parts(shards, source, first, most):
            cell = cells.setdefault((modality, organ), Cell(modality, organ))
            cell.count += count
            cell.estimated |= source.count > READ and not _single(source)
            candidates[modality, organ].append(refs)
        first += len(source.shards)
    for place, cell in cells.items():
        turns = (ref for turn in zip_longest(*candidates[place]) for ref in turn if ref is not None)
        cell.refs = [ref for ref, _ in zip(turns, range(most), strict=False)]
    return [cells[place] for place in sorted(cells, key=_rank)]


def in_turn(cells: Sequence[Cell]) -> Iterator[tuple[Cell, SampleRef]]:
    """The first candidate of every cell, then the second of every cell, and so on."""
    for turn in zip_longest(*(cell.refs for cell in cells)):
        yield from ((cell, ref) for cell, ref in zip(cells, turn, strict=True) if ref is not None)


def _parts(
    shards: Shards, source: SourceEntry, first: int, most: int
) -> Iterator[tuple[str, str, int, list[SampleRef]]]:
    """(modality, organ, samples, candidates) of one source, whose first shard has the number `first`."""
    if not source.count:
        return
    if _single(source):
        modality, organ = next(iter(source.modalities)), next(iter(source.organs))
        yield modality, organ, source.count, _located(source, first, _spread(source.count, most))
        return
    found: dict[tuple[str, str], list[SampleRef]] = defaultdict(list)
    read = _located(source, first, _spread(source.count, READ))
    for ref in read:
        meta = shards.meta(ref)
        found[str(meta["modality"]), str(meta["organ"])].append(ref)
    for (modality, organ), refs in found.items():
        count = round(len(refs) * source.count / len(read))
        yield modality, organ, count, [refs[place] for place in _spread(len(refs), most)]


def _single(source: SourceEntry) -> bool:
    """Whether the source has one modality and one organ."""
    return len(source.modalities) == len(source.organs) == 1


def _spread(count: int, most: int) -> list[int]:
    """At most `most` places among `count`, evenly spaced, the middle one first when there is one."""
    share = min(count, most)
    return [(2 * place + 1) * count // (2 * share) for place in range(share)]


def _located(source: SourceEntry, first: int, places: Sequence[int]) -> list[SampleRef]:
    """The samples at these places of the source."""
    ends = list(accumulate(entry.count for entry in source.shards))
    found = []
    for place in places:
        shard = bisect_right(ends, place)
        found.append(SampleRef(first + shard, place - (ends[shard - 1] if shard else 0)))
    return found


def _rank(place: tuple[str, str]) -> tuple[int, int]:
    modality, organ = place
    words = [str(word) for word in MODALITIES]
    return (
        words.index(modality) if modality in words else len(words),
        _ORGANS.index(organ) if organ in _ORGANS else len(_ORGANS),
    )
