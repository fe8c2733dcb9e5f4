"""Random numbers without a generator to carry about: a pure function of (seed, stream name, position).

Each (seed, stream, position) owns one SplitMix64 sequence (Steele, Lea and Flood, OOPSLA 2014), whose start
is the hash of the three; column j of a draw is its j-th output. Nothing is consumed, so workers, ranks,
devices and restarts cannot change a draw, and NumPy and torch (CPU or CUDA) give the same bits, since both
only use wrapping 64-bit integer arithmetic. The price is 22 small integer operations a number, where a
stateful generator needs one kernel: nothing for parameters (tens of numbers an image), and noise, for which
`normal_torch` makes do with 32 bits, takes 3 to 5 times as long as `torch.randn` on a CPU core. A stream name
keeps two uses of the same position apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment, the odd number next to 2^64 / golden ratio
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_GOLDEN_32 = 0x9E3779B9 - (1 << 32)  # int32 constants, as torch wants them
_TRIPLE_32 = (0xED5AD4BB - (1 << 32), 0xAC4C1B51 - (1 << 32), 0x31848BAB)
_UNIT = 2.0**-53  # the upper 53 bits make a float64 in [0, 1)


@lru_cache(maxsize=4096)
def stream_key(seed: int, stream: str) -> int:
    """64-bit key of a named stream; any Python integer is a seed."""
    digest = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def bits(seed: int, stream: str, positions: np.ndarray | Sequence[int], n: int) -> np.ndarray:
    """Random 64-bit words.

    Args:
        positions: [B] integers, e.g. positions in the global order.
        n: words a position; column j does not depend on n.

    Returns:
        uint64 [B, n].
    """
    at = np.asarray(positions).astype(np.int64).view(np.uint64).reshape(-1, 1)
    columns = np.arange(1, n + 1, dtype=np.uint64)
    start = mix(at * np.uint64(_GAMMA) + np.uint64(stream_key(seed, stream)))
    return mix(start + columns * np.uint64(_GAMMA))


def uniform(seed: int, stream: str, positions: np.ndarray | Sequence[int], n: int) -> np.ndarray:
    """Uniform numbers in [0, 1): float64 [B, n] for positions [B]. See `bits`."""
    return (bits(seed, stream, positions, n) >> np.uint64(11)).astype(np.float64) * _UNIT


def mix(word: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, element by element: uint64 in, uint64 out."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(_MIX_1)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(_MIX_2)
    return word ^ (word >> np.uint64(31))


def uniform_torch(
    seed: int,
    stream: str,
    positions: torch.Tensor | Sequence[int],
    n: int,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The torch twin of `uniform`, bit for bit: float64 [B, n].

    Args:
        positions: [B] integers.
        device: where to compute; None: where `positions` lies.
    """
    import torch

    at = torch.as_tensor(positions, dtype=torch.int64, device=device).reshape(-1, 1)
    columns = torch.arange(1, n + 1, dtype=torch.int64, device=at.device)
    start = _mix_torch(at * _signed(_GAMMA) + _signed(stream_key(seed, stream)))
    words = _mix_torch(start + columns * _signed(_GAMMA))
    return _shift(words, 11).to(torch.float64) * _UNIT


def normal_torch(
    seed: int,
    stream: str,
    positions: torch.Tensor | Sequence[int],
    n: int,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Standard normal numbers by Box and Muller: float32 [B, n]; the same on every rank and worker.

    A field of noise has a million of them, so the words are of 32 bits and made in place: column j hashes j
    with the two halves of its sequence's key, one after the other (the rounds of C. Wellons' triple32). That
    is a tenth of the time of `uniform_torch` at 24 bits of resolution, enough for noise: 5.9 sigma at most.
    Bits may differ in the last place between devices, whose log and cos do.
    """
    import torch

    at = torch.as_tensor(positions, dtype=torch.int64, device=device).reshape(-1, 1)
    key = _mix_torch(at * _signed(_GAMMA) + _signed(stream_key(seed, stream))).view(torch.int32)
    half = (n + 1) // 2
    columns = torch.arange(2 * half, dtype=torch.int32, device=at.device)
    words = _triple32(columns * _GOLDEN_32 + key[:, :1], key[:, 1:])
    radius = ((words[:, :half] >> 8) & 0xFFFFFF).to(torch.float32)
    radius = radius.add_(0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = words[:, half:].to(torch.float32).mul_(torch.pi * 2.0**-31)
    return torch.cat([torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)], dim=1)[:, :n]


def _triple32(word: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Mix int32 words in place, `key` added after the first of three rounds."""
    word ^= (word >> 17) & 0x7FFF
    word *= _TRIPLE_32[0]
    word += key
    word ^= (word >> 11) & 0x1FFFFF
    word *= _TRIPLE_32[1]
    word ^= (word >> 15) & 0x1FFFF
    word *= _TRIPLE_32[2]
    word ^= (word >> 14) & 0x3FFFF
    return word


def _mix_torch(word: torch.Tensor) -> torch.Tensor:
    """`mix` on int64, which torch multiplies and adds with wrap-around as NumPy does uint64."""
    word = (word ^ _shift(word, 30)) * _signed(_MIX_1)
    word = (word ^ _shift(word, 27)) * _signed(_MIX_2)
    return word ^ _shift(word, 31)


def _shift(word: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift: torch's `>>` copies the sign bit of an int64 inwards."""
    return (word >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of this unsigned 64-bit constant."""
    return word - (1 << 64) if word >> 63 else word
