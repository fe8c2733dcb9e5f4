"""Where a job can go: SLURM, torchrun, submitit, Kubernetes, SkyPilot. Each fills a template in its words.

SLURM and submitit start one process a GPU with srun; the others start one `medloom.pretrain.cluster.torchrun`
a node, which starts the processes. Submitting is a call of the cluster's own tool: no client library, so
what a dry run shows is all that happens.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.errors import ConfigError
from .job import Job
from .templates import fill, template

CLI = ("-m", "medloom.scripts.cli")
IN_POD = "/etc/medloom/config.yaml"
ON_SKY = "/tmp/medloom/config.yaml"


@dataclass(frozen=True)
class Target:
    """One launcher.

    Args:
        takes: optional fields of a job that mean something there.
        values: what fills the holes of its template.
        submit: the command that submits the rendered file.
        shared: its machines see this machine's files, shards and runs included.
    """

    takes: tuple[str, ...]
    values: Callable[[Job], dict[str, Any]]
    submit: Callable[[Job, Path], list[str]]
    shared: bool = True


def render(job: Job, target: str, path: Path | None = None) -> dict[Path, str]:
    """The files of a job: path -> text. The configuration comes first, the file to submit last.

    Args:
        path: a template instead of the shipped one.

    Raises:
        ConfigError: the job asks for what the target has no use for; the template has other holes.
    """
    kind = TARGETS[target]
    job.refuse(target, kind.takes)
    path = path or template(target)
    suffix = ".py" if target == "submitit" else path.suffix
    text = fill(path, kind.values(job))
    return {job.folder / "config.yaml": job.frozen, job.folder / f"job{suffix}": text}


def _slurm(job: Job) -> dict[str, Any]:
    container = None
    if job.image:
        mounts = ",".join(f"{source}:{target}" for source, target in job.mounts)
        parts = [f"--container-image={job.image}", f"--container-workdir={job.directory}"]
        container = shlex.join([*parts, *([f"--container-mounts={mounts}"] if mounts else [])])
    return {
        "name": job.name, "nodes": job.nodes, "ranks": job.ranks,
        "gres": _gres(job), "cpus": job.cores,
        "mem": None if job.mem_gb is None else f"{job.mem_gb}G", "time": job.minutes,
        "partition": job.partition, "account": job.account, "qos": job.qos, "grace": job.grace,
        "directory": _directive(job.directory), "log": _directive(job.folder / "%j.log"),
        "setup": "\n".join(job.setup) or None, "env": _exports(job), "retries": job.starts,
        "container": container, "command": shlex.join([job.python, *CLI, *job.arguments()]),
    }  # fmt: skip


def _torchrun(job: Job) -> dict[str, Any]:
    if job.nodes > 1 and job.master_addr is None:
        raise ConfigError(
            "--master-addr: several hosts need the address of the first, e.g. --master-addr node1"
        )
    return {
        "directory": shlex.quote(str(job.directory)), "setup": "\n".join(job.setup) or None,
        "env": _exports(job), "python": shlex.quote(job.python), "nodes": job.nodes, "ranks": job.ranks,
        "master_addr": job.master_addr or "127.0.0.1", "master_port": job.port,
        "command": shlex.join([*CLI, *job.arguments()]),
    }  # fmt: skip


def _submitit(job: Job) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "name": job.name, "nodes": job.nodes, "tasks_per_node": job.ranks, "cpus_per_task": job.cores,
        "timeout_min": job.minutes, "mem_gb": job.mem_gb, "slurm_partition": job.partition,
        "slurm_account": job.account, "slurm_qos": job.qos, "slurm_signal_delay_s": job.grace,
        "slurm_gres": _gres(job),
        "slurm_additional_parameters": {"requeue": True},
        "slurm_setup": [*job.setup, *_exported(job)] or None,
    }  # fmt: skip
    return {
        "directory": repr(str(job.directory)), "logs": repr(str(job.folder / "submitit")),
        "parameters": ", ".join(f"{k}={v!r}" for k, v in parameters.items() if v is not None),
        "arguments": repr(job.arguments()),
    }  # fmt: skip


def _k8s(job: Job) -> dict[str, Any]:
    if job.image is None:
        raise ConfigError(
            "--image: Kubernetes needs an image that has medloom, e.g. --image registry/medloom:1"
        )
    name = job.name.lower().replace("_", "-").replace(".", "-")[:50].strip("-")
    amounts: dict[str, Any] = {"cpu": job.cores * job.ranks}
    if job.mem_gb is not None:
        amounts["memory"] = f"{job.mem_gb}G"
    if job.gpus:
        amounts["nvidia.com/gpu"] = job.gpus
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": name}}, {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]  # fmt: skip
    places = [
        {"name": "config", "mountPath": str(Path(IN_POD).parent)},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for number, (claim, folder) in enumerate(job.mounts):
        volumes.append({"name": f"disk-{number}", "persistentVolumeClaim": {"claimName": claim}})
        places.append({"name": f"disk-{number}", "mountPath": folder})
    return {
        "name": name, "namespace": job.namespace or "default", "nodes": job.nodes, "image": job.image,
        "config": job.frozen, "master_port": job.port, "retries": job.starts * job.nodes,
        "seconds": None if job.minutes is None else 60 * job.minutes, "grace": job.grace,
        "directory": job.mounts[0][1] if job.mounts else None,
        "script": _script(job, '"$NODE_RANK"', f"{name}-0.{name}", str(job.nodes), IN_POD),
        "env": [
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            *({"name": key, "value": value} for key, value in job.env),
        ],
        "resources": {"requests": amounts, "limits": amounts},
        "volume_mounts": places, "volumes": volumes,
    }  # fmt: skip


def _skypilot(job: Job) -> dict[str, Any]:
    if job.gpus and job.gpu_type is None:
        raise ConfigError("--gpu-type: SkyPilot rents by type, e.g. --gpu-type H100")
    resources: dict[str, Any] = {
        "cpus": f"{job.cores * job.ranks}+", "use_spot": not job.on_demand,
        "job_recovery": {"max_restarts_on_errors": job.starts, "recover_on_exit_codes": [3]},
    }  # fmt: skip
    if job.gpus:
        resources["accelerators"] = f"{job.gpu_type}:{job.gpus}"
    if job.mem_gb is not None:
        resources["memory"] = f"{job.mem_gb}+"
    if job.image:
        resources["image_id"] = f"docker:{job.image.removeprefix('docker:')}"
    mounts: dict[str, Any] = {ON_SKY: str(job.folder / "config.yaml")}
    for source, folder in job.mounts:
        mounts[folder] = {"source": source, "mode": "MOUNT"} if "://" in source else source
    script = _script(
        job, '"$SKYPILOT_NODE_RANK"', '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"', '"$SKYPILOT_NUM_NODES"',
        ON_SKY, setup=False,
    )  # fmt: skip
    return {
        "name": job.name, "nodes": job.nodes, "resources": resources, "mounts": mounts,
        "env": dict(job.env) or None, "setup": "\n".join(job.setup) or None, "script": script,
    }  # fmt: skip


def _script(job: Job, rank: str, address: str, nodes: str, config: str, *, setup: bool = True) -> str:
    """What one node runs; the arguments are shell text."""
    return "\n".join([
        "set -eo pipefail",
        *(job.setup if setup else ()),
        "exec python -m medloom.pretrain.cluster.torchrun \\",
        f"  --nnodes {nodes} --nproc-per-node {job.ranks} --node-rank {rank} \\",
        f"  --master-addr {address} --master-port {job.port} \\",
        f"  {shlex.join([*CLI, *job.arguments(config)])}\n",
    ])  # fmt: skip


def _gres(job: Job) -> str | None:
    return ":".join(["gpu", *([job.gpu_type] if job.gpu_type else []), str(job.gpus)]) if job.gpus else None


def _exported(job: Job) -> list[str]:
    return [f"export {key}={shlex.quote(value)}" for key, value in job.env]


def _exports(job: Job) -> str | None:
    return "\n".join(_exported(job)) or None


def _directive(path: Path) -> str:
    """A path in an #SBATCH line, which knows double quotes and no others."""
    text = str(path)
    if '"' in text or "\\" in text:
        raise ConfigError(f"{text}: quotes and backslashes cannot stand in an #SBATCH line; move the folder")
    return f'"{text}"' if " " in text else text


def _submit_torchrun(job: Job, path: Path) -> list[str]:
    if job.nodes > 1:
        raise ConfigError(
            "--submit: torchrun starts this host alone; run the printed commands, one on each host"
        )
    return ["bash", str(path)]


_ON_SLURM = ("partition", "account", "qos", "gpu_type", "mem_gb", "minutes", "cpus", "grace_seconds")

TARGETS: dict[str, Target] = {
    "slurm": Target(
        (*_ON_SLURM, "image", "mounts", "retries"), _slurm,
        lambda job, path: ["sbatch", "--parsable", str(path)],
    ),
    "torchrun": Target(("master_addr", "master_port"), _torchrun, _submit_torchrun),
    "submitit": Target(_ON_SLURM, _submitit, lambda job, path: [sys.executable, str(path)]),
    "k8s": Target(
        ("namespace", "image", "mounts", "mem_gb", "minutes", "cpus", "grace_seconds", "retries",
         "master_port"), _k8s,
        lambda job, path: ["kubectl", "apply", "-f", str(path)], shared=False,
    ),
    "skypilot": Target(
        ("image", "mounts", "gpu_type", "mem_gb", "cpus", "retries", "master_port", "on_demand"), _skypilot,
        lambda job, path: ["sky", "jobs", "launch", "--yes", "--detach-run", str(path)], shared=False,
    ),
}  # fmt: skip
