"""The job array that `medloom benchmark --slurm N` writes, on a real SLURM, and the page after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import to_yaml
from medloom.finetune.benchmark.cell import state
from medloom.finetune.benchmark.config import load_benchmark
from medloom.finetune.benchmark.grid import grid
from medloom.scripts import cli

from tests.cluster.virtual_slurm import VirtualSlurm, missing
from tests.finetune.conftest import pictures, workshop  # noqa: F401  fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualSlurm]:
    with VirtualSlurm(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def test_an_array_does_every_cell_and_a_last_job_the_page(
    slurm: VirtualSlurm,
    workshop: Any,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # `medloom` of this environment, as after activating it; the job inherits what the submitting shell has.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    values = {
        "encoders": {"mine": str(workshop.root / "encoder2d")}, "tasks": [str(pictures)],
        "protocols": ["logistic"], "seeds": [0, 1], "out": "board", "root": str(workshop.root),
        "cache": str(workshop.cache), "device": "cpu", "options": {"batch_size": 8, "workers": 0},
    }  # fmt: skip
    (tmp_path / "board.yaml").write_text(to_yaml(values))
    assert cli.main(["benchmark", "board.yaml", "--slurm", "2"]) == 0
    (tmp_path / "grid.sbatch").write_text(capfd.readouterr().out)
    (tmp_path / "board" / "slurm").mkdir(parents=True)

    # What the script says of its use; the nodes here are smaller than what it asks for.
    job = slurm.submit("--cpus-per-task=1", "--mem=0", "grid.sbatch", cwd=tmp_path)
    page = "medloom benchmark --out board --page"
    last = slurm.submit(f"--dependency=afterany:{job}", "--output=page.log", "--wrap", page, cwd=tmp_path)
    assert slurm.wait_for(last, ("COMPLETED", "FAILED"), 400)["ExitCode"] == "0:0"
    logs = [path.read_text() for path in sorted((tmp_path / "board" / "slurm").glob("*.log"))]
    assert len(logs) == 2
    config = load_benchmark(None, values)
    cells = grid(config)
    assert len(cells) >= 4
    assert {state(cell.folder(config.folder)) for cell in cells} == {"done"}, "\n".join(logs)
    assert "scores:" in (tmp_path / "page.log").read_text()
