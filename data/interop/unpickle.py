"""Pickles from strangers: plain containers, numbers, text and numpy arrays, and nothing else.

A pickle is a program. This reader allows no callable but plain containers and some of its own, which only
build arrays from bytes after checking that dtype, shape and length agree; a pickle that names anything else
is refused by that name. Arrays of objects are refused too. The price: properties that hold other classes (a
pathlib path, a torch tensor) cannot be read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np

from ..errors import ReadError

MOST_BYTES = 256 << 20
_RENAMED = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
_DTYPE = re.compile(r"[<>=|]?(b1|\?|[iuf][1248]|f16|c8|c16)")


def load(data: bytes, name: str) -> Any:
    """The object that `data` describes; `name` begins the messages.

    Raises:
        ReadError: it needs anything but plain containers, numbers, text and numeric arrays, or is damaged.
    """
    if len(data) > MOST_BYTES:
        raise ReadError(f"{name}: a pickle of {len(data):,} bytes, expected at most {MOST_BYTES:,}")
    try:
        return _settled(_Unpickler(io.BytesIO(data)).load())
    except ReadError as error:
        raise ReadError(f"{name}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle makes of itself
        raise ReadError(
            f"{name}: a pickle that is damaged or not plain ({type(error).__name__}); save it as JSON"
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((_RENAMED.get(module, module), name))
        if found is None:
            raise ReadError(
                f"a pickle that asks for {module}.{name}; only plain containers, numbers and numpy arrays "
                "are read from pickles: save its numbers as JSON"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise ReadError("a pickle with persistent references; save its numbers as JSON")


class _Class:
    """Stands for numpy.ndarray in a pickle; cannot be called."""


class _Dtype:
    """A numpy dtype under construction."""

    def __init__(self, code: str = "", *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ReadError(f"a pickle with arrays of type {code!r}; only numbers are read from pickles")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """A numpy array under construction."""

    value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _build(raw, dtype, shape, "F" if fortran else "C")


def _build(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise ReadError("a pickle with an array that is not made of numbers")
    shape = tuple(int(n) for n in shape)
    if math.prod(shape) * dtype.dtype.itemsize != len(raw) or any(n < 0 for n in shape):
        raise ReadError(f"a pickle with {len(raw)} bytes for an array of shape {shape}")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return _build(raw, dtype, shape, order)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    return _build(raw, dtype, (), "C").item()


def _encode(text: Any, codec: str) -> bytes:
    if codec != "latin1":
        raise ReadError(f"a pickle with text in codec {codec!r}")
    return str(text).encode("latin1")


def _empty_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Class(),
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _empty_bytes,  # how old protocols write b""
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): OrderedDict,
}


def _settled(value: Any) -> Any:
    """`value` with finished arrays; tuples stay tuples, keys are kept."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_settled(item) for item in value)
    if isinstance(value, _Dtype | _Class):
        raise ReadError("a pickle with types instead of values")
    return value
