"""What the commands print: logging, progress bars, tables, one-line errors. It knows rich, and so do the
frame of `medloom watch` and the table of `medloom runs`.

Results go to stdout, everything else (logs, bars, errors) to stderr, so that output can be piped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int, str], None]

STOPPED = 3  # exit status of a run that was asked to stop early: what follows in a script must not go on


def setup_logging(*, verbose: bool = False) -> None:
    """Log medloom at INFO (DEBUG when verbose) and the libraries at WARNING, to stderr."""
    from rich.logging import RichHandler

    handler = RichHandler(
        console=_console(stderr=True), show_path=False, show_level=verbose, omit_repeated_times=False,
        log_time_format="%H:%M:%S", markup=False, highlighter=None,
    )  # fmt: skip
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("medloom").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.filterwarnings("ignore")  # the libraries' own deprecations are not the user's business


def complain(message: object) -> None:
    """Print one error line to stderr."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]error:[/] {_plain(message)}", highlight=False)


def say(message: object = "") -> None:
    """Print one line of result to stdout."""
    from rich.console import Console

    Console(soft_wrap=True).print(_plain(message), highlight=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a callback `(done, total, what)` that draws one rich bar for each distinct stage.

    The stage is the text before the first "|"; what follows it (loss, rate) is shown beside the bar.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<28}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    with Bar(*columns, console=_console(stderr=True), refresh_per_second=4) as bar:

        def update(done: int, total: int, what: str) -> None:
            stage, _, detail = (part.strip() for part in what.partition("|"))
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, detail=detail)
            bar.update(tasks[stage], completed=done, total=total, detail=detail)

        yield update


def print_table(rows: Sequence[Mapping[str, object]], *, title: str | None = None) -> None:
    """Print rows (equal keys) as a table; numbers are right-aligned."""
    from rich.table import Table

    if not rows:
        return
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    names = list(rows[0])
    for name in names:
        number = all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows)
        table.add_column(
            str(name), justify="right" if number else "left", overflow="fold", no_wrap=name == names[0]
        )
    for row in rows:
        table.add_row(*("" if row.get(name) is None else _plain(row[name]) for name in names))
    _console().print(table)


def show(drawn: Any) -> None:
    """Print what rich draws: a table, a frame."""
    _console().print(drawn)


def size(count: float) -> str:
    """Bytes in the largest fitting unit: `size(2_500_000) == '2.5 MB'`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float | None, *, short: bool = False) -> str:
    """Two units at most: `4 s`, `3 min`, `2 h 05 min`, `3 d 4 h`; one when `short`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if short and whole >= 3600:
        return f"{whole / 3600:.0f} h" if whole < 48 * 3600 else f"{whole / 86400:.0f} d"
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def _console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; 160 columns into a file or a pipe, which has no width to fold to."""
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def _plain(message: object) -> str:
    from rich.markup import escape

    return escape(str(message))
