"""From what was measured to decisions: which image goes, by which rule, with which numbers.

Of images that show the same one is kept: a held-out one always; else the one with a mask or labels, then the
largest, then the first in the collection. An image goes only when it is itself alike to one that stays:
copies of copies do not pull each other down a chain.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .copies import Pairs, Tell, exact, near
from .curation import DROP
from .findings import Finding, Settings
from .rules import judge
from .table import Table


def decide(table: Table, settings: Settings, tell: Tell) -> list[Finding]:
    """All findings about the images of a table, in its order."""
    found = list(judge(table, settings.thresholds))
    gone = {f.image for f in found if settings.actions[f.rule] == DROP}
    blank = {f.image for f in found if f.rule == "blank"}
    rank = ranks(table)
    first = exact(table, rank)
    held = table.held_out
    usable = np.ones(len(table), bool)
    usable[sorted(image for image in blank if image is not None)] = False
    for image in np.flatnonzero(first != np.arange(len(table))):
        one = int(first[image])
        usable[image] = False
        if table.rows["record"][one] == table.rows["record"][image]:
            continue  # equal frames of one file
        rule = "held_out_copy" if held[one] and not held[image] else "copy"
        found.append(Finding(rule, int(table.rows["record"][image]), int(image), {}, one))
    usable &= ~np.isin(np.arange(len(table)), [image for image in gone if image is not None])
    pairs = near(table, usable, rank, settings.thresholds, tell)
    found += _chosen(table, pairs, rank, settings)
    return sorted(found, key=lambda finding: (finding.record, finding.image or 0, finding.rule))


def ranks(table: Table) -> np.ndarray:
    """Who is kept of equal images: the one of lowest rank, [N]."""
    known = [
        2 if record.mask is not None else 1 if record.labels or record.shapes else 0
        for _, record in table.records
    ]
    keys = (-table.rows["pixels"], -np.array(known, int)[table.rows["record"]], ~table.held_out)
    order = np.lexsort(keys)  # stable: ties stay in the collection's order
    found = np.empty(len(table), np.int64)
    found[order] = np.arange(len(table))
    return found


def _chosen(table: Table, pairs: Pairs, rank: np.ndarray, settings: Settings) -> Iterator[Finding]:
    """One finding for each image that is alike to a kept one of better rank."""
    swap = rank[pairs.one] < rank[pairs.other]
    worse, better = np.where(swap, pairs.other, pairs.one), np.where(swap, pairs.one, pairs.other)
    held = table.held_out
    rules = np.where(held[better] & ~held[worse], "held_out_near", pairs.kind)
    drops = np.array([settings.actions[str(rule)] == DROP for rule in rules], bool) & ~held[worse]
    dropped: set[int] = set()
    told: set[int] = set()
    # By the rank of the worse one; of its partners held-out ones first, then those that decide.
    for n in np.lexsort((better, -pairs.score, ~drops, ~held[better], rank[worse])):
        image, one, kind = int(worse[n]), int(better[n]), str(pairs.kind[n])
        if one in dropped or image in told:
            continue
        told.add(image)
        if drops[n]:
            dropped.add(image)
        numbers: dict[str, float | str] = {
            "score": round(float(pairs.score[n]), 3),
            "threshold": _limit(table, image, kind, settings),
        }
        if str(pairs.turn[n]) != "as it is":
            numbers["turn"] = str(pairs.turn[n])
        yield Finding(str(rules[n]), int(table.rows["record"][image]), image, numbers, one)


def _limit(table: Table, image: int, kind: str, settings: Settings) -> float:
    limits = settings.thresholds
    if kind == "turned":
        return limits.turned
    return limits.near_3d if table.rows["ndim"][image] == 3 and kind == "near" else limits.near_2d
