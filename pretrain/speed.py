"""How fast a run is: tokens and floating-point operations a second, and the share of the device's peak.

Operations are counted once for each shape of batch, in the first real step of that shape, forward and
backward, with torch's own formulas for products, convolutions and attention; later steps cost nothing. That
first step runs eagerly where the encoder is compiled. What is counted is what is computed: teachers, decoders
and blocks that are computed again in the backward pass included, hidden tokens of a masked encoder not. The
peak is the best rate of a large matrix product on this device in the precision of the run, some tenths
of a second at the start: a rate that this machine reaches, not the one on its data sheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .encoders.base import Encoder, Features

# Of the matrices whose product gives the peak. Small on a CPU: a product shorter than a time slice of the
# scheduler finds an undisturbed one even on a busy machine.
PEAK_SIDE = {"cuda": 4096, "cpu": 512}
PEAK_SECONDS = 0.2


class Operations(TorchDispatchMode):
    """Counts floating-point operations (a multiply and an add are two) of what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class Speed:
    """What one rank computes in the steps between two rows."""

    def __init__(self) -> None:
        self.peak = 0.0  # operations a second; 0: not measured
        self._cost: dict[tuple[int, ...], tuple[int, int]] = {}  # shape of a batch -> operations, tokens
        self._open: tuple[tuple[int, ...], Operations, Any, list[int]] | None = None
        self._operations = self._tokens = 0

    def start(self, shape: Sequence[int], encoder: Encoder) -> None:
        """Before a micro-batch of images [B, C, *spatial]: count in it, where this shape is new."""
        if tuple(shape) in self._cost or self._open is not None:
            return
        tokens: list[int] = []
        hook = encoder.register_forward_hook(
            lambda _, given, found: tokens.append(_counted(encoder, given[0], found))
        )
        mode = Operations()
        mode.__enter__()
        self._open = (tuple(shape), mode, hook, tokens)

    def stop(self, shape: Sequence[int]) -> None:
        """After the micro-batch."""
        if self._open is not None:
            counted, mode, _, tokens = self._open
            self.leave()
            self._cost[counted] = (mode.count, sum(tokens))
        operations, tokens_seen = self._cost[tuple(shape)]
        self._operations += operations
        self._tokens += tokens_seen

    def operations(self, shape: Sequence[int]) -> int:
        """Of a micro-batch of images of this shape; 0 for one that was not counted."""
        return self._cost.get(tuple(shape), (0, 0))[0]

    def leave(self) -> None:
        """Stop counting, also where a step failed half-way."""
        if self._open is not None:
            _, mode, hook, _ = self._open
            self._open = None
            hook.remove()
            mode.__exit__(None, None, None)

    def close(self, seconds: float, ranks: int) -> dict[str, float]:
        """Rates since the last call: `tokens_per_s` over all ranks and `mfu`, the share of the peak."""
        seconds = max(seconds, 1e-9)
        found = {"tokens_per_s": self._tokens * ranks / seconds}
        if self.peak > 0:
            found["mfu"] = self._operations / seconds / self.peak
        self._operations = self._tokens = 0
        return found


def peak(device: torch.device, precision: str) -> float:
    """Operations a second of large square matrix products on `device`, the best of several.

    Args:
        precision: Lightning's name of it; "bf16-..." and "16-..." also try half-precision products.
    """
    half = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0])
    return max(_rate(device, dtype) for dtype in (torch.float32, half) if dtype is not None)


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = PEAK_SIDE.get(device.type, PEAK_SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)  # starts the library
    best, begin = float("inf"), _now(device)
    while time.perf_counter() < begin + PEAK_SECONDS:
        start = _now(device)
        torch.mm(a, a, out=out)
        best = min(best, _now(device) - start)
    return 2 * side**3 / best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _counted(encoder: Encoder, image: Tensor, found: Features) -> int:
    """Patch tokens that the encoder computed; where it gave none back, those of the whole grid."""
    return image.shape[0] * (found.tokens.shape[1] or math.prod(encoder.grid(image.shape[2:])))
