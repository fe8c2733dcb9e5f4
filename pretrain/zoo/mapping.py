"""Tensors of another's file under our names: drop, rename, join, complete, turn.

Only what changes nothing of what the network computes: queries, keys and values that were stored apart are
joined, a bias that the source has not is zero, kernels and tables of a network that was fed (x, y, z) volumes
are turned for ours, which are (z, y, x). Whatever the rules leave over meets the strict check of loading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.errors import CheckpointError
from ..transfer import NEW_TOKENS, POSITIONS
from .record import ZooRecord

_SUM = re.compile(r"<(\d+)\+(\d+)>")
_PART = re.compile(r"(?P<name>.+)#(?P<part>\d+)")


def mapped(record: ZooRecord, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` by the artefact names of the record's encoder.

    Args:
        tensors: by the names of the file, without the keys above them.

    Raises:
        CheckpointError: two names become one, a part of a joined tensor is missing, or nothing is left.
    """
    where = f"zoo:{record.name}"
    found: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        if any(re.search(pattern, old) for pattern in record.mapping.drop):
            continue
        name = old
        for pattern, new in record.mapping.rename:
            name = _SUM.sub(lambda sum_: str(int(sum_[1]) + int(sum_[2])), re.sub(pattern, new, name))
        if name in found:
            raise CheckpointError(
                f"{where}: {old} and another tensor of the file both become {name}: not the published file"
            )
        found[name] = tensor
    found = _joined(found, where)
    for pattern, new in record.mapping.zeros:
        for name, tensor in list(found.items()):
            if re.fullmatch(pattern, name):
                found.setdefault(re.sub(pattern, new, name), tensor.new_zeros(len(tensor)))
    found = {name: _with_batch_axis(name, tensor) for name, tensor in found.items()}
    if not found:
        raise CheckpointError(f"{where}: the file holds nothing of the encoder: not the published file")
    return turned(found, _grid(record.encoder)) if record.mapping.axes == "xyz" else found


def turned(tensors: Mapping[str, Tensor], grid: Sequence[int]) -> dict[str, Tensor]:
    """Kernels [E, C, x, y, z] and a table of positions [1, P + X·Y·Z, E] with their axes reversed.

    Args:
        grid: (Z, Y, X) of the table.
    """
    done = {name: t.permute(0, 1, 4, 3, 2).contiguous() if t.ndim == 5 else t for name, t in tensors.items()}
    table = done.get("pos_embed")
    if table is not None:
        cells = grid[0] * grid[1] * grid[2]
        head, rest = table[:, : table.shape[1] - cells], table[:, table.shape[1] - cells :]
        rest = rest.reshape(1, *reversed(grid), -1).permute(0, 3, 2, 1, 4).reshape(1, cells, -1)
        done["pos_embed"] = torch.cat([head, rest], dim=1)
    return done


def _joined(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`NAME#0`, `NAME#1`, .. as one `NAME`, along the first axis."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name)
        if match:
            parts.setdefault(match["name"], {})[int(match["part"])] = tensor
        else:
            whole[name] = tensor
    most = max((max(some) for some in parts.values()), default=0)
    for name, some in parts.items():
        if sorted(some) != list(range(most + 1)):
            raise CheckpointError(
                f"{where}: {name} is made of {most + 1} tensors, the file has {len(some)} of them: cut short"
            )
        whole[name] = torch.cat([some[i] for i in sorted(some)])
    return whole


def _with_batch_axis(name: str, tensor: Tensor) -> Tensor:
    """Tokens and tables that were stored without the leading axes of [1, N, E]."""
    if name.rpartition(".")[2] not in (*POSITIONS, *NEW_TOKENS):
        return tensor
    return tensor.reshape((1,) * (3 - tensor.ndim) + tuple(tensor.shape)) if tensor.ndim < 3 else tensor


def _grid(section: Mapping[str, Any]) -> list[int]:
    """Cells of the stored table of positions; of a network without one, nothing."""
    size, patch = section.get("img_size") or [0, 0, 0], section.get("patch_size") or [16, 16, 16]
    return [int(a) // int(b) for a, b in zip(size, patch, strict=True)]
