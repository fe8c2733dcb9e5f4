"""Reading a file of weights, ours or others': safetensors, or torch's format with nothing unpickled.

`weights_only=True` refuses what holds other objects than tensors, numbers and plain containers. One harmless
class is let through, argparse.Namespace, which the trainers of MAE and DINO store beside their weights.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.errors import CheckpointError, first_line

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def read_state(path: Path) -> Any:
    """What the file holds, on the CPU.

    Raises:
        CheckpointError: no such file, damaged, or objects in it that would have to be unpickled.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors ({first_line(error)}), and nothing is unpickled: where you "
            "trust it, load it yourself and save its state dict with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # SafetensorError has no base of its own, and torch raises what it meets
        raise CheckpointError(
            f"{path}: not readable as tensors ({first_line(error)}): fetch or export it again"
        ) from error


def tensors_in(state: Any, keys: Iterable[str], where: str) -> dict[str, Tensor]:
    """Tensors by name, found below those of `keys` that are there, without the prefixes of wrappers.

    Raises:
        CheckpointError: no mapping with tensors in it.
    """
    for key in keys:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    found = (
        {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    )
    if not found:
        raise CheckpointError(f"{where}: holds no state of a network")
    for prefix in (*WRAPPERS, *WRAPPERS):  # either may be inside the other
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
