"""`medloom launch CONFIG --on slurm|torchrun|submitit|k8s|skypilot`: a job from a recipe, checked first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pretrain.cluster.job import Job
    from ..pretrain.cluster.targets import Target

TARGETS = ("slurm", "torchrun", "submitit", "k8s", "skypilot")
EXAMPLE = """examples:
  medloom launch base-mae-3d --on slurm --nodes 2 --gpus 8 --time 24h --partition gpu \\
    data.shards=/data/shards out=runs/mae-3d --submit
  medloom launch base-mae-2d --on torchrun --nodes 2 --gpus 8 --master-addr node1 data.shards=... out=...
  medloom launch base-mae-2d --on k8s --gpus 8 --image registry/medloom:1 --mount claim:/data \\
    data.shards=/data/shards out=/data/runs/mae --dry-run

The job's files lie in OUT.launch, beside the run folder (k8s, skypilot: in this folder); its exit status is
that of `medloom pretrain`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom launch`."""
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("config", help="YAML of the run (a path, or the name of a shipped one)")
    add("overrides", nargs="*", metavar="key=value", help="as of `medloom pretrain`")
    add("--on", required=True, choices=TARGETS, help="where it runs")
    add("--nodes", type=int, default=1, help="machines (default: 1)")
    add(
        "--gpus",
        type=int,
        default=1,
        help="GPUs a node, one process each; 0: one process on the CPU (default: 1)",
    )
    add("--gpu-type", metavar="NAME", help="as the cluster calls it, e.g. h100")
    add("--cpus", type=int, help="cores a process (default: data.workers + 2)")
    add("--mem", type=int, metavar="GB", help="memory a node")
    add("--time", help="limit of one start (k8s: of the whole job, which then fails): 36h, 1-12:00:00, ...")
    add("--partition", help="of SLURM")
    add("--account", help="of SLURM")
    add("--qos", help="of SLURM")
    add("--namespace", help="of Kubernetes (default: default)")
    add("--image", help="container image that has medloom")
    source = "host folder (slurm), volume claim (k8s), bucket URL or local folder (skypilot)"
    add("--mount", action="append", default=[], metavar="SOURCE:FOLDER", help=f"{source}; repeatable")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the job; repeatable")
    add("--setup", action="append", default=[], metavar="LINE", help="shell line before the run; repeatable")
    add("--on-demand", action="store_true", default=None, help="skypilot: no machines that may be taken away")
    add(
        "--grace",
        type=int,
        metavar="S",
        help="slurm, submitit, k8s: seconds until the kill (default: 120)",
    )
    add("--retries", type=int, help="slurm, k8s, skypilot: starts after a crash (default: 3)")
    add("--master-addr", metavar="HOST", help="torchrun: address of the first host")
    add("--master-port", type=int, help="torchrun, k8s, skypilot: port of the first host (default: 29500)")
    add("--name", help="name of the job (default: that of the configuration)")
    add("--template", type=Path, metavar="FILE", help="a template instead of the one in configs/launch")
    add("--dry-run", action="store_true", help="show checks, files and commands; write and submit nothing")
    add("--submit", action="store_true", help="submit it (torchrun on one host: run it here)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, write and perhaps submit a job; 1 when a check fails, else the status of the submission."""
    from ..pretrain.cluster.targets import TARGETS as KINDS
    from ..pretrain.cluster.targets import render
    from .console import print_table, say
    from .preflight import preflight

    kind, job = KINDS[arguments.on], _job(arguments)
    files = render(job, arguments.on, arguments.template)
    findings = preflight(job, grace="grace_seconds" in kind.takes)
    print_table([{"check": f.what, "state": f.state, "found": f.found, "mend": f.mend} for f in findings])
    faults = sum(finding.state == "fault" for finding in findings)
    if arguments.dry_run:
        for path, text in files.items():
            say(f"\n# {path}")
            print(text, end="")
    elif not faults:
        _write(files)
    if faults:
        say(f"\n{faults} faults: mend them first; nothing was written or submitted")
        return 1
    if arguments.submit and not arguments.dry_run:
        return _submit(arguments.on, kind, job, list(files)[-1])
    say()
    for line in _commands(arguments.on, kind, job, list(files)[-1]):
        say(line)
    return 0


def _job(arguments: argparse.Namespace) -> Job:
    from ..pretrain.cluster.job import Job, parse_minutes, parse_pair
    from ..pretrain.cluster.targets import TARGETS as KINDS
    from ..pretrain.config import load_config

    return Job(
        config=load_config(arguments.config, arguments.overrides), name=arguments.name or "",
        nodes=arguments.nodes, gpus=arguments.gpus, gpu_type=arguments.gpu_type, cpus=arguments.cpus,
        mem_gb=arguments.mem, minutes=None if arguments.time is None else parse_minutes(arguments.time),
        partition=arguments.partition, account=arguments.account, qos=arguments.qos,
        namespace=arguments.namespace, image=arguments.image,
        mounts=tuple(parse_pair(text, ":", "--mount", "SOURCE:/FOLDER") for text in arguments.mount),
        env=tuple(parse_pair(text, "=", "--env", "NAME=VALUE") for text in arguments.env),
        setup=tuple(arguments.setup), on_demand=arguments.on_demand, grace_seconds=arguments.grace,
        retries=arguments.retries, master_addr=arguments.master_addr, master_port=arguments.master_port,
        shared=KINDS[arguments.on].shared,
    )  # fmt: skip


def _write(files: dict[Path, str]) -> None:
    from ..data.atomic import write_text

    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _commands(target: str, kind: Target, job: Job, path: Path) -> list[str]:
    """What to type instead of --submit."""
    import shlex

    if target == "torchrun" and job.nodes > 1:
        return [f"host {rank}: NODE_RANK={rank} bash {shlex.quote(str(path))}" for rank in range(job.nodes)]
    return [f"submit: {shlex.join(kind.submit(job, path))}"]


def _submit(target: str, kind: Target, job: Job, path: Path) -> int:
    import importlib.util
    import shlex
    import subprocess

    from ..data.errors import ConfigError
    from .console import say

    command = kind.submit(job, path)
    if target == "submitit" and importlib.util.find_spec("submitit") is None:
        raise ConfigError("submitit is not installed: pip install 'medloom[submitit]'")
    say(f"$ {shlex.join(command)}")
    try:
        status = subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]}: no such command here; submit {path} where it is") from error
    return 128 - status if status < 0 else status
