"""SIGKILL at random moments, with loader workers running: the rows are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import to_yaml
from medloom.pretrain.tracking import METRICS, read_rows

PROGRAM = """
import sys, time
import torch
torch.set_num_threads(1)
from medloom.pretrain.config import load_config
from medloom.pretrain.run import pretrain

def progress(done, total, what):
    print(done, flush=True)
    time.sleep(0.05)

pretrain(load_config(sys.argv[1], sys.argv[2:]), progress=progress)
"""


def start(config: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config), *overrides], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill_after(process: subprocess.Popen[str], lines: int, delay: float) -> bool:
    """Kill once so many progress lines and then `delay` seconds have passed; False when it ended before."""
    assert process.stdout is not None
    for _ in range(lines):
        if not process.stdout.readline():
            break
    else:
        time.sleep(delay)
        process.kill()
    killed = process.wait() == -signal.SIGKILL
    process.stdout.close()
    return killed


def torment(config: Any, folder: Path, kills: int, seed: int) -> tuple[Path, int]:
    """Run `config`, killing it again and again, then let it finish. Returns (run folder, kills that hit)."""
    rng = random.Random(seed)
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(config))
    hits = 0
    for _ in range(kills):
        process = start(path, "resume=true")
        hits += kill_after(process, rng.randint(1, 6), rng.uniform(0, 0.12))
    process = start(path, "resume=true")
    process.communicate()
    assert process.returncode == 0
    return config.folder, hits


def check(tiny_config: Callable[..., Any], rows_of: Callable[..., Any], tmp_path: Path, kills: int) -> None:
    from medloom.pretrain.run import pretrain

    options = (
        "trainer.steps=40",
        "trainer.log_every=2",
        "trainer.checkpoint_every_steps=3",
        "data.workers=1",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums depend on the number of threads
    try:
        whole = rows_of(pretrain(tiny_config(tmp_path / "whole", *options)))
    finally:
        torch.set_num_threads(threads)
    run, hits = torment(tiny_config(tmp_path / "killed", *options), tmp_path, kills, seed=kills)
    assert hits >= max(1, kills // 2), "the kills came too late to test anything"
    steps = [row["step"] for row in read_rows(run / METRICS)]
    assert steps == sorted(set(steps))
    assert rows_of(run) == whole
    assert (run / "encoder.json").is_file()
    assert not list(run.glob(".partial-*"))


def test_two_kills(tiny_config: Callable[..., Any], rows_of: Callable[..., Any], tmp_path: Path) -> None:
    check(tiny_config, rows_of, tmp_path, kills=2)


@pytest.mark.slow
def test_ten_kills(tiny_config: Callable[..., Any], rows_of: Callable[..., Any], tmp_path: Path) -> None:
    check(tiny_config, rows_of, tmp_path, kills=10)
