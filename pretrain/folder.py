"""The run folder: opened once, never overwritten, written by one process at a time.

config.yaml, env.json and wandb.json say what the run is; metrics.jsonl what happened; last.ckpt and
previous.ckpt where it stands; encoder.safetensors and encoder.json what came out. An existing folder is
refused unless the run is to be resumed, and a resumed run must compute the same thing: a changed learning
rate or batch size is refused with the keys that differ. env.json names versions and devices, no person and no
machine.
"""

from __future__ import annotations

import fcntl
import logging
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from ..data.atomic import write_json, write_text
from ..data.config import read_yaml, to_dict, to_yaml
from ..data.errors import ConfigError
from .config import PretrainConfig, differences

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
PACKAGES = ("medloom", "torch", "torchvision", "pytorch-lightning", "timm", "numpy", "blosc2", "wandb")


class RunFolder:
    """An opened run folder; holds a lock until `close` (rank 0 only, others just know the path)."""

    def __init__(self, config: PretrainConfig, *, main: bool, manifest: str) -> None:
        """Create the folder, or open it again with `resume`.

        Args:
            main: this is global rank 0, which alone writes.
            manifest: hash of the shards' manifest, which a resumed run must find again.

        Raises:
            ConfigError: the folder exists and resume is false; it belongs to another configuration or other
                shards; another process is training in it.
        """
        self.path = config.folder
        self._lock: TextIO | None = None
        if not main:
            return
        existing = self.path / CONFIG
        if self.path.exists() and any(self.path.iterdir()) and not config.resume:
            raise ConfigError(f"{self.path} exists: continue it with resume=true, or choose another out=...")
        if existing.is_file():
            changed = differences(read_yaml(existing), to_dict(config))
            if changed:
                raise ConfigError(
                    f"{existing}: resume=true continues the same computation, but {'; '.join(changed)}; "
                    f"start a new run with init_from={self.path}"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        self._check_manifest(manifest)
        if not existing.is_file():
            write_text(existing, to_yaml(config))
        write_json(self.path / ENVIRONMENT, {**environment(), "manifest": manifest})

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_manifest(self, manifest: str) -> None:
        path = self.path / ENVIRONMENT
        saved = read_yaml(path).get("manifest") if path.is_file() else None
        if saved is not None and saved != manifest:
            raise ConfigError(
                f"{self.path}: was started on shards with manifest {saved[:12]}, data.shards now has "
                f"{manifest[:12]}: the order of samples would change; start a new run with "
                f"init_from={self.path}"
            )


def environment() -> dict[str, Any]:
    """Versions, commit and devices; nothing that names a person or a machine."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": _commit(),
        "devices": gpus or [f"cpu, {torch.get_num_threads()} threads"],
        "cuda": torch.version.cuda,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that medloom runs from, `+changes` when edited; None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _lock(folder: Path) -> TextIO:
    """A POSIX lock: the kernel gives it back when the process dies, and forked workers do not inherit it."""
    handle = (folder / ".lock").open("w")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise ConfigError(
            f"{folder}: another process is training in this folder; wait for it or stop it"
        ) from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): do not start this run twice", folder, error)
    return handle
