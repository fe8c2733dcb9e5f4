"""Files that the fuzz tests found, kept so that they are tried every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read

from .zoo import FORMS


def test_a_panic_of_the_rle_plug_in_is_a_refusal(tmp_path: Path) -> None:
    """It is written in Rust, whose panics are no Exception: one such file ended a build."""
    (form,) = (form for form in FORMS if form.name == "syntax-rle-16")
    (path,) = form.make(tmp_path)
    data = path.read_bytes()
    place = int(0.5 * (len(data) - 1))
    path.write_bytes(data[:place] + data[place + 1 :])
    with pytest.raises(ReadError, match="cannot be decoded"):
        read([path])
