"""A bad step on one of two ranks: both go back together, and leave out the same step; also sharded."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import to_yaml
from medloom.pretrain.config import load_config
from medloom.pretrain.fault_tolerance.bad_steps import read_record
from medloom.pretrain.fault_tolerance.checkpoint import LAST
from medloom.pretrain.fault_tolerance.replay import replay
from medloom.pretrain.tracking import METRICS, read_rows

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
from medloom.pretrain.config import load_config
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.run import pretrain

real = MAE.step
def step(self, batch, encoder):
    output = real(self, batch, encoder)
    if 22 in batch.position.tolist():  # of rank 1, in the sixth step
        output.loss = output.loss * float("nan")
    return output

MAE.step = step
for recipe in sys.argv[1:]:  # one after the other: starting Python is what takes the time
    pretrain(load_config(recipe))
"""


def on_two_ranks(folder: Path, configs: list[Any]) -> None:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    recipes = []
    for number, config in enumerate(configs):
        recipes.append(folder / f"recipe-{number}.yaml")
        recipes[-1].write_text(to_yaml(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={port}", str(program), *map(str, recipes)]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / LAST, weights_only=True)["state_dict"]


def without_key_bias(name: str, x: torch.Tensor) -> torch.Tensor:
    """A bias of all keys changes no softmax: its gradient is rounding alone, which Adam turns into steps."""
    if not name.endswith("qkv.bias"):
        return x
    query, _, value = x.chunk(3)
    return torch.cat([query, value])


def test_both_ranks_go_back_and_leave_out_the_same_step(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    names = {"back": ("rollback", "auto"), "skip": ("skip", "auto"), "sharded": ("rollback", "fsdp2")}
    on_two_ranks(tmp_path, [
        tiny_config(tmp_path / name, f"trainer.on_nonfinite={policy}", f"trainer.strategy={strategy}")
        for name, (policy, strategy) in names.items()
    ])  # fmt: skip
    back, skip, sharded = (weights(tmp_path / name) for name in names)
    assert all(torch.equal(back[name], skip[name]) for name in back)
    for name in back:
        one, two = (without_key_bias(name, state[name]) for state in (back, sharded))
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4), name
    for name in names:
        run = tmp_path / name
        record = read_record(run / "bad" / "step-6.json")
        assert [(b["rank"], b["positions"]) for b in record.batches] == [(0, [20, 21]), (1, [22, 23])]
        assert (isinstance(record.batches[0]["loss"], float), record.batches[1]["loss"]) == (True, "nan")
        assert "rank 1: the loss is nan" in record.line
        assert [row["step"] for row in read_rows(run / METRICS)] == [1, 3, 6, 9, 12]
        # One process repeats what each of the ranks computed, from the whole weights.
        found = replay(record, run, load_config(run / "config.yaml"))
        assert found.weights_step == 5
        assert found.losses[0][1] == pytest.approx(found.losses[0][0], rel=1e-4)
        assert math.isnan(found.losses[1][0]) and math.isfinite(
            found.losses[1][1]
        )  # nothing is poisoned here
        assert not found.repeats
