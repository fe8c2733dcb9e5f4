"""What the shipped recipes cost: operations of a sample, hours on the GPUs they are written for.

    python -m benchmarks.recipes [NAME ...]

Operations are counted as `medloom plan` does, on torch's meta device (`pretrain/plan/count.py`). Hours follow
from an assumed share of the peak, and are predictions: what a GPU reaches is `mfu` in the rows of a run. A
recomputed forward pass is counted.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

from medloom.data.config import CONFIGS
from medloom.pretrain.config import load_config
from medloom.pretrain.plan.count import count

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
    (found,) = count(config, precision="bf16-mixed")
    samples = config.steps * config.data.step_samples
    return Cost(name, found.encoder / 1e6, found.operations.sample / 1e9, samples, gpus)


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
