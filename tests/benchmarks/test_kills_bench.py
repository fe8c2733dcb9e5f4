"""benchmarks/kills.py at a small size: kills of two ranks change neither order, rows nor weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run the benchmark in a process of its own, as a reader would; returns the JSON that it wrote."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", str(kills), "--seed", str(seed),
               "--work", str(out / "work"), "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    found = json.loads(next(out.glob("*-kills.json")).read_text()) if done.returncode in (0, 1) else {}
    assert done.returncode == 0, f"{found.get('checks')}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return found


def check(found: dict[str, Any], kills: int) -> None:
    assert found["checks"] and all(found["checks"].values())
    assert len(found["lives"]) == kills
    assert any(life["begun"] > life["from"] for life in found["lives"]), "no kill met a run that trained"


@pytest.mark.slow  # two kills are in tests/pretrain/test_kill_resume.py
@pytest.mark.timeout(900)
def test_six_kills(tmp_path: Path) -> None:
    check(run(tmp_path, 6, seed=1), 6)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thirty_kills(tmp_path: Path) -> None:
    found = run(tmp_path, 30, seed=2)
    check(found, 30)
    assert {life["signal"] for life in found["lives"]} == {"SIGKILL", "SIGTERM", "SIGUSR1"}
    assert {life["at"] for life in found["lives"]} >= {"training", "start-up"}
