"""`medloom doctor`: what this machine is, what is wrong with it for medloom, and how to mend it.

Each check is a function that returns findings; nothing is downloaded and no network is asked. Exit status 1
when a finding would stop a run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "monai", "webdataset", "wandb", "nibabel",
    "omegaconf", "blosc2", "pydicom", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the table: `state` is ok, note or fault; a fault has a mend."""

    what: str
    state: str
    found: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom doctor`."""
    parser.add_argument("--shards", type=Path, help="also check this folder of shards")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs you mean to train on (default: 1)")
    parser.add_argument("--workers", type=int, default=4, help="loader workers per GPU (default: 4)")
    parser.add_argument("--batch-size", type=int, default=256, help="global batch size (default: 256)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 when there is a fault."""
    from .console import print_table, say

    findings = [*packages(), *processors(arguments.workers), *disks(), *tracking()]
    if arguments.shards is not None:
        findings += shards(arguments.shards, arguments.ranks, arguments.workers, arguments.batch_size)
    print_table([{"check": f.what, "state": f.state, "found": f.found, "mend": f.mend} for f in findings])
    faults = [finding for finding in findings if finding.state == "fault"]
    say(f"{len(faults)} faults: mend them first" if faults else "ready: `medloom demo` is the quickest proof")
    return 1 if faults else 0


def packages() -> Iterator[Finding]:
    """Python and the required packages: present and importable versions."""
    from importlib.metadata import PackageNotFoundError, version

    good = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "ok" if good else "fault",
        sys.version.split()[0],
        "" if good else "install Python 3.11 or newer",
    )
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(
                name, "fault", "not installed", "pip install -e . in the checkout, or pip install medloom"
            )
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises at import
        yield Finding(
            "torchvision import", "fault", str(error)[:80], "let pip resolve torch and torchvision together"
        )


def processors(workers: int) -> Iterator[Finding]:
    """CPU cores against loader workers; GPUs, their memory, bf16."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    enough = cores >= workers
    yield Finding(
        "cpu cores", "ok" if enough else "note", str(cores),
        "" if enough else f"{workers} workers on {cores} cores: set data.workers={cores}",
    )  # fmt: skip
    if not torch.cuda.is_available():
        yield Finding(
            "gpu", "note", "none", "training runs on the CPU in fp32: use the phantom or realdata recipes"
        )
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(f"gpu {index}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}")


def disks() -> Iterator[Finding]:
    """Free space where runs, the cache and shared memory live."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    for what, folder, need, mend in (
        ("disk here", Path.cwd(), 5 << 30, "free some space, or give out= on another disk"),
        ("disk of the cache", cache, 2 << 30, "set XDG_CACHE_HOME to a larger disk"),
        (
            "shared memory",
            Path("/dev/shm"),
            1 << 30,
            "fine-tuning with workers and NCCL use it: raise the container's --shm-size",
        ),
    ):
        existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
        if what == "shared memory" and not folder.exists():
            continue
        free = shutil.disk_usage(existing).free
        yield Finding(
            what,
            "ok" if free >= need else "note",
            f"{free / 2**30:.1f} GiB free",
            "" if free >= need else mend,
        )


def tracking() -> Iterator[Finding]:
    """W&B: online with a login, else offline (and how to send the runs later)."""
    from ..pretrain.tracking.wandb_backend import choose_mode, logged_in

    mode, said = choose_mode("auto"), os.environ.get("WANDB_MODE")
    if mode == "online" and logged_in():
        yield Finding("wandb", "ok", "logged in")
    elif mode == "online":
        yield Finding("wandb", "note", f"WANDB_MODE={said} without a login", "`wandb login`, or unset it")
    elif said:
        kept = "not logged" if mode == "disabled" else "kept offline"
        yield Finding("wandb", "note", f"WANDB_MODE={said}: runs are {kept}", "unset it to log online")
    else:
        yield Finding(
            "wandb", "note", "no login: runs are kept offline", "`wandb login`, or `wandb sync` later"
        )


def shards(folder: Path | str, ranks: int, workers: int, batch_size: int) -> Iterator[Finding]:
    """The manifest opens; the global batch divides by the ranks; there are samples for every rank."""
    from ..data import open_shards
    from ..data.errors import ShardError

    try:
        opened = open_shards(folder)
    except ShardError as error:
        yield Finding("shards", "fault", str(error), "medloom shards build ...")
        return
    count = sum(source.count for source in opened.manifest.sources)
    files = sum(len(source.shards) for source in opened.manifest.sources)
    yield Finding("shards", "ok", f"{count} samples, {len(opened.manifest.sources)} sources, {files} files")
    even = batch_size % ranks == 0
    yield Finding(
        "batch over ranks", "ok" if even else "fault", f"{batch_size} over {ranks}",
        "" if even else f"use a multiple of {ranks}, e.g. {batch_size // ranks * ranks or ranks}",
    )  # fmt: skip
    filled = count >= batch_size
    yield Finding(
        "samples per batch", "ok" if filled else "note", f"{count} samples, global batch {batch_size}",
        "" if filled else "every batch repeats samples: lower batch_size or add data",
    )  # fmt: skip
    # Order is by position, so files need not outnumber ranks x workers; few huge files only cost handles.
    yield Finding(
        "files over ranks x workers", "ok", f"{files} files, {ranks * workers} workers (any ratio is fine)"
    )
