"""`medloom shards bench`: does the loader keep up with a training step, and if not, what limits it?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ...data.loader.bench import BenchResult, Spread

T = TypeVar("T", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--crop", type=_listed(int), help="96,96,96 or 224,224 (default: what is there)")
    parser.add_argument("--batch", type=int, help="samples a step (default: 8 volumes, 64 images)")
    parser.add_argument("--workers", type=_listed(int), help="loaders to try (default: 1, 2, 4 ... cores)")
    parser.add_argument("--step-ms", type=_listed(float), default=[10.0, 50.0, 200.0], help="training steps")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns 0 whether or not the loader keeps up."""
    from dataclasses import asdict

    from ...data.atomic import write_json
    from ...data.loader.bench import bench
    from ..console import progress_bar

    config = _config(arguments)
    with progress_bar() as progress:
        result = bench(
            config, workers=arguments.workers or _counts(), step_ms=arguments.step_ms,
            seconds=arguments.seconds, repeats=arguments.repeats, progress=progress,
        )  # fmt: skip
    _show(result)
    if arguments.json:
        write_json(arguments.json, asdict(result) | {"limit": result.limit, "prefetch": result.prefetch})
    return 0


def _config(arguments: argparse.Namespace) -> Any:
    from ...data import open_shards
    from ...data.errors import ConfigError
    from ...data.stream.config import StreamConfig

    if min([1, arguments.repeats, *(arguments.workers or [1])]) < 1 or arguments.seconds <= 0:
        raise ConfigError("--workers and --repeats are at least 1, --seconds is above 0")
    if min(arguments.step_ms) <= 0:
        raise ConfigError(f"--step-ms {min(arguments.step_ms):g}: a step takes more than 0 ms")
    there = {source.ndim for source in open_shards(arguments.folder).manifest.sources}
    ndim = len(arguments.crop) if arguments.crop else max(there)
    crop = arguments.crop or ([96, 96, 96] if ndim == 3 else [224, 224])
    batch = arguments.batch or (8 if ndim == 3 else 64)
    return StreamConfig(shards=str(arguments.folder), ndim=ndim, crop=crop, batch_size=batch)


def _counts() -> list[int]:
    """1, 2, 4 ... up to the cores, and the cores."""
    import os

    cores = os.cpu_count() or 1
    return sorted({*(1 << n for n in range(cores.bit_length()) if 1 << n <= cores), cores})


def _show(result: BenchResult) -> None:
    from ..console import print_table, say, size

    s = result.stages
    parts = {"warm": s.crop_ms, "read": s.read_ms, "decode": s.decode_ms, "transport (CPU)": s.transport_ms,
             "cold": s.cold_ms, "read, cold": s.cold_read_ms}  # fmt: skip
    row = {f"{name} ms": "not measured" if value is None else f"{value:.3g}" for name, value in parts.items()}
    print_table([row | {"bytes read": size(s.read_bytes)}], title="one crop, one process")
    say()
    rows = [
        {"workers": r.workers, "crops/s": _spread(r.crops_per_s), "CPU ms a crop": _spread(r.cpu_ms)}
        for r in result.rates
    ]
    print_table(rows, title=f"as fast as they come, batches of {result.batch}: median (lowest - highest)")
    say()
    rows = [
        {"workers": w.workers, "step ms": f"{w.step_ms:g}", "wait ms": _spread(w.wait_ms),
         "keeps up": "yes" if w.keeps_up else "no"} for w in result.waits
    ]  # fmt: skip
    print_table(rows, title="behind a training step")
    say()
    say(result.limit)
    for step in dict.fromkeys(wait.step_ms for wait in result.waits):
        say(_advice(result, step))
    if result.others > 0.1:
        share = f"{100 * result.others:.0f} %"
        say(f"others took {share} of this machine's CPU meanwhile: all rates are lower bounds; run it again")


def _advice(result: BenchResult, step: float) -> str:
    workers = result.workers_for(step)
    if workers is None:
        best = max(rate.crops_per_s.high for rate in result.rates)
        return (
            f"step of {step:g} ms: {1000 * result.batch / step:.0f} crops/s are needed, {best:.0f} were the "
            f"most of {result.cores} cores: smaller crops, data.crops_per_sample or more cores help"
        )
    return f"step of {step:g} ms: data.workers={workers} data.prefetch={result.prefetch}"


def _spread(value: Spread) -> str:
    return f"{value.median:.3g} ({value.low:.3g} - {value.high:.3g})"


def _listed(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        return [kind(word) for word in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"  # type: ignore[attr-defined]
    return parse
