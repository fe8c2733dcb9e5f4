"""Members of archives: read at random, never extracted, and nothing that the archive claims is believed."""

from __future__ import annotations

import errno
import io
import shutil
import struct
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.interop import archive

from .foreign import npy, write_tar

MEMBERS = [("a/x.png", b"first"), ("b.json", b"{}"), ("c.bin", b"")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_of_a_tar_are_read_by_address(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS, mode)
    assert archive.opened(path).names() == ["a/x.png", "b.json", "c.bin"]
    address = archive.join(path, "a/x.png")
    assert (address.name, address.suffix) == ("x.png", ".png")
    assert archive.read(address) == b"first"
    assert archive.stat(address) == (5, path.stat().st_mtime_ns)
    assert archive.exists(address)


def test_an_address_nests(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, image=np.arange(6).reshape(2, 3))
    path = write_tar(tmp_path / "s.tar", [("pad", b"x" * 700), ("k.npz", buffer.getvalue())])
    address = archive.join(archive.join(path, "k.npz"), "image.npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(archive.read(address))), np.arange(6).reshape(2, 3))


def test_plain_files_and_folders_may_have_colons(tmp_path: Path) -> None:
    folder = tmp_path / "a::b"
    tar = write_tar(folder / "s.tar", MEMBERS)
    assert archive.read(archive.join(tar, "b.json")) == b"{}"
    (folder / "x::y.png").write_bytes(b"plain")
    assert archive.read(folder / "x::y.png") == b"plain"


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "a/../../x.png", "./a//b/./x.png", "x" * 300 + ".png"]
)
def test_strange_names_are_only_names(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "deep" / "s.tar", [(name, b"data")])
    before = sorted(tmp_path.rglob("*"))
    assert archive.read(archive.join(path, name)) == b"data"
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_are_not_members(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"member{kind!r}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert archive.opened(path).names() == []


def test_a_missing_member_or_archive_is_a_missing_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    with pytest.raises(FileNotFoundError, match="no member 'd'"):
        archive.read(archive.join(path, "d"))
    with pytest.raises(FileNotFoundError):
        archive.read(tmp_path / "t.tar::a")
    assert archive.exists(archive.join(path, "d"))
    assert not archive.exists(tmp_path / "t.tar::a")


def test_a_changed_archive_is_listed_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    archive.opened(path)
    write_tar(path, [("new", b"other bytes"), ("pad", b"x" * 20_000)])
    assert archive.read(archive.join(path, "new")) == b"other bytes"


def test_empty_tars(tmp_path: Path) -> None:
    nothing = tmp_path / "zero.tar"
    nothing.touch()
    with pytest.raises(ReadError, match="0 bytes"):
        archive.opened(nothing)
    tar = archive.opened(write_tar(tmp_path / "none.tar", []))
    assert (tar.names(), tar.fault) == ([], None)


def test_a_file_that_is_no_tar_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(b"no tar at all " * 100)
    tar = archive.opened(path)
    assert tar.names() == []
    assert "damaged or cut short after 0 members" in str(tar.fault)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77, 0.85])
def test_a_truncated_tar_keeps_what_came_before(tmp_path: Path, mode: str, keep: float) -> None:
    noise = np.random.default_rng(0)
    members = [(f"{n:02d}.bin", noise.bytes(3000)) for n in range(20)]
    path = write_tar(tmp_path / "s.tar", members, mode)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    tar = archive.opened(path)
    assert tar.fault
    assert 0 < len(tar.names()) < 20
    for name, content in members[: len(tar.names())]:
        assert archive.read(archive.join(path, name)) == content


def test_a_tar_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a", b"x" * 512), ("b", b"y" * 512)])
    path.write_bytes(path.read_bytes()[: 4 * 512])
    tar = archive.opened(path)
    assert tar.names() == ["a", "b"]
    assert "has no end after 2 members" in str(tar.fault)


def header(name: str, size: bytes) -> bytes:
    """A USTAR header with these 12 bytes of size and a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)[:512])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "size",
    [b"77777777777\0", b"\x80" + (1 << 62).to_bytes(11, "big"), b"\xff" * 12, b"\xff" * 10 + b"\xfe\0"],
    ids=["octal", "huge", "minus-one", "minus-512"],
)
def test_declared_sizes_are_not_believed(tmp_path: Path, size: bytes) -> None:
    good = write_tar(tmp_path / "good.tar", [("a", b"x" * 512)]).read_bytes()[:1024]
    path = tmp_path / "s.tar"
    path.write_bytes(good + header("bomb", size) + bytes(2048))
    tar = archive.opened(path)
    assert tar.names() == ["a"]
    assert tar.fault
    with pytest.raises(FileNotFoundError):
        archive.read(archive.join(path, "bomb"))


def test_a_zip_member_is_checked_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1 << 20))
        file.writestr("noise", np.random.default_rng(0).bytes(5000), zipfile.ZIP_STORED)
    monkeypatch.setattr(archive, "MOST_BYTES", 1 << 19)
    with pytest.raises(ReadError, match="expected at most"):
        archive.read(archive.join(path, "zeros"))
    data = bytearray(path.read_bytes())
    data[data.index(b"noise") + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match="noise: truncated or corrupt"):
        archive.read(archive.join(path, "noise"))


def test_a_full_temporary_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS, "w:gz")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 0))
    with pytest.raises(OSError, match=r"s\.tar does not fit unpacked.*TMPDIR") as caught:
        archive.opened(path)
    assert caught.value.errno == errno.ENOSPC


def test_only_the_last_archives_stay_open(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", [("a", bytes([n]))]) for n in range(archive.KEPT + 5)]
    for _ in range(2):
        for number, path in enumerate(paths):
            assert archive.read(archive.join(path, "a")) == bytes([number])
    assert len(archive._opened) <= archive.KEPT


@pytest.mark.parametrize(
    ("dtype", "payload"),
    [("object", None), ("<f4", struct.pack("<2f", 1, 2))],
    ids=["pickled", "shape-of-a-terabyte"],
)
def test_arrays_take_no_memory_and_run_no_code(tmp_path: Path, dtype: str, payload: bytes | None) -> None:
    from medloom.data.readers import read

    path = tmp_path / "a.npy"
    if payload is None:
        path.write_bytes(npy(np.array([[{"a": 1}]], dtype)))
    else:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": dtype, "fortran_order": False, "shape": (1 << 20, 1 << 18)}
        )
        path.write_bytes(buffer.getvalue() + payload)
    with pytest.raises(ReadError, match=r"a\.npy: truncated or corrupt array"):
        read([path])
