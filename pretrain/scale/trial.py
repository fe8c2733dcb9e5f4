"""The child process of memory.py: takes steps of a size and says what they took.

Standard input: one line of JSON with the run (configuration, device, number of parts of sharded weights),
then one line for each trial: samples of a micro-batch for each shape class. Standard output: one line each,
{"bytes": peak, or null where the device has not so much}.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.config import structured
from ...data.loader.batches import collate
from ...data.stream.stream import Stream
from ..cluster.detect import autocast, precision
from ..config import PretrainConfig, complete
from ..fault_tolerance.bad_steps import BadSteps
from ..fault_tolerance.guard import Guard
from ..module import PretrainModule
from ..probes import on_device
from ..run import build
from .sharding import units

STEPS = 2  # the second meets gradients and moments of the first


class Trial:
    """One rank of a run, without Lightning, folder or other ranks.

    Args:
        config: of the run; completed here.
        device: "cpu" or "cuda:INDEX".
        split: ranks over which fsdp2 splits the weights; 1: it does not.
    """

    def __init__(self, config: PretrainConfig, device: str, split: int) -> None:
        config.trainer.accumulate = 1
        self.config, self.device, self.split = config, torch.device(device), split
        self.data = Stream(config.data)
        encoder, objective, _ = build(config)
        guard = Guard(config.trainer, BadSteps(Path()))
        self.module = PretrainModule(config, encoder, objective, guard).to(self.device)
        self.optimiser = self.module.configure_optimizers()
        self.precision = precision(config.trainer.precision, config.trainer.accelerator)

    def peak(self, sizes: Sequence[int]) -> float | None:
        """Bytes at the peak of steps of `sizes` samples, one for each shape class."""
        try:
            _reset(self.device)
            for kind, size in enumerate(sizes):
                for _ in range(STEPS):
                    self._step(kind, size)
            return _peak(self.device) - self.held_by_others()
        except (torch.OutOfMemoryError, MemoryError):
            return None
        finally:
            self.optimiser.zero_grad()

    def _step(self, kind: int, size: int) -> None:
        """As Lightning orders it: gradients of the step before stay until this one's forward pass is done."""
        several = len(self.data.classes)
        samples = [self.data[position * several + kind] for position in range(size)]
        batch = self.module.prepared(on_device(collate(samples), self.device), 0)
        with autocast(self.precision, self.device.type):
            loss = self.module.objective.step(batch, self.module.encoder).loss
        self.optimiser.zero_grad()
        loss.backward()
        self.module.gradients.clip(self.config.optim.clip)
        self.optimiser.step()
        self.module.objective.after_update(0, self.config.steps, self.module.encoder)

    def held_by_others(self) -> float:
        """Bytes of weights, gradients and moments that other ranks hold; the largest unit stays gathered."""
        if self.split == 1:
            return 0.0
        parameters = list(self.module.parameters())
        own = sum(p.numel() * p.element_size() * (2 if p.requires_grad else 1) for p in parameters)
        moments = [x for state in self.optimiser.state.values() for x in state.values()]
        own += sum(x.numel() * x.element_size() for x in moments if isinstance(x, torch.Tensor))
        sizes = [sum(p.numel() * p.element_size() for p in unit.parameters()) for unit in units(self.module)]
        inside = sum(sizes)
        rest = sum(p.numel() * p.element_size() for p in parameters) - inside
        gathered = 2 * (rest + 2 * max(sizes, default=0))  # with gradients; the next unit is fetched ahead
        return max(0.0, own * (1 - 1 / self.split) - gathered)


def _reset(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def main() -> None:
    """Serve until the other side closes."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    out, sys.stdout = sys.stdout, sys.stderr  # whatever prints must not meet the answers
    config = complete(structured(PretrainConfig, task["config"]))
    trial = Trial(config, task["device"], task["split"])
    for line in sys.stdin:
        out.write(json.dumps({"bytes": trial.peak(json.loads(line))}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
