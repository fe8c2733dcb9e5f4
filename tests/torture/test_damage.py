"""Truncated and bit-flipped copies of every form are read or refused; nothing else, and never a crash.

A flipped bit in stored pixels cannot be noticed where the format has no checksum; what is asserted for all is
that the reader answers. Where it can be noticed (gzip, PNG) or something is missing, a refusal is expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .form import Form, generator
from .reader_process import ReaderProcess
from .zoo import FORMS

CALM = ("read", "refused")
SOUND = [form for form in FORMS if form.check is not None and form.damage]
EXAMPLES = int(os.environ.get("MEDLOOM_FUZZ", "120"))  # of each fuzz test


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderProcess]:
    with ReaderProcess() as process:
        yield process


def largest(paths: list[Path]) -> Path:
    return max(paths, key=lambda path: path.stat().st_size)


def check_calm(form: Form, answer: tuple[str, str], how: str) -> None:
    assert answer[0] in CALM, f"{form.name}, {how}: {answer[0]}: {answer[1]}"
    assert answer[0] == "read" or ("\n" not in answer[1] and len(answer[1]) > 30), answer[1]


@pytest.mark.parametrize("form", SOUND, ids=lambda form: form.name)
def test_truncated_copies(form: Form, tmp_path: Path, reader: ReaderProcess) -> None:
    paths = form.make(tmp_path)
    victim = largest(paths)
    data = victim.read_bytes()
    words = {}
    for share in (0.0, 0.02, 0.2, 0.5, 0.9):
        victim.write_bytes(data[: int(len(data) * share)])
        words[share] = reader.read(paths, form.read)
        check_calm(form, words[share], f"{share:.0%} of {victim.name}")
    assert words[0.0][0] == words[0.02][0] == "refused", words
    if form.name not in ENDS_EARLY:
        assert words[0.5][0] == "refused", f"{form.name}: half of the file reads as an image: {words[0.5]}"


# Half of these still holds all that is read: what follows are extensions, padding or other pictures.
ENDS_EARLY = {
    "nifti-trailing-bytes",
    "nifti-gz-with-padding",
    "tiff-description",
    "tiff-sparse-tiles",
    "jpeg-many-pictures",
    "jpeg-tail",
    "file-trailing-padding",
}


@pytest.mark.parametrize("form", SOUND, ids=lambda form: form.name)
def test_flipped_copies(form: Form, tmp_path: Path, reader: ReaderProcess) -> None:
    paths = form.make(tmp_path)
    victim = largest(paths)
    data = victim.read_bytes()
    draw = generator(form.name)
    places = [int(place) for place in draw.integers(0, len(data), 4)]
    places += [int(place) for place in draw.integers(0, min(len(data), 600), 4)]  # headers
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(draw.integers(0, 8))
        victim.write_bytes(bytes(damaged))
        check_calm(form, reader.read(paths, form.read), f"a bit of byte {place}")


@pytest.mark.parametrize("name", ["nifti1-gz", "png-grey-8", "png-rgb-16"])
def test_a_flipped_bit_under_a_checksum_is_noticed(name: str, tmp_path: Path, reader: ReaderProcess) -> None:
    (form,) = (form for form in FORMS if form.name == name)
    paths = form.make(tmp_path)
    data = paths[0].read_bytes()
    for place in np.linspace(len(data) * 0.3, len(data) * 0.9, 12).astype(int):
        damaged = bytearray(data)
        damaged[place] ^= 4
        paths[0].write_bytes(bytes(damaged))
        assert reader.read(paths)[0] == "refused", f"byte {place} of {len(data)}"


# One change of a file: (kind, where in it as a share, how much, value).
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "byte", "cut", "drop", "repeat", "word", "zero")),
        st.floats(0, 1),
        st.integers(1, 64),
        st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 3, 5)),
    ),
    min_size=1,
    max_size=5,
)
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def changed(data: bytes, changes: list[tuple[str, float, int, int]], head: bool) -> bytes:
    """`data` after the changes; with `head` they fall on the first kilobyte."""
    result = bytearray(data)
    for kind, share, length, value in changes:
        if not result:
            break
        place = int(share * (min(len(result), 1024 if head else len(result)) - 1))
        match kind:
            case "flip":
                result[place] ^= 1 << (length % 8)
            case "byte":
                result[place] = value & 0xFF
            case "cut":
                del result[place:]
            case "drop":
                del result[place : place + length]
            case "repeat":
                result[place:place] = result[place : place + length]
            case "word":
                result[place : place + 4] = value.to_bytes(4, "little" if length % 2 else "big")
            case "zero":
                result[place : place + length] = bytes(min(length, len(result) - place))
    return bytes(result)


@pytest.mark.parametrize("family", ["nifti", "dicom", "syntax", "png", "jpeg", "tiff", "others"])
def test_no_change_of_a_file_ends_the_process(family: str, tmp_path: Path, reader: ReaderProcess) -> None:
    forms = members(family)
    originals: dict[str, tuple[list[Path], Path, bytes]] = {}

    @FEW
    @given(form=st.sampled_from(forms), changes=CHANGES, head=st.booleans())
    def fuzz(form: Form, changes: list[tuple[str, float, int, int]], head: bool) -> None:
        if form.name not in originals:
            folder = tmp_path / form.name
            folder.mkdir()
            paths = form.make(folder)
            originals[form.name] = (paths, largest(paths), largest(paths).read_bytes())
        paths, victim, data = originals[form.name]
        victim.write_bytes(changed(data, changes, head))
        check_calm(form, reader.read(paths, form.read), f"{changes}, head {head}")

    fuzz()


def members(family: str) -> list[Form]:
    """Forms of a family, by what their files are called."""
    starts = {
        "nifti": ("nifti", "pair", "type", "slope", "qform", "sform", "four", "two", "one"),
        "dicom": ("series", "pixels", "loop", "enhanced", "file", "slice"),
        "syntax": ("syntax", "frame"),
        "others": ("meta", "nrrd", "array", "video"),
        "png": ("png", "gif", "bmp", "webp", "pgm"),
    }.get(family, (family,))
    found = [form for form in SOUND if form.name.startswith(starts)]
    assert len(found) > 10
    return found
