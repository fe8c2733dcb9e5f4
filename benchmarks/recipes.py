"""What the shipped recipes cost: operations of a sample, hours on the GPUs they are written for.

    python -m benchmarks.recipes [NAME ...]

Nothing is computed: a step never reads a value back (tests hold every objective to that), so it runs on
torch's meta device, where tensors have shapes alone, and torch's counter adds up the products, convolutions
and attention of its forward and backward pass. Hours follow from an assumed share of the peak, and are
predictions: what a GPU reaches is `mfu` in the rows of a run. A recomputed forward pass is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from medloom.data.config import CONFIGS, polymorphic
from medloom.pretrain.config import PretrainConfig, load_config
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch
from torch.utils.flop_counter import FlopCounterMode

PEAK = 989e12  # operations a second of an H100 SXM in bfloat16, dense, from its data sheet
SHARE = 0.35  # of the peak that is assumed


@dataclass(frozen=True)
class Cost:
    """One recipe."""

    name: str
    parameters: float  # of the encoder, millions
    gflop: float  # a sample, forward and backward, by 10^9
    samples: float  # of the whole run
    gpus: int

    @property
    def hours(self) -> float:
        """At the assumed share of the peak."""
        return self.samples * self.gflop * 1e9 / (PEAK * SHARE * self.gpus) / 3600

    @property
    def rate(self) -> float:
        """Samples a second and GPU that the loader must give."""
        return self.samples / self.gpus / (self.hours * 3600)


def cost(name: str) -> Cost:
    """Count one step of the recipe `name`."""
    config = load_config(name)
    gpus = config.trainer.num_nodes * (
        config.trainer.devices if isinstance(config.trainer.devices, int) else 1
    )
    encoder = build_encoder(config.encoder)
    chosen = dict(config.objective)
    if "classes" in chosen:
        chosen["classes"] = {"a dataset": ["background", "structure"]}  # shards would tell
    kind, section = polymorphic(chosen, OBJECTIVES, "objective")
    objective = kind(section, encoder)
    encoder.recompute = config.trainer.recompute
    parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
    encoder.to("meta")
    objective.to("meta")
    count = max(2, objective.least_batch)
    with _no_autocast(), FlopCounterMode(display=False) as counter:
        objective.step(_batch(config, encoder.in_channels, count), encoder).loss.backward()
    samples = config.steps * config.data.step_samples
    return Cost(name, parameters, counter.get_total_flops() / count / 1e9, samples, gpus)


def _batch(config: PretrainConfig, channels: int, count: int) -> Batch:
    positions, crop = torch.arange(count), config.data.crop
    made: dict[str, Any] = {
        "image": torch.randn(count, channels, *crop, device="meta"),
        "modality": torch.zeros(count, dtype=torch.int64, device="meta"),
        "spacing": torch.ones(count, config.data.ndim, device="meta"),
        "label": torch.zeros(count, dtype=torch.int64, device="meta"),
        "mask": torch.zeros(count, *crop, dtype=torch.int64, device="meta"),
    }
    return Batch(position=positions.to("meta"), host_position=positions, seed=0, step=5, steps=10, **made)


@contextlib.contextmanager
def _no_autocast() -> Any:
    """The meta device knows no autocast; precision does not change what is counted."""
    before, torch.autocast = torch.autocast, lambda *_, **__: contextlib.nullcontext()  # type: ignore[misc]
    try:
        yield
    finally:
        torch.autocast = before  # type: ignore[misc]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="recipes; default: all base and large ones")
    names = parser.parse_args().names
    if not names:
        names = sorted(
            p.stem for p in CONFIGS.glob("pretrain/*.yaml") if p.stem.startswith(("base", "large"))
        )
    warnings.filterwarnings("ignore")
    print(
        "| recipe | M parameters | GFLOP a sample | GPUs | M samples | hours, predicted | samples/s a GPU |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in names:
        c = cost(name)
        print(f"| {name} | {c.parameters:.0f} | {c.gflop:.0f} | {c.gpus} | {c.samples / 1e6:.1f} | "
              f"{c.hours:.1f} | {c.rate:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
