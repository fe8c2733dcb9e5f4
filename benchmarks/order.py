"""What the order costs at scale: from a generated manifest to the first positions, and far into a run.

    python benchmarks/order.py [--samples 10000000] [--shards 20000] [--sources 40]

Medians over several repeats, in milliseconds, one core.
`far` is position 10^9 in an order that has located nothing before: the cost must not grow with the position.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from medloom.data.shards.manifest import Manifest, ShardEntry, SourceEntry
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.order import Order, SourceSize
from medloom.data.stream.steps import StepPlan

MODES = {"steps, alpha 0.5": {"alpha": 0.5}, "cover, alpha 0.5": {"alpha": 0.5, "epoch": "cover"},
         "strict": {"alpha": 1.0, "epoch": "strict"}, "steps, window 8": {"window": 8}}  # fmt: skip


def generated(samples: int, shards: int, sources: int) -> Manifest:
    """A manifest of uneven sources and shards: sizes of sources are log-normal, as collections are."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.5, sources)
    numbers = np.maximum(1, np.round(share / share.sum() * shards)).astype(int)
    each, entries = samples // numbers.sum(), []
    for number, count in enumerate(numbers.tolist()):
        name = f"source_{number:02d}"
        sizes = rng.integers(each // 2, each + each // 2, count).tolist()
        tars = tuple(
            ShardEntry(f"{name}-3d-{i:05d}.tar", n, 400_000 * n, f"{rng.integers(2**62):064x}")
            for i, n in enumerate(sizes)
        )
        entries.append(SourceEntry(id=f"{name}-3d", dataset=name, ndim=3, count=sum(sizes), licence="CC0-1.0",
                                   shards=tars))  # fmt: skip
    return Manifest(name="generated", sources=tuple(entries))


def milliseconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median time of `work`, and its last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--sources", type=int, default=40)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generated(given.samples, given.shards, given.sources).save(Path(folder))
        opened, manifest = milliseconds(lambda: Manifest.load(folder), given.repeats)
    hashed, digest = milliseconds(lambda: manifest.hash, given.repeats)
    count = sum(source.count for source in manifest.sources)
    print(f"{count:,} samples in {len(manifest.shards):,} shards of {len(manifest.sources)} sources\n")
    print(f"| open the manifest | {opened:.0f} ms |\n| hash it (at a checkpoint) | {hashed:.0f} ms |\n")
    print(
        "| order | construct | first batch | far (10^9) | again, warm | open to first batch | fingerprint |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, mode in MODES.items():
        print(row(name, mode, manifest, opened, given))
    plan = StepPlan.of(StreamConfig(batch_size=given.batch))
    stepped, _ = milliseconds(lambda: plan.positions(10**7), given.repeats)
    state = {"order": "0" * 16, "manifest": digest[:16], "seed": 0, "alpha": 0.5, "consumed": 10**10}
    print(f"\npositions of a step {stepped:.3f} ms; state {len(json.dumps(state | {'step': 10**8}))} bytes")


def row(name: str, mode: dict[str, Any], manifest: Manifest, opened: float, given: argparse.Namespace) -> str:
    """One line of the table."""

    def construct() -> Order:
        sizes = [SourceSize(s.id, tuple(shard.count for shard in s.shards)) for s in manifest.sources]
        return Order(sizes, seed=0, **mode)

    def fresh(first: int) -> float:
        """Milliseconds to locate a batch in an order that has located nothing."""
        times = []
        for _ in range(given.repeats):
            order = construct()
            times.append(milliseconds(lambda o=order: o.locate(range(first, first + given.batch)), 1)[0])
        return statistics.median(times)

    built, order = milliseconds(construct, given.repeats)
    first, far = fresh(0), fresh(10**9)
    order.locate(range(given.batch))
    warm, _ = milliseconds(lambda: order.locate(range(given.batch, 2 * given.batch)), given.repeats)
    named, _ = milliseconds(lambda: order.fingerprint, given.repeats)
    cells = [built, first, far, warm, opened + built + first, named]
    return f"| {name} | " + " | ".join(f"{value:.1f} ms" for value in cells) + " |"


if __name__ == "__main__":
    main()
