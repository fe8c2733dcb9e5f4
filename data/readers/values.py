"""Pixel values: rescaling that keeps integers integer, narrow dtypes, and what happens to NaN.

Integers stay integers wherever that is exact: a float32 copy of a CT is twice the size and compresses three
times worse. Integer arithmetic runs in the target type itself; it is modular, so it is exact whenever the
result fits, and needs no 64-bit copy of a volume.
"""

from __future__ import annotations

import numpy as np

from ..errors import ReadError

_INTEGERS = (np.int16, np.uint16, np.int32)


def fitting(low: int, high: int) -> np.dtype | None:
    """First of int16, uint16, int32 that holds [low, high], or None."""
    for candidate in _INTEGERS:
        limits = np.iinfo(candidate)
        if limits.min <= low and high <= limits.max:
            return np.dtype(candidate)
    return None


def narrow(array: np.ndarray) -> np.ndarray:
    """Return `array` in native byte order and a dtype that shards store, with equal values.

    bool -> uint8; 8 and 16 bit integers stay; wider integers become the first of int16, uint16, int32 that
    holds their values (float32 when none does); floats become float32.
    """
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "f":
        # float64 beyond float32's range becomes infinite here and is dealt with by `finite`.
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    if kind not in "iu":
        raise ReadError(f"values of type {array.dtype}, expected integers or real numbers")
    if array.dtype.itemsize <= 2 or array.size == 0:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    target = fitting(int(array.min()), int(array.max())) or np.dtype(np.float32)
    return array.astype(target, copy=False)


def rescale(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return slope * array + intercept: integer when the input, slope and intercept are, else float32.

    Raises:
        ReadError: slope is 0 or a coefficient is not finite.
    """
    slope, intercept = float(slope), float(intercept)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ReadError(
            f"rescale slope {slope} and intercept {intercept}, expected finite and non-zero slope"
        )
    if (slope == 1 and intercept == 0) or array.size == 0:
        return narrow(array)
    exact = array.dtype.kind in "iub" and slope.is_integer() and intercept.is_integer()
    if exact:
        ends = [int(slope) * int(end) + int(intercept) for end in (array.min(), array.max())]
        target = fitting(min(ends), max(ends))
        if target is not None:
            scaled = array.astype(target)
            scaled *= np.array(int(slope)).astype(target)
            scaled += np.array(int(intercept)).astype(target)
            return scaled
    return _scaled_slab_by_slab(array, slope, intercept)


def _scaled_slab_by_slab(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """float32(slope * array + intercept), computed in float64 one slab at a time; keeps the memory order."""
    result = np.empty_like(array, np.float32)
    axis = int(np.argmax(np.abs(array.strides)))
    with np.errstate(over="ignore"):
        for number in range(array.shape[axis]):
            slab = (slice(None),) * axis + (slice(number, number + 1),)
            result[slab] = array[slab].astype(np.float64) * slope + intercept
    return result


def finite(array: np.ndarray, name: str) -> tuple[np.ndarray, dict[str, int]]:
    """Replace NaN and -inf by the smallest finite value and +inf by the largest.

    Returns the array and the fact {"nonfinite": count}, empty when there was nothing to replace.

    Raises:
        ReadError: no value is finite.
    """
    if array.dtype.kind != "f":
        return array, {}
    good = np.isfinite(array)
    bad = array.size - int(good.sum())
    if not bad:
        return array, {}
    if bad == array.size:
        raise ReadError(f"{name}: every value is NaN or infinite, expected an image; exclude it")
    values = array[good]
    low, high = float(values.min()), float(values.max())
    return np.nan_to_num(array, nan=low, neginf=low, posinf=high), {"nonfinite": bad}


def grey_if_equal(array: np.ndarray) -> np.ndarray:
    """Turn [3, ...] with three equal channels into [1, ...]; other arrays pass unchanged."""
    if array.shape[0] == 3 and np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2]):
        return array[:1]
    return array
