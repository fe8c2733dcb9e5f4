"""How much memory a build may use, and how much a unit of it needs.

While an image is read, checked and encoded, memory holds at most

    FACTOR x its decoded bytes (mask included) + 2 x its files' bytes

beside WORKER_BYTES a worker for the interpreter, its libraries and the shard's index. Measured: 2.1 to 3.0
times the decoded bytes for NIfTI (the voxels as in the file, turned, and compressed), 5.3 with the files for
DICOM series (files, planes, stack, rescaled, turned). Sizes come from headers, so the bound holds for every
file whose header tells the truth. Units need as much as their largest image, because it is one at a time.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from ..sample import Record
from .headers import header_of
from .units import Unit

WORKER_BYTES = 300 << 20
FACTOR = {"nii": 3, "mha": 3, "dicom": 5}
OTHER_FACTOR = 4
UNKNOWN = 8  # times the files' bytes, when no header can be read
SHARE = 0.8  # of the memory that is free when the build starts

# Files below this are not looked at: even a thousandfold inflation of one costs no more than a worker.
_SMALL = 256 << 10
_ELSEWHERE = (".mhd", ".nhdr")  # headers whose voxels lie in other files

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory() -> int:
    """Bytes that this process may still use: what the machine has free, or the container's limit."""
    free = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(free, 0)


def need_of(unit: Unit) -> int:
    """Bytes that the largest image of a unit needs beside WORKER_BYTES."""
    return max((_need(record) for record in unit.records), default=0)


def _need(record: Record) -> int:
    try:
        files = sum(path.stat().st_size for path in record.paths)
    except OSError:
        return 0
    if files < _SMALL and not record.paths[0].name.lower().endswith(_ELSEWHERE):
        return 0
    header = header_of(record)
    if header is None:
        return UNKNOWN * files
    factor = next((f for word, f in FACTOR.items() if header.kind.startswith(word)), OTHER_FACTOR)
    return factor * (header.at_once or header.bytes) + (0 if header.from_disk else 2 * files)
