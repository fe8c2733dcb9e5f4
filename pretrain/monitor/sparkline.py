"""Curves of one line of text: eight heights of a block, values averaged where there are more than columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-:=+*#"


def sparkline(values: Sequence[float | None], width: int, *, blocks: str = BLOCKS) -> str:
    """At most `width` characters, from the lowest to the highest value; a gap is a blank.

    Args:
        values: in order; None and what is not finite are gaps.
        blocks: the characters from low to high.
    """
    columns = _columns(values, width)
    known = [value for value in columns if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(blocks) - 1

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return blocks[round(top * (value - low) / span)] if span > 0 else blocks[top // 2]

    return "".join(map(block, columns))


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    count = min(width, len(values))
    columns: list[float | None] = []
    for column in range(count):
        part = values[column * len(values) // count : (column + 1) * len(values) // count]
        known = [value for value in part if value is not None and math.isfinite(value)]
        columns.append(sum(known) / len(known) if known else None)
    return columns
