"""What opening a large folder costs: the manifest, its hash, the reader, the look for every shard.

    python benchmarks/manifest.py [--samples 10000000] [--shards 20000] [--sources 40] [--latency 0.0005]

The shards are sparse files without pixels. `--latency` is added to every look at a file, as a network disk
would (0.5 ms is a good NFS server). Medians over several repeats, in milliseconds, one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medloom.data.shards.manifest import Manifest
from medloom.data.shards.reader import Shards
from order import generated, milliseconds


@contextmanager
def slow(seconds: float) -> Iterator[None]:
    """Every `stat` takes this much longer."""
    real = os.stat

    def late(*arguments: Any, **options: Any) -> os.stat_result:
        time.sleep(seconds)
        return real(*arguments, **options)

    os.stat = late
    try:
        yield
    finally:
        os.stat = real


def megabytes(work: Callable[[], Any]) -> float:
    """What `work` leaves in memory."""
    tracemalloc.start()
    kept = work()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--sources", type=int, default=40)
    parser.add_argument("--latency", type=float, default=0.0005)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifest = generated(given.samples, given.shards, given.sources)
        for entry in manifest.shards:
            with (folder / entry.file).open("wb") as handle:
                handle.truncate(entry.bytes)
        saved, _ = milliseconds(lambda: manifest.save(folder), given.repeats)
        loaded, manifest = milliseconds(lambda: Manifest.load(folder), given.repeats)
        hashed, _ = milliseconds(lambda: manifest.hash, given.repeats)
        opened, shards = milliseconds(lambda: Shards.open(folder), given.repeats)
        looked, _ = milliseconds(lambda: shards.check(manifest.shards), given.repeats)
        with slow(given.latency):
            patient, _ = milliseconds(lambda: shards.check(manifest.shards), 1)
        size = (folder / "manifest.json").stat().st_size / 1e6
        rows = {
            "write manifest.json": f"{saved:.0f} ms, {size:.1f} MB",
            "Manifest.load": f"{loaded:.0f} ms, holds {megabytes(lambda: Manifest.load(folder)):.1f} MB",
            "Manifest.hash": f"{hashed:.0f} ms",
            "Shards.open": f"{opened:.0f} ms",
            "look for every shard": f"{looked:.0f} ms",
            f"the same, {1e3 * given.latency:g} ms a look": f"{patient:.0f} ms",
        }
    print(f"{manifest.count:,} samples, {len(manifest.shards):,} shards, {len(manifest.sources)} sources\n")
    print("| step | cost |\n|---|---|")
    for name, cost in rows.items():
        print(f"| {name} | {cost} |")


if __name__ == "__main__":
    main()
