"""`trainer.accumulate: auto`: the fewest micro-batches whose steps fit into `trainer.memory_gb`.

Memory is measured, not modelled: a child process takes two real steps (real samples, forward, backward,
clipping, optimiser, teacher) with micro-batches of the size that is asked for. The smallest two sizes give a
line, the line says where the budget lies, and what it proposes is measured again: three to five trials, some
tenths of a minute at the start of a run. On CUDA it is the peak of what was allocated, on a CPU the peak of
the resident memory of the process. A trial is of one rank: for fsdp2 what the other ranks hold is subtracted.
Compiled networks are measured uncompiled, which needs no less.

The global batch, its order and the schedule do not change, only how it is cut. For methods that compare the
images of a batch the cut matters: their micro-batch is what they compare, and the log says so.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pytorch_lightning as pl

from ...data.config import to_dict
from ...data.errors import ConfigError
from ..cluster.detect import Launch, on_gpu
from ..config import PretrainConfig, per_rank_batch
from ..ranks import largest

log = logging.getLogger(__name__)

SHARE = {"cuda": 0.85, "cpu": 0.8}  # of the memory that is there, where no budget is given
HANDED_ON = "MEDLOOM_ACCUMULATE"  # to processes that Lightning starts from this one
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
                  "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID")  # fmt: skip
GIB = 2**30

Measure = Callable[[int], float | None]  # micro-batches a step -> bytes, None where they do not fit at all


def settle_accumulate(config: PretrainConfig, launch: Launch, trainer: pl.Trainer) -> None:
    """Give `trainer.accumulate: auto` its number, the same on all ranks (a collective call then).

    Raises:
        ConfigError: not even the smallest micro-batch fits; the global batch does not divide by the ranks.
    """
    if config.trainer.accumulate != "auto":
        return
    started = launch.launcher == "plain" and "LOCAL_RANK" in os.environ  # by Lightning, from the process
    if started and HANDED_ON in os.environ:  # that has measured
        chosen = int(os.environ[HANDED_ON])
    else:
        chosen = _measured(config, launch, trainer.world_size)
        os.environ[HANDED_ON] = str(chosen)
    if launch.launcher != "plain" and trainer.world_size > 1:
        strategy: Any = trainer.strategy
        start = getattr(strategy, "setup_distributed", None) or strategy._setup_distributed
        start()  # what `fit` would do first; doing it again does nothing
        chosen = int(largest([float(chosen)])[0])
    config.trainer.accumulate = trainer.accumulate_grad_batches = chosen


def _measured(config: PretrainConfig, launch: Launch, world: int) -> int:
    device = device_of(config, launch)
    budget = budget_of(config, device, launch)
    parts = per_rank_batch(config, world)
    with trials(config, parts, device, world) as measure:
        chosen, seen = search(measure, divisors(math.gcd(*parts)), budget, max(parts))
    found = ", ".join(
        f"{parts[0] // number}: {'too much' if size is None else f'{size / GIB:.2f}'}"
        for number, size in sorted(seen.items(), reverse=True)
    )
    log.info(
        "trainer.accumulate=auto: %d, for a budget of %.2f GiB (GiB by samples of a micro-batch: %s)",
        chosen, budget / GIB, found,
    )  # fmt: skip
    return chosen


def search(
    measure: Measure, choices: Sequence[int], budget: float, batch: int
) -> tuple[int, dict[int, float | None]]:
    """The smallest of `choices` whose memory is within `budget`, and all that was measured.

    Args:
        choices: numbers of micro-batches, ascending; memory falls with them.
        batch: samples of a step, of which each micro-batch is a part.

    Raises:
        ConfigError: the largest choice does not fit.
    """
    seen: dict[int, float | None] = {}

    def fits(index: int) -> bool:
        number = choices[index]
        if number not in seen:
            seen[number] = measure(number)
        found = seen[number]
        return found is not None and found <= budget

    good = len(choices) - 1  # fits
    if not fits(good):
        need = seen[choices[good]]
        raise ConfigError(
            f"trainer.accumulate=auto: the smallest micro-batch ({batch // choices[good]} samples) needs "
            f"{'more than there is' if need is None else f'{need / GIB:.2f} GiB'}, the budget is "
            f"{budget / GIB:.2f}: use trainer.recompute=true, trainer.strategy=fsdp2 on several GPUs, a "
            "smaller crop, or raise trainer.memory_gb"
        )
    bad = -1  # does not fit
    while good - bad > 1:
        guess = good - 1 if len(seen) < 2 else _foretold(seen, choices, budget, batch)
        index = min(max(guess, bad + 1), good - 1)
        if fits(index):
            good = index
        else:
            bad = index
    return choices[good], seen


def _foretold(seen: dict[int, float | None], choices: Sequence[int], budget: float, batch: int) -> int:
    """Index of the choice that a line through the two largest measured micro-batches says is the last."""
    known = sorted((batch / number, found) for number, found in seen.items() if found is not None)[-2:]
    if len(known) < 2:
        return 0
    (b0, m0), (b1, m1) = known
    slope = max((m1 - m0) / (b1 - b0), 1e-9)
    most = b0 + (budget - m0) / slope
    return next((i for i, number in enumerate(choices) if batch / number <= most), len(choices) - 1)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def device_of(config: PretrainConfig, launch: Launch) -> str:
    """Where this rank will train: "cpu" or "cuda:INDEX"."""
    if not on_gpu(config.trainer.accelerator):
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return f"cuda:{launch.devices[index] if isinstance(launch.devices, list | tuple) else index}"


def budget_of(config: PretrainConfig, device: str, launch: Launch) -> float:
    """Bytes that a rank may take."""
    if config.trainer.memory_gb is not None:
        return config.trainer.memory_gb * GIB
    if device == "cpu":
        import psutil

        local = launch.devices if isinstance(launch.devices, int) else 1
        return SHARE["cpu"] * psutil.virtual_memory().available / max(1, local)
    import torch

    return SHARE["cuda"] * torch.cuda.get_device_properties(device).total_memory


@contextmanager
def trials(config: PretrainConfig, parts: Sequence[int], device: str, world: int) -> Iterator[Measure]:
    """A child process (trial.py) that measures steps.

    Args:
        parts: samples of a step on this rank, for each shape class.
    """
    env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    split = config.trainer.shard_size or world if config.trainer.strategy == "fsdp2" else 1
    task = {"config": to_dict(config), "device": device, "split": split}
    command = [sys.executable, "-m", "medloom.pretrain.scale.trial"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as said,  # a pipe that nobody reads would stop a child of many warnings
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=env) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def measure(number: int) -> float | None:
            try:
                _say(stdin, [part // number for part in parts])
                answer = stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                if child.wait() == -9:  # the kernel's way to say that memory is out
                    return None
                said.seek(0)
                raise ConfigError(f"trainer.accumulate=auto: the trial failed: {_last_line(said)}")
            return json.loads(answer)["bytes"]

        try:
            _say(stdin, task)
            yield measure
        finally:
            child.kill()


def _say(stream: IO[str], value: Any) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _last_line(stream: IO[str]) -> str:
    lines = [line for line in stream.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
