"""One life of a run in `benchmarks.kills`: torchrun's agent and its ranks, forked from a process that has
imported everything, so that a hundred lives take minutes. A rank notes which samples each step trains on.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

RANKS = 2
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # torchrun hands on what it is told to: SIGUSR1, too


def preload() -> None:
    """Import what a life needs, without starting threads."""
    import torch
    import torch.distributed.launcher.api

    torch.set_num_threads(1)


def born(words: list[str], notes: Path, log: Path, port: int) -> int:
    """Fork an agent in a session of its own; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        with log.open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        status = agent(words, notes, port)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def agent(words: list[str], notes: Path, port: int) -> int:
    """What `torchrun --nproc-per-node 2` runs, with a function for a script; returns the exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=RANKS, run_id="kills", rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs={"rank": 0, "timeout": 60}, max_restarts=0,
        start_method="fork", monitor_interval=0.05, signals_to_handle=SIGNALS,
    )  # fmt: skip
    try:
        elastic_launch(config, rank)(words, str(notes))
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    return 0


def rank(words: list[str], notes: str) -> None:
    """One rank: the command line of `medloom pretrain`, with a note of each step's samples."""
    from medloom.pretrain.module import PretrainModule
    from medloom.scripts.cli import main

    number = os.environ["RANK"]
    folder = Path(notes)
    (folder / f"pid-{number}").write_text(str(os.getpid()))
    whole: Any = PretrainModule.training_step
    file = (folder / f"order-{number}.jsonl").open("a")

    def training_step(self: Any, batch: dict[str, Any], batch_idx: int) -> Any:
        line = {"step": int(self.trainer.global_step) + 1, "positions": batch["position"].tolist()}
        file.write(json.dumps(line) + "\n")
        file.flush()
        return whole(self, batch, batch_idx)

    PretrainModule.training_step = training_step
    sys.exit(main(words))
