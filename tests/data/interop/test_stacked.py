"""data/interop/stacked.py: rows of an array in an .npz or .npy are members, read at random and verified."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.interop import archive, stacked

RNG = np.random.default_rng(0)


def rows(count: int = 40, shape: tuple[int, ...] = (16, 16), dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, 20, (count, *shape)).astype(dtype)  # compressible, but not trivially


@pytest.fixture(params=["deflated", "stored", "npy"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[np.ndarray, str]:
    """An array, and the address of what its rows are members of."""
    array = rows()
    if request.param == "npy":
        np.save(tmp_path / "x.npy", array)
        return array, f"{tmp_path}/x.npy"
    save = np.savez_compressed if request.param == "deflated" else np.savez
    save(tmp_path / "x.npz", other=rows(3), images=array)
    return array, f"{tmp_path}/x.npz::images.npy"


def test_rows_are_npy_files_of_their_own_in_any_order(
    place: tuple[np.ndarray, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "STEP", 1 << 10)
    array, address = place
    for number in (5, 6, 7, 39, 0, 17, 17, 3):
        data = archive.read(Path(f"{address}::{number}.npy"))
        np.testing.assert_array_equal(np.load(io.BytesIO(data)), array[number])
        assert archive.stat(Path(f"{address}::{number}.npy"))[0] == len(data)


def test_states_of_the_decoder_spare_the_way_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = rows(6, (1024, 1024))  # 6 MiB
    np.savez_compressed(tmp_path / "x.npz", images=array)
    monkeypatch.setattr(stacked, "STEP", 1 << 20)
    stack = archive.opened(tmp_path / "x.npz").stack("images.npy")  # type: ignore[attr-defined]
    stack.read("0.npy")
    seen: list[int] = []
    real = stacked._Cursor.take
    monkeypatch.setattr(stacked._Cursor, "take", lambda self, n: seen.append(n) or real(self, n))
    np.testing.assert_array_equal(np.load(io.BytesIO(stack.read("5.npy"))), array[5])
    assert sum(seen) < 3 << 20


def test_a_stack_nests_in_other_archives(tmp_path: Path) -> None:
    array, inner = rows(4), io.BytesIO()
    np.savez_compressed(inner, images=array)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as outer:
        outer.writestr("set.npz", inner.getvalue())
    data = archive.read(Path(f"{tmp_path}/all.zip::set.npz::images.npy::2.npy"))
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), array[2])


@pytest.mark.parametrize("name", ["40.npy", "-1.npy", "x.npy", "1e1.npy", "²"])
def test_a_row_that_is_not_there_is_no_file(place: tuple[np.ndarray, str], name: str) -> None:
    with pytest.raises(OSError, match="no row"):
        archive.read(Path(f"{place[1]}::{name}"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_not_one_row_is_given_out_of_a_damaged_member(tmp_path: Path, save) -> None:
    path = tmp_path / "x.npz"
    save(path, images=rows(200))
    sound = path.read_bytes()
    for place in RNG.integers(200, len(sound) - 200, 40).tolist():
        data = bytearray(sound)
        data[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(data)
        archive._opened.clear()
        with pytest.raises(ReadError, match=r"images\.npy: .*download it again"):
            archive.read(Path(f"{path}::images.npy::0.npy"))


def test_a_damaged_member_is_inflated_once_not_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=rows(200))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    surveys: list[int] = []
    real = stacked.Inflated._survey
    monkeypatch.setattr(stacked.Inflated, "_survey", lambda self: surveys.append(1) or real(self))
    for number in range(5):
        with pytest.raises(ReadError):
            archive.read(Path(f"{path}::images.npy::{number}.npy"))
    assert len(surveys) == 1


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.asfortranarray(rows(4)), "Fortran order"),
        (np.arange(5), "expected images stacked"),
        (np.array([["a", "b"]]), "not numbers"),
    ],
)
def test_what_is_no_stack_of_images_is_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=array)
    with pytest.raises(ReadError, match=reason):
        archive.read(Path(f"{tmp_path}/x.npz::images.npy::0.npy"))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.array([[{"a": 1}], [{}]], dtype=object))
    with pytest.raises(ReadError, match="not numbers"):
        archive.read(Path(f"{tmp_path}/x.npz::images.npy::0.npy"))


def test_an_array_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows())
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:-10])
    with pytest.raises(ReadError, match="bytes for shape"):
        archive.read(Path(f"{tmp_path}/x.npy::0.npy"))
