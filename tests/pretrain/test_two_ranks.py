"""Two gloo processes under torchrun: the same batches, the same loss, one set of files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import to_yaml
from medloom.pretrain.fault_tolerance.checkpoint import LAST
from medloom.pretrain.tracking import METRICS, read_rows

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
from medloom.pretrain.config import load_config
from medloom.pretrain.run import pretrain
pretrain(load_config(sys.argv[1], sys.argv[2:]))
"""


def torchrun(folder: Path, config: Any, *overrides: str) -> subprocess.Popen[str]:
    program, recipe = folder / "program.py", folder / "recipe.yaml"
    program.write_text(PROGRAM)
    recipe.write_text(to_yaml(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
               f"--master-port={port}", str(program), str(recipe), *overrides]  # fmt: skip
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    return said


def test_two_ranks_take_the_steps_of_one_process(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    from medloom.pretrain.run import pretrain

    options = ("trainer.log_every=1", "trainer.steps=3")
    single = read_rows(pretrain(tiny_config(tmp_path / "one", *options)) / METRICS)
    finish(torchrun(tmp_path, tiny_config(tmp_path / "two", *options)))
    both = read_rows(tmp_path / "two" / METRICS)
    assert [row["step"] for row in both] == [1, 2, 3]
    # The first step sees the same weights; later ones differ by the rounding of sums over ranks.
    assert both[0]["loss"] == pytest.approx(single[0]["loss"], rel=1e-5)
    assert both[0]["grad_norm"] == pytest.approx(single[0]["grad_norm"], rel=1e-4)
    assert both[0]["rankme"] == pytest.approx(single[0]["rankme"], rel=1e-3)
    assert both[2]["loss"] == pytest.approx(single[2]["loss"], rel=1e-3)
    assert (tmp_path / "two" / "encoder.json").is_file()


@pytest.mark.slow
def test_an_indivisible_batch_is_refused_on_both_ranks(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "two", "data.batch_size=5")
    said, _ = torchrun(tmp_path, config).communicate(timeout=200)
    assert "data.batch_size 5 does not divide by 2 ranks" in said
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_two_ranks_stop_together_and_resume(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    from medloom.pretrain.run import pretrain

    options = ("trainer.log_every=1", "trainer.steps=300", "trainer.checkpoint_every_steps=1000")
    single = read_rows(pretrain(tiny_config(tmp_path / "one", *options)) / METRICS)
    config = tiny_config(tmp_path / "two", *options)
    process = torchrun(tmp_path, config)
    rows = tmp_path / "two" / METRICS
    deadline = time.monotonic() + 120
    while len(read_rows(rows)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to both ranks
    process.communicate(timeout=100)
    stopped = torch.load(tmp_path / "two" / LAST, weights_only=True)["medloom"]["step"]
    assert 3 <= stopped < 300
    finish(torchrun(tmp_path, config, "resume=true"))
    both = read_rows(rows)
    assert [row["step"] for row in both] == [row["step"] for row in single]
    assert both[10]["loss"] == pytest.approx(single[10]["loss"], rel=1e-2)
