"""What the catalogue costs: loading all tables, searching, relatives, in a fresh process and in a warm one.

    python -m benchmarks.catalog [--repeats 15]

Fresh: a new Python each time, from the first import of medloom to the answer, beside `import numpy`, which
the catalogue avoids and which tells how busy the machine is. Warm: in one process. One core; milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TIMED = "import time; start = time.perf_counter(); {work}; print(time.perf_counter() - start)"
LOAD = "from medloom.data.catalog import load; catalog = load(own=())"
SEARCH = (
    "from medloom.data.catalog.search import Query, search; search(catalog, Query(text='liver ct', "
    "modality=('ct',), organ=('liver',), task=('segmentation',), licence=('commercial',), access=('open',), "
    "min_images=100))"
)
FRESH = {
    "import numpy (for scale)": "import numpy",
    "load all tables": LOAD,
    "load and search": f"{LOAD}; {SEARCH}",
    "load and clean-for msd-task03-liver": f"{LOAD}; catalog.clean_for('msd-task03-liver')",
}


def fresh(work: str) -> float:
    """Seconds of `work` in a new process."""
    command = [sys.executable, "-c", TIMED.format(work=work)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def command(*argv: str) -> float:
    """Seconds of a whole command, Python's start included."""
    start = time.perf_counter()
    call = [sys.executable, "-m", "medloom.scripts.cli", *argv]
    subprocess.run(call, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def warm() -> dict[str, Callable[[], object]]:
    """Questions in one process, by name."""
    from medloom.data.catalog import load
    from medloom.data.catalog.search import Query, search

    catalog = load(own=())
    every = Query(
        text="liver ct", modality=("ct",), organ=("liver",), task=("segmentation",), licence=("commercial",),
        access=("open",), min_images=100,
    )  # fmt: skip
    return {
        "search, words only": lambda: search(catalog, Query(text="liver ct")),
        "search, all filters": lambda: search(catalog, every),
        "related lits": lambda: catalog.related("lits"),
        "clean-for msd-task03-liver": lambda: catalog.clean_for("msd-task03-liver"),
        "related, all 1,314": lambda: [catalog.related(dataset.id) for dataset in catalog],
    }


def row(name: str, work: Callable[[], float], repeats: int) -> str:
    """One line of the table: median and best of `repeats` times."""
    times = [1e3 * work() for _ in range(repeats)]
    return f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} |"


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print("| what | median | best |\n|---|---|---|")
    for name, work in FRESH.items():
        print(row(f"fresh process: {name}", lambda work=work: fresh(work), repeats))
    for argv in (
        ["catalog", "search", "liver", "ct", "--format", "json"],
        ["catalog", "search", "liver", "ct"],
    ):
        print(row(f"whole command: medloom {' '.join(argv)}", lambda argv=argv: command(*argv), repeats))
    for name, work in warm().items():
        work()
        print(row(f"warm: {name}", lambda work=work: timed(work), repeats))


if __name__ == "__main__":
    main()
