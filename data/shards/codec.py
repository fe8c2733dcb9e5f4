"""Arrays -> Blosc2 frames: the codecs and filters of the two profiles, and floats that are scaled integers.

`small` (default): zstd after a byte shuffle. Level 4 takes 2.7 times as long to encode as level 1 (100 MB/s
a core), once, and is decoded in 0.87 of the time from 2 % fewer bytes, every time: 1.5 GB/s of CT. Level 5
would take 1.4 times as long again for another 8 % of the time. Two filters are put in where they pay: the
difference of neighbouring bytes, chosen array by array from its middle chunk (12 % off MR and 25 % off a
16-bit radiograph at 0.8 of the speed; 6 % off CT, not worth it), and XOR with the pixel before for 8-bit
images that are one block (20-25 % off photographs stored as PNG). `fast`: LZ4 and bit shuffle, decoded 1.3
times as fast and 10-40 % larger. Each frame carries its codec and filters: readers need not know the profile.

Float32 images are as a rule scaled integers (NIfTI's scl_slope, scanners' rescaling). When every value is
bit for bit float32(code) * float32(scale), the codes are stored, 8 or 16 bit, and the scale in the frame's
`scale` metalayer: three times smaller on the MSD hippocampus, 2.6 times on 8-bit MR with a slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import blosc2
import numpy as np

from ..errors import ConfigError, ShardError, nearest

PROFILES = ("small", "fast")
SUPPORTED_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
SCALE = "scale"  # metalayer of a frame of codes

ZSTD_LEVEL = 4  # of Blosc2, which is zstd's own 7

# What the difference filter must save to be worth a fifth of the decoding speed.
WORTH = 0.08
_PROBED_VALUES = 1 << 16
_PIECE = 1 << 22  # values checked at a time: the wide copies stay small
_CODES = (np.uint8, np.int16, np.uint16)


def check_profile(profile: str) -> str:
    """Return `profile`. Raises ConfigError when there is none of this name."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, PROFILES)}")
    return profile


def single_threaded() -> None:
    """Make Blosc2 use one thread in this process: same bytes everywhere, no fight among workers."""
    blosc2.set_nthreads(1)


def encode_array(
    array: np.ndarray, chunks: Sequence[int], blocks: Sequence[int], profile: str = "small"
) -> bytes:
    """Compress `array` into one contiguous Blosc2 frame; the same array gives the same bytes.

    Raises:
        ShardError: the dtype is not one a shard holds, or Blosc2 would treat the array as raw bytes
            (type size 1), which silently switches the shuffle off and costs a third of the ratio.
    """
    if array.dtype.name not in SUPPORTED_DTYPES:
        raise ShardError(
            f"dtype {array.dtype} cannot be stored; convert to one of {', '.join(SUPPORTED_DTYPES)}"
        )
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    meta: dict[str, Any] = {}
    if array.dtype == np.float32 and (scaled := scaled_integers(array)):
        array, meta[SCALE] = scaled
    filters = _filters(array, chunks, blocks, profile)
    frame = _frame(array, chunks, blocks, profile, filters, meta)
    if frame.schunk.typesize != array.dtype.itemsize or frame.dtype != array.dtype:
        stored = f"{frame.dtype} with type size {frame.schunk.typesize}"
        raise ShardError(f"Blosc2 stored {stored}, expected {array.dtype} with {array.dtype.itemsize}")
    return frame.to_cframe()


def unscaled(codes: np.ndarray, scale: float) -> np.ndarray:
    """The float32 image behind stored codes: the product of 16 by 24 bit, rounded once."""
    return np.multiply(codes, np.float32(scale), dtype=np.float32)


def scaled_integers(array: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Codes (uint8, int16 or uint16) and scale of a float32 array that `unscaled` gives back bit for bit.

    None when there are none: values that were computed, more than 16 bit, or a scale that is not float32.
    """
    flat = array.reshape(-1)
    scale = _scale_of(flat)
    if scale is None:
        return None
    ends = [np.rint(float(end) / scale) for end in (flat.min(), flat.max())]
    kinds = [k for k in _CODES if np.iinfo(k).min <= ends[0] and ends[1] <= np.iinfo(k).max]
    if not kinds:
        return None
    codes = np.empty(flat.shape, kinds[0])
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        codes[start : start + _PIECE] = np.rint(piece.astype(np.float64) / scale)
        back = unscaled(codes[start : start + _PIECE], scale)
        # As bits: -0.0 equals 0 and would come back without its sign.
        if not np.array_equal(back.view(np.uint32), piece.view(np.uint32)):
            return None
    return codes.reshape(array.shape), scale


def _scale_of(flat: np.ndarray) -> float | None:
    """The step of which a sample of the values are multiples, when float32 holds it, else None.

    A value v that was rounded from k * step confines the step to (v ± half a unit in the last place) / k;
    the sample's intervals are intersected from the smallest value up, so that k is always known exactly.
    """
    values = np.unique(flat[:: max(1, flat.size // _PROBED_VALUES)]).astype(np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    gaps = np.diff(values)
    step = gaps.min()
    magnitudes = np.unique(np.abs(values))
    magnitudes = magnitudes[magnitudes > 0]
    halves = np.spacing(magnitudes.astype(np.float32)).astype(np.float64) / 2
    low, high = 0.0, np.inf
    for magnitude, half in zip(magnitudes.tolist(), halves.tolist(), strict=True):
        times = round(magnitude / step)
        if not times:
            return None
        low, high = max(low, (magnitude - half) / times), min(high, (magnitude + half) / times)
        if low > high:
            return None
        step = (low + high) / 2
    scale = float(np.float32(step))
    return scale if low <= scale <= high else None


def _filters(array: np.ndarray, chunks: Sequence[int], blocks: Sequence[int], profile: str) -> list[Any]:
    if profile == "fast":
        return [blosc2.Filter.BITSHUFFLE]
    if array.dtype.itemsize == 1:
        # In Blosc2 the XOR is with the pixel before inside a chunk's first block, and with that block in the
        # others, which then could not be decoded alone.
        return [blosc2.Filter.DELTA if tuple(blocks) == array.shape else blosc2.Filter.SHUFFLE]
    plain, difference = [blosc2.Filter.SHUFFLE], [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA]
    middle = tuple(
        slice((n // 2 // c) * c, (n // 2 // c) * c + c) for n, c in zip(array.shape, chunks, strict=True)
    )
    sample = np.ascontiguousarray(array[middle])
    inner = tuple(min(b, n) for b, n in zip(blocks, sample.shape, strict=True))
    sizes = [
        _frame(sample, sample.shape, inner, profile, filters).schunk.cbytes for filters in (plain, difference)
    ]
    return difference if sizes[1] < (1 - WORTH) * sizes[0] else plain


def _frame(
    array: np.ndarray,
    chunks: Sequence[int],
    blocks: Sequence[int],
    profile: str,
    filters: list[Any],
    meta: dict[str, Any] | None = None,
) -> Any:
    size = array.dtype.itemsize
    options: dict[str, Any] = {"meta": meta} if meta else {}
    return blosc2.asarray(
        cast(Any, array),
        chunks=tuple(chunks),
        blocks=tuple(blocks),
        contiguous=True,
        cparams=blosc2.CParams(
            codec=blosc2.Codec.LZ4 if profile == "fast" else blosc2.Codec.ZSTD,
            clevel=1 if profile == "fast" else ZSTD_LEVEL,
            filters=filters,
            filters_meta=[size if one is blosc2.Filter.BYTEDELTA else 0 for one in filters],
            typesize=size,
            nthreads=1,
        ),
        dparams=blosc2.DParams(nthreads=1),
        **options,
    )
