"""The result as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from .targets import Target, targets

HEADS = (
    "peer", "CPU ms", "spread", "x medloom", "samples/s", "memory MB", "first batch s", "cold MB",
    "stored MB", "shards in a batch",
)  # fmt: skip


def table(case: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of a case, one a peer that was measured."""
    base = _median(case["peers"].get("medloom", {}), "cpu_ms")
    rows = []
    for name, peer in case["peers"].items():
        cpu = _median(peer, "cpu_ms")
        if cpu is None:
            continue
        mixing = peer.get("mixing")
        values = [
            name, _number(cpu), _spread(peer), "" if not base else f"{cpu / base:.2f}",
            _number(_median(peer, "samples_per_s")), f"{max(r['memory_mb'] for r in peer['rounds']):.0f}",
            _number(peer.get("start_s")), _number(_mega(peer.get("cold_bytes"))),
            _number(_mega(peer.get("stored_bytes"))),
            "" if not mixing else f"{mixing['distinct']:.1f} of {mixing['shards']:.0f}",
        ]  # fmt: skip
        rows.append(dict(zip(HEADS, values, strict=True)))
    return rows


def missing(case: dict[str, Any]) -> list[str]:
    """One line for each peer that was not measured, or not wholly, with the reason."""
    lines = []
    for name, peer in case["peers"].items():
        if _median(peer, "cpu_ms") is None:
            lines.append(f"{name} was not measured: {peer.get('reason', 'no round was finished')}")
        elif "reason" in peer or "note" in peer:
            lines.append(f"{name} is measured in part: {peer.get('reason') or peer['note']}")
    return lines


def show(result: dict[str, Any]) -> None:
    """Print everything to the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if Console().is_terminal else Console(width=150)
    for case in result["cases"].values():
        console.print(_grid(Table, f"{case['title']}, batch {case['batch']}", table(case)))
        for line in missing(case):
            console.print(line, highlight=False, markup=False)
        console.print()
    limit = {name: _number(value) or "not measured" for name, value in result["limits"].items()}
    console.print(_grid(Table, "limits of the machine", [limit]))
    rows = [_row(target) for target in targets(result)]
    console.print(_grid(Table, f"peers to beat{_scaled(result)}", rows))
    for line in _loaded(result):
        console.print(line, highlight=False)


def _grid(table_class: Any, title: str, rows: list[dict[str, str]]) -> Any:
    grid = table_class(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(value.replace("[", r"\[") for value in row.values()))
    return grid


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """JSON with everything and Markdown for readers, named by date and kind of machine."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date']}-loader-{result['scale']}-{result['host']['cores']}-cores"
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    full = result | {"targets": [_row(target) for target in targets(result)]}
    paths[0].write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text("\n".join(_markdown(result)) + "\n", encoding="utf-8")
    return paths


def _markdown(result: dict[str, Any]) -> Iterator[str]:
    host = result["host"]
    yield f"# Loaders, {result['date']}"
    yield ""
    yield f"`{result['command']}`"
    yield ""
    yield f"{host['cpu']}, {host['cores']} cores, {host['memory_gb']} GB, {host['system']};"
    yield f"{result['workers']} workers, {result['rounds']} interleaved rounds, {result['seconds']} s in all."
    yield from _loaded(result)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"Versions: Python {host['python']}, {versions}."
    yield ""
    limit = ", ".join(f"{n} {_number(v) or 'not measured'}" for n, v in result["limits"].items())
    yield f"Limits: {limit}."
    yield ""
    yield f"## Peers to beat{_scaled(result)}"
    yield ""
    yield from _lines([_row(target) for target in targets(result)])
    for case in result["cases"].values():
        yield ""
        yield f"## {case['title']}"
        yield ""
        size = case["source_bytes"] / 1e6
        yield f"{case['images']} images, batch {case['batch']}, {size:.0f} MB as they came."
        yield ""
        yield from _lines(table(case))
        yield ""
        yield from (f"- {line}" for line in missing(case))
    yield ""
    yield "## How each peer was set"
    yield ""
    peers = [row for case in result["cases"].values() for row in case["peers"].items()]
    settings = {name: peer["settings"] for name, peer in peers if "settings" in peer}
    yield from (f"- {name}: {text}" for name, text in settings.items())


def _scaled(result: dict[str, Any]) -> str:
    return "" if result["scale"] == "full" else f" (goals of the full run; this one is {result['scale']})"


def _loaded(result: dict[str, Any]) -> Iterator[str]:
    """A warning when the machine did something else meanwhile."""
    busiest = max(result["load_before"][0], 0.0)
    if busiest > 0.5:
        yield f"The machine was not idle at the start (load {busiest}): look at ratios and spreads."


def _lines(rows: list[dict[str, str]]) -> Iterator[str]:
    if not rows:
        yield "Nothing."
        return
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield "| " + " | ".join(value.replace("|", "/") for value in row.values()) + " |"


def _row(target: Target) -> dict[str, str]:
    return {
        "target": target.what, "goal": target.goal, "measured": target.measured or "not measured",
        "verdict": target.verdict,
    }  # fmt: skip


def _median(peer: dict[str, Any], name: str) -> float | None:
    values = [row[name] for row in peer.get("rounds", [])]
    return median(values) if values else None


def _spread(peer: dict[str, Any]) -> str:
    values = [row["cpu_ms"] for row in peer["rounds"]]
    return f"{_number(min(values))} - {_number(max(values))}"


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _number(value: float | None) -> str:
    """Three digits, however large."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
