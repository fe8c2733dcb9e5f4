"""Whole runs on two ranks under torchrun, sharded and plain, against one process: rows, weights, resumes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import to_dict, to_yaml
from medloom.data.errors import ConfigError
from medloom.pretrain.fault_tolerance.checkpoint import LAST
from medloom.pretrain.tracking import METRICS, read_rows
from safetensors.torch import load_file

PROGRAM = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from medloom.pretrain.config import load_config
from medloom.pretrain.run import pretrain

for line in open(sys.argv[1]):
    stop, recipe, *overrides = line.split()
    def progress(done, total, what):
        if done == int(stop):
            os.kill(os.getpid(), signal.SIGTERM)
    pretrain(load_config(recipe, overrides), progress=progress)
"""

MOCO = {"name": "mocov3", "hidden_dim": 32, "out_dim": 16,
        "crops": [{"name": "global", "count": 2, "size": [16, 16]}]}  # fmt: skip
NEVER = -1


@dataclass(frozen=True)
class Job:
    """A run, or a segment of one."""

    config: Any
    overrides: tuple[str, ...] = ()
    stop: int = NEVER  # step after which rank 0 is asked to stop


def torchrun(folder: Path, *jobs: Job, ranks: int = 2) -> None:
    """Jobs one after the other in the same processes: starting Python and torch is what takes the time."""
    program, listed = folder / "program.py", folder / "jobs.txt"
    program.write_text(PROGRAM)
    lines = []
    for number, job in enumerate(jobs):
        recipe = folder / f"recipe-{number}.yaml"
        recipe.write_text(to_yaml(job.config))
        lines.append(" ".join([str(job.stop), str(recipe), *job.overrides]))
    listed.write_text("\n".join(lines) + "\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}",
               "--master-addr=127.0.0.1", f"--master-port={port}", str(program), str(listed)]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-20000:]


def alone(job: Job) -> Path:
    """The job in this process."""
    from medloom.data.config import structured
    from medloom.pretrain.config import PretrainConfig, complete
    from medloom.pretrain.run import pretrain

    config = complete(structured(PretrainConfig, to_dict(job.config), list(job.overrides)))

    def progress(done: int, total: int, what: str) -> None:
        if done == job.stop:
            os.kill(os.getpid(), signal.SIGTERM)

    return pretrain(config, progress=progress)


def check_rows(run: Path, whole: Path, rel: float) -> None:
    """The rows of both are the same steps, samples and rates, and about the same numbers."""
    mine, theirs = read_rows(run / METRICS), read_rows(whole / METRICS)
    exact = ("step", "samples", "lr")
    assert [[row[key] for key in exact] for row in mine] == [[row[key] for key in exact] for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * rel), a["step"]


def check_encoders(run: Path, whole: Path, most: float) -> None:
    mine, theirs = (load_file(folder / "encoder.safetensors") for folder in (run, whole))
    assert mine.keys() == theirs.keys()
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) < most


def test_a_sharded_run_is_a_run(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    """Rows, probes, panels, checkpoint and artefact, beside one process and DDP."""
    options = ("trainer.steps=4", "trainer.log_every=1", "panels.every_steps=2", "probe.every_steps=4")
    split = tiny_config(tmp_path / "fsdp2", *options, "trainer.strategy=fsdp2")
    torchrun(tmp_path, Job(split), Job(tiny_config(tmp_path / "ddp", *options)))
    one = alone(Job(tiny_config(tmp_path / "one", *options)))
    for kind in ("fsdp2", "ddp"):
        check_rows(tmp_path / kind, one, rel=1e-4)
        check_encoders(tmp_path / kind, one, most=1e-4)
    probes = [{k: v for k, v in read_rows(run / METRICS)[-1].items() if k.startswith("probe/")}
              for run in (tmp_path / "fsdp2", one)]  # fmt: skip
    assert probes[0] and probes[0] == pytest.approx(probes[1], abs=0.05)
    assert {path.name for path in (tmp_path / "fsdp2" / "panels").iterdir()} == {
        path.name for path in (one / "panels").iterdir()
    }
    check_layout(tmp_path / "fsdp2" / LAST, one / LAST)


def check_layout(mine: Path, theirs: Path) -> None:
    """A sharded run writes whole tensors where a plain one does: either can read the other's."""
    a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (mine, theirs))
    assert {k: v.shape for k, v in a["state_dict"].items()} == {
        k: v.shape for k, v in b["state_dict"].items()
    }
    (left,), (right,) = a["optimizer_states"], b["optimizer_states"]
    assert [group["params"] for group in left["param_groups"]] == [
        group["params"] for group in right["param_groups"]
    ]
    for number, moments in right["state"].items():
        for name, x in moments.items():
            torch.testing.assert_close(left["state"][number][name], x, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["fsdp2-ddp-one", "one-fsdp2-ddp"])
def test_segments_of_any_kind_and_number_of_ranks_make_one_run(
    tiny_config: Callable[..., Any], tmp_path: Path, order: str
) -> None:
    """Teacher and batch norms included; the third number of ranks does not divide the weights."""
    options = ("data.batch_size=12", "trainer.steps=12", "trainer.log_every=1", "optim.base_lr=0.01",
               "trainer.grace_seconds=0.1")  # fmt: skip
    whole, config = (tiny_config(tmp_path / name, *options) for name in ("whole", "parts"))
    whole.objective = config.objective = MOCO
    whole = alone(Job(whole))
    for number, kind in enumerate(order.split("-")):
        stop = (3, 7, NEVER)[number]
        if kind == "one":
            alone(Job(config, ("resume=true",), stop))
        else:
            overrides = ("resume=true", f"trainer.strategy={kind}")
            torchrun(tmp_path, Job(config, overrides, stop), ranks=3 if kind == "fsdp2" else 2)
        steps = [row["step"] for row in read_rows(tmp_path / "parts" / METRICS)]
        assert steps == list(range(1, steps[-1] + 1))
        assert (steps[-1] == 12) == (stop == NEVER), "the segment did not stop where it should"
    check_rows(tmp_path / "parts", whole, rel=1e-3)
    check_encoders(tmp_path / "parts", whole, most=2e-3)


@pytest.mark.slow
def test_checkpoints_in_parts_are_read_by_all(
    tiny_config: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Written by two sharded ranks, read by one process, and by two again; a damaged one is passed over."""
    options = ("data.batch_size=12", "trainer.steps=8", "trainer.log_every=1", "trainer.grace_seconds=0.1",
               "trainer.checkpoint_every_steps=2")  # fmt: skip
    split = ("resume=true", "trainer.strategy=fsdp2", "trainer.checkpoint_split=true")
    whole, config = (tiny_config(tmp_path / name, *options) for name in ("whole", "parts"))
    whole = alone(Job(whole))
    parts = tmp_path / "parts"
    torchrun(tmp_path, Job(config, split, 3), Job(config, split, 5))
    assert not (parts / LAST).exists()
    folders = sorted(path.name for path in (parts / "split").iterdir())
    assert folders == ["step-4", "step-5"]
    for data in (parts / "split" / "step-5").glob("__1_*"):
        broken = bytearray(data.read_bytes())
        broken[len(broken) // 2] ^= 1
        data.write_bytes(broken)
    alone(Job(config, ("resume=true",), 6))
    assert "the SHA-256 of __1_0.distcp is wrong; trying the one before" in caplog.text
    assert torch.load(parts / LAST, weights_only=True)["medloom"]["step"] == 6
    torchrun(tmp_path, Job(config, split, 7), Job(config, split))
    check_rows(parts, whole, rel=1e-3)
    check_encoders(parts, whole, most=1e-3)
    check_layout(parts / LAST, whole / LAST)


@pytest.mark.slow
def test_copies_of_split_weights_accumulate_and_recompute(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    """HSDP on four ranks: two copies of the weights, each split over two ranks."""
    options = ("trainer.steps=3", "trainer.log_every=1", "data.batch_size=16", "trainer.recompute=true")
    one = alone(Job(tiny_config(tmp_path / "one", *options)))
    split = ("trainer.strategy=fsdp2", "trainer.shard_size=2", "trainer.accumulate=2")
    torchrun(tmp_path, Job(tiny_config(tmp_path / "split", *options, *split)), ranks=4)
    check_rows(tmp_path / "split", one, rel=1e-4)
    check_encoders(tmp_path / "split", one, most=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_and_bfloat16_under_both_strategies(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("trainer.steps=3", "trainer.log_every=1", "trainer.precision=bf16-mixed")
    one = alone(Job(tiny_config(tmp_path / "one", *options)))
    jobs = [
        Job(tiny_config(tmp_path / kind, *options, "trainer.compile=true", f"trainer.strategy={kind}"))
        for kind in ("fsdp2", "ddp")
    ]
    torchrun(tmp_path, *jobs)
    for kind in ("fsdp2", "ddp"):
        check_rows(tmp_path / kind, one, rel=2e-2)
        names = load_file(tmp_path / kind / "encoder.safetensors").keys()
        assert names == load_file(one / "encoder.safetensors").keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("trainer.strategy=fsdp",), "trainer.strategy is 'fsdp'.*fsdp2"),
        (("trainer.shard_size=2",), "trainer.shard_size 2 with 1 ranks"),
        (("trainer.strategy=fsdp2", "trainer.precision=16-mixed"), "use bf16-mixed or 32-true"),
        (("optim.fused=maybe",), "optim.fused is 'maybe'"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_exists(
    tiny_config: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    from medloom.pretrain.run import pretrain

    with pytest.raises(ConfigError, match=said):
        pretrain(tiny_config(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()
