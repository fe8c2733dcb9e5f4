"""The cross table: which objective runs with which encoder, in 2D and 3D, and why not.

The answer is asked of the code itself (`Objective.refuses` of each family's default network), never kept
beside it: docs/methods.md is this table, and a test compares the two. Building the networks takes a few
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..data.config import CONFIGS
from ..data.errors import ConfigError
from .encoders import ENCODERS, Encoder, build_encoder
from .objectives import OBJECTIVES, Facts


@dataclass(frozen=True)
class Row:
    """One objective."""

    name: str
    facts: Facts
    runs: dict[str, str]  # encoder family -> "2D", "3D" or "2D 3D"; families without a place are left out
    refused: dict[str, str]  # encoder family -> reason
    recipes: list[str]  # shipped ones


def cross_table() -> list[Row]:
    """All objectives against all encoder families that can be built here (optional packages may lack)."""
    encoders: dict[str, Encoder] = {}
    for family in ENCODERS:
        try:
            encoders[family] = build_encoder({"name": family})
        except (ConfigError, ImportError):
            continue
    return [_row(name, encoders) for name in OBJECTIVES]


def markdown(rows: list[Row]) -> str:
    """The table as Markdown: a line an objective, a column a family."""
    families = [f for f in ENCODERS if any(f in row.runs or f in row.refused for row in rows)]
    lines = ["| method | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row.name} | " + " | ".join(row.runs.get(f, "–") for f in families) + " |")
    lines += [
        "",
        "| method | what it is | it predicts | cost of a step | good for | paper |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        f = row.facts
        lines.append(f"| {row.name} | {f.title} | {f.predicts} | {f.cost} | {f.good_for} | {f.paper} |")
    return "\n".join(lines)


def _row(name: str, encoders: dict[str, Encoder]) -> Row:
    kind = OBJECTIVES[name]
    runs: dict[str, str] = {}
    refused: dict[str, str] = {}
    for family, encoder in encoders.items():
        reason = kind.refuses(encoder)
        if reason is None:
            runs[family] = " ".join(f"{n}D" for n in encoder.axes if n in kind.ndims)
        else:
            refused[family] = reason
    recipes = sorted(p.stem for p in CONFIGS.glob("pretrain/*.yaml") if f"-{name}-" in f"-{p.stem}-")
    return Row(name, kind.facts, runs, refused, recipes)
