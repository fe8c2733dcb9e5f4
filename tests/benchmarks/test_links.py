"""The line through all-reduces that `medloom plan` takes its links from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from medloom.pretrain.plan.devices import load_device

from benchmarks.links import SIZES, fitted

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_line_is_found_again(ranks: int) -> None:
    points = [(size, 2 * 40e-6 + 2 * (ranks - 1) / ranks * size / 5e9) for size in SIZES]
    rate, latency = fitted(points, ranks)
    assert (rate, latency) == pytest.approx((5.0, 40.0))


@pytest.mark.slow
def test_two_ranks_print_lines_of_a_device_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "benchmarks.links"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    own = tmp_path / "own.yaml"
    own.write_text(f"memory_gb: 8\nmemory_gb_s: 10\nnetwork_gb_s: 1\n{done.stdout}")
    device = load_device(str(own))
    assert device.link_gb_s > 0 and device.efficiency == 1
