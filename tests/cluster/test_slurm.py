"""`medloom launch --on slurm` on a real SLURM: preemption, time limit, exit status, crash, plain srun."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from medloom.pretrain.tracking import METRICS, read_rows
from medloom.scripts import cli

from tests.cluster.virtual_slurm import VirtualSlurm, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

STEPS = 500
OPTIONS = (f"trainer.steps={STEPS}", "trainer.log_every=10", "trainer.checkpoint_every_steps=40",
           "trainer.timeout_minutes=2")  # fmt: skip
HIGH = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualSlurm]:
    with VirtualSlurm(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def launch(
    slurm: VirtualSlurm, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., str]:  # fmt: skip
    """(out, *overrides, flags) -> id of the job that `medloom launch --submit` made on both nodes."""

    def submit(out: Path, *overrides: str, flags: tuple[str, ...] = ()) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        capfd.readouterr()
        words = [str(recipe(out, *OPTIONS, *overrides)), "--on", "slurm", "--nodes", "2", "--gpus", "0",
                 "--cpus", "1", "--partition", "low", "--env", "MASTER_ADDR=127.0.0.1", "--grace", "30",
                 "--env", "OMP_NUM_THREADS=1", *flags, "--submit"]  # fmt: skip
        status = cli.main(["launch", *words])
        said = capfd.readouterr().out
        assert status == 0, said
        return said.split()[-1]

    return submit


@pytest.fixture(scope="module")
def undisturbed(
    slurm: VirtualSlurm, tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run that nothing happens to: two tasks of srun, as a user types it, without a script of ours."""
    from medloom.data.config import to_yaml

    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(tiny_config(folder / "run", *OPTIONS)))
    said = slurm.run(
        "srun", "--nodes=2", "--ntasks=2", "--export=ALL,MASTER_ADDR=127.0.0.1", sys.executable, "-m",
        "medloom.scripts.cli", "pretrain", str(path), cwd=folder, seconds=300,
    )  # fmt: skip
    assert "report:" in said
    return folder / "run"


def log_of(out: Path, job: str) -> str:
    return (out.with_name(f"{out.name}.launch") / f"{job}.log").read_text()


def progress(slurm: VirtualSlurm, out: Path, step: int) -> None:
    """Wait until a run has logged `step`."""
    slurm.until(
        lambda: any(row["step"] >= step for row in read_rows(out / METRICS)), 180, f"step {step} of {out}"
    )


def test_a_preempted_job_finishes_with_the_curve_of_an_undisturbed_one(
    slurm: VirtualSlurm,
    launch: Callable[..., str],
    undisturbed: Path,
    rows_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    job = launch(out)
    progress(slurm, out, 50)
    other = slurm.submit(*HIGH, cwd=tmp_path)
    slurm.wait_for(other, ("RUNNING", "COMPLETED"))
    assert slurm.wait_for(job, ("PENDING", "RUNNING"))["Restarts"] == "1"
    stopped = read_rows(out / METRICS)[-1]["step"]
    assert 50 <= stopped < STEPS
    facts = slurm.wait_for(job, ENDED, 300, again=True)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log_of(out, job)
    assert rows_of(out) == rows_of(undisturbed)
    assert (out / "encoder.safetensors").read_bytes() == (undisturbed / "encoder.safetensors").read_bytes()
    said = log_of(out, job)  # one log for all starts
    assert f"start 1 of job {job}" in said and f"start 2 of job {job}" in said
    assert "is written, stopping" in said


def test_the_time_limit_ends_in_a_checkpoint_and_a_requeue(
    slurm: VirtualSlurm, launch: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = launch(out, "trainer.steps=100000", "trainer.checkpoint_every_steps=100000", flags=("--time", "1h"))
    progress(slurm, out, 50)
    hours, minutes, _ = slurm.facts(job)["RunTime"].split(":")
    # Two minutes from now: SLURM sends the signal a grace before that, or up to a minute earlier.
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
    slurm.until(lambda: int(slurm.facts(job)["Restarts"]) == 1, 180, "a restart before the limit")
    stopped = read_rows(out / METRICS)[-1]["step"]
    assert "SIGUSR1: checkpoint of step" in log_of(out, job)
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    slurm.wait_for(job, ("RUNNING",), again=True)
    progress(slurm, out, stopped + 20)
    steps = [row["step"] for row in read_rows(out / METRICS)]
    assert steps == [1, *range(10, steps[-1] + 1, 10)]
    slurm.run("scancel", job)
    facts = slurm.wait_for(job, ENDED)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "1")  # it does not come back by itself
    assert f"job {job} was cancelled" in log_of(out, job)


def test_a_configuration_that_is_refused_ends_the_job_with_its_status(
    slurm: VirtualSlurm, launch: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    slurm.run("scontrol", "update", "PartitionName=low", "State=DOWN")
    try:
        job = launch(out)
        out.mkdir()
        (out / "last.ckpt").write_bytes(b"broken")  # something happens while the job waits
    finally:
        slurm.run("scontrol", "update", "PartitionName=low", "State=UP")
    facts = slurm.wait_for(job, ENDED)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "no checkpoint is usable" in log_of(out, job)


def test_a_crashed_rank_starts_the_job_again(
    slurm: VirtualSlurm,
    launch: Callable[..., str],
    undisturbed: Path,
    rows_of: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    job = launch(out)
    progress(slurm, out, 50)
    victim = next(
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "pretrain" in (process.info["cmdline"] or ())
        and (process.info["environ"] or {}).get("SLURM_JOB_ID") == job
        and process.info["environ"].get("SLURM_PROCID") == "1"
    )
    victim.send_signal(signal.SIGKILL)
    slurm.until(lambda: int(slurm.facts(job)["Restarts"]) == 1, 120, "a restart after the crash")
    facts = slurm.wait_for(job, ENDED, 300, again=True)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log_of(out, job)
    assert rows_of(out) == rows_of(undisturbed)


def test_a_shell_of_a_job_is_no_rank(
    slurm: VirtualSlurm, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe(tmp_path / "run", "trainer.steps=2")
    command = f"{sys.executable} -m medloom.scripts.cli pretrain {path}"
    several = slurm.submit("--ntasks=2", "--output=two.log", "--wrap", command, cwd=tmp_path)
    alone = slurm.submit("--ntasks=1", "--output=one.log", "--wrap", command, cwd=tmp_path)
    assert slurm.wait_for(several, ENDED)["ExitCode"] == "2:0"
    assert "write srun before the command" in (tmp_path / "two.log").read_text()
    assert slurm.wait_for(alone, ENDED)["JobState"] == "COMPLETED", (tmp_path / "one.log").read_text()
    assert (tmp_path / "run" / "encoder.json").is_file()


def test_submitit_runs_and_is_requeued(
    slurm: VirtualSlurm, recipe: Callable[..., Path], undisturbed: Path, rows_of: Callable[..., Any],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("submitit", reason="submitit is optional: pip install 'medloom[submitit]'")
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    words = [str(recipe(out, *OPTIONS)), "--on", "submitit", "--nodes", "2", "--gpus", "0", "--cpus", "1",
             "--partition", "low", "--time", "1h", "--env", "MASTER_ADDR=127.0.0.1",
             "--env", "OMP_NUM_THREADS=1", "--submit"]  # fmt: skip
    assert cli.main(["launch", *words]) == 0
    job = capfd.readouterr().out.split()[-1]
    progress(slurm, out, 50)
    slurm.submit(*HIGH, cwd=tmp_path)
    slurm.until(lambda: int(slurm.facts(job)["Restarts"]) == 1, 120, "a requeue after the preemption")
    facts = slurm.wait_for(job, ENDED, 300, again=True)
    assert facts["JobState"] == "COMPLETED"
    assert rows_of(out) == rows_of(undisturbed)
