"""One frame of `medloom watch`: a line of state, a bar, facts, curves, alarms."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..pretrain.alarms import number
from ..pretrain.monitor.sparkline import ASCII, BLOCKS, sparkline
from ..pretrain.monitor.status import Status
from .console import duration, size

COLOURS = {
    "running": "green", "starting": "cyan", "finished": "blue", "stopped": "yellow", "requeued": "yellow",
    "stalled": "red", "failed": "red", "lost": "red", "unknown": "yellow",
}  # fmt: skip
CURVES = ("loss", "grad_norm", "lr", "rankme", "feature_std", "samples_per_s", "data_wait")
SPARK = 40  # columns of a curve


def frame(folder: Path, status: Status, *, ascii_only: bool | None = None) -> Any:
    """The frame as something that rich draws.

    Args:
        ascii_only: no block characters; None: as the output's encoding allows.
    """
    from rich.console import Group

    from .console import _console

    if ascii_only is None:
        ascii_only = _console().options.ascii_only
    parts = [_head(folder, status), _bar(status), "", _facts(status)]
    if status.run.rows:
        parts += ["", _curves(status, ASCII if ascii_only else BLOCKS)]
    parts += _alarms(status)
    return Group(*parts)


@contextlib.contextmanager
def screen() -> Iterator[Callable[[Any], None]]:
    """Yield what replaces the frame on the terminal."""
    from rich.live import Live

    from .console import _console

    with Live(console=_console(), auto_refresh=False) as live:
        yield lambda drawn: live.update(drawn, refresh=True)


def _head(folder: Path, status: Status) -> Any:
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(str(folder), style="bold")
    text.append(f"  {status.state}", style=f"bold {COLOURS.get(status.state, 'white')}")
    text.append(f"  {_why(status)}")
    return text


def _why(status: Status) -> str:
    """What the state means here."""
    beat = status.beat
    if status.state == "stalled":
        return f"the process lives, but the last step is {duration(status.step_age)} old"
    if status.state == "lost":
        return f"no sign of life for {duration(status.beat_age)}: killed, or its machine is gone; resume=true"
    if status.state == "failed" and beat is not None:
        return f"{beat.error}, {duration(status.beat_age)} ago"
    if status.state in ("stopped", "requeued"):
        then = "waits in the queue" if status.state == "requeued" else "resume=true continues"
        return f"{duration(status.beat_age)} ago; {then}"
    if status.state == "finished":
        return f"{duration(status.beat_age)} ago" if beat else ""
    if status.state == "unknown":
        return "no heartbeat.json: from an older version, or only copied in part"
    return f"for {duration(max(0.0, beat.time - beat.started))}" if beat else ""


def _bar(status: Status) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = status.steps or max(1, status.step)
    text = f"step {status.step:,} of {total:,} ({100 * status.step / total:.1f} %)"
    if status.seconds_left is not None:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + status.seconds_left))
        text += f" · {duration(status.seconds_left)} left, until {end}"
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=total, completed=min(status.step, total), width=30), Text(text))
    return row


def _facts(status: Status) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, text in _lines(status):
        if text:
            table.add_row(name, Text(text))
    return table


def _lines(status: Status) -> Iterator[tuple[str, str]]:
    run, row = status.run, status.last
    encoder = " ".join(
        str(run.get(f"encoder.{key}")) for key in ("name", "model", "size") if run.get(f"encoder.{key}")
    )
    yield "method", f"{run.method} · {encoder}"
    ranks = f" on {status.beat.ranks} rank{'s' if status.beat.ranks > 1 else ''}" if status.beat else ""
    yield "batch", f"{run.get('data.batch_size')} samples{ranks}"
    yield (
        "rate",
        _joined(
            (status.seconds_a_step, lambda v: f"{v:.3g} s a step"),
            (number(row, "samples_per_s"), lambda v: f"{v:,.0f} samples/s"),
            (number(row, "tokens_per_s"), lambda v: f"{v:,.0f} tokens/s"),
            (number(row, "mfu"), lambda v: f"MFU {100 * v:.0f} %"),
        ),
    )
    yield (
        "time",
        _joined(
            (number(row, "data_wait"), lambda v: f"{100 * v:.1f} % waiting for data"),
            (number(row, "overhead"), lambda v: f"{100 * v:.1f} % diagnostics and probes"),
        ),
    )
    yield "memory", _joined((number(row, "gpu_memory_gb"), lambda v: f"{v:.1f} GiB of the GPU at most"))
    if status.saved_age is not None:
        step = "" if status.saved_step is None else f"step {status.saved_step:,}, "
        yield "checkpoint", f"{step}{duration(status.saved_age)} old, {size(status.saved_bytes or 0)}"
    else:
        yield "checkpoint", "none yet"
    if status.row_age is not None:
        yield "last row", f"step {row['step']:,}, {duration(status.row_age)} old"


def _joined(*parts: tuple[float | None, Callable[[float], str]]) -> str:
    return " · ".join(say(value) for value, say in parts if value is not None and math.isfinite(value))


def _curves(status: Status, blocks: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("curve")
    for head in ("now", "lowest", "highest"):
        table.add_column(head, justify="right")
    table.add_column(f"since step {status.run.rows[0]['step']}", no_wrap=True)
    for key in (*status.run.keys("probe/"), *CURVES):
        values = [number(row, key) for row in status.run.rows if key in row]
        known = [value for value in values if math.isfinite(value)]
        if not known:
            continue
        now = _short(values[-1]) if math.isfinite(values[-1]) else "not finite"
        spark = Text(sparkline(values, SPARK, blocks=blocks), style="cyan")
        table.add_row(Text(key), now, _short(min(known)), _short(max(known)), spark)
    return table


def _short(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.2e}"


def _alarms(status: Status) -> list[Any]:
    from rich.text import Text

    return [Text(f"ALARM {alarm}", style="bold red") for alarm in status.alarms]
