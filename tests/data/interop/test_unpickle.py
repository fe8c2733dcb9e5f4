"""Pickles from strangers: data comes through unchanged, code never runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.interop.unpickle import load


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_through(protocol: int) -> None:
    value = {
        "spacing": [3.0, 0.7, 0.7],
        "origin": (1.5, -2.0, 1e300),
        "none": None,
        "order": OrderedDict(a=1),
        1: True,
        "scalar": np.float64(2.5),
        "integer": np.int64(-3),
        "box": np.array([[0, 5], [2, 9]]),
        "floats": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(4, dtype=">i2"),
        "empty": np.zeros((0, 4), np.uint8),
        "flags": np.array([True, False]),
        "bytes": (b"", b"ab"),
        "set": {1, 2},
        "nested": [{"a": (np.arange(3),)}],
    }
    found = load(pickle.dumps(value, protocol), "case.pkl")
    np.testing.assert_equal(found, value)
    assert found["floats"].dtype == np.float32


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Hostile(os.system, "touch {file}"), "posix.system"),
        (Hostile(eval, "open('{file}', 'w')"), "eval"),
        (Hostile(getattr, {}, "get"), "getattr"),
        (Hostile(np.load, "{file}"), "numpy"),
        (Path("x"), "pathlib"),
        (np.array([{"a": 1}], object), "type 'O8'"),
        (np.array(["text"]), "type 'U4'"),
    ],
    ids=["system", "eval", "getattr", "np.load", "path", "objects", "text"],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, value: Any, named: str) -> None:
    flag = tmp_path / "ran"
    if isinstance(value, Hostile):
        value.arguments = tuple(a.format(file=flag) if isinstance(a, str) else a for a in value.arguments)
    with pytest.raises(ReadError, match=rf"^case\.pkl: .*{named}"):
        load(pickle.dumps({"a": value}), "case.pkl")
    assert not flag.exists()


def test_damage_is_one_line(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.arange(100)})
    for cut in range(1, len(data), 7):
        with pytest.raises(ReadError, match=r"^case\.pkl: "):
            load(data[:cut], "case.pkl")


def test_an_array_with_a_false_shape_is_refused() -> None:
    data = pickle.dumps(np.arange(6, dtype=np.int64), 2)
    assert b"K\x06\x85" in data  # the shape (6,)
    with pytest.raises(ReadError, match="48 bytes for an array of shape"):
        load(data.replace(b"K\x06\x85", b"K\x60\x85"), "case.pkl")
