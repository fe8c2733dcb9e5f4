"""Archives from anywhere: honest ones arrive whole, hostile ones leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medloom.data.errors import MedloomError, ReadError, StoreError
from medloom.data.fetch import extract as extracting
from medloom.data.fetch.extract import MARKER, Contents, extract, kind_of

FILES = {"dataset.json": b"{}", "imagesTr/a.nii.gz": os.urandom(40_000), "labelsTr/a.nii.gz": b"x" * 1000}


def tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), 0o4777, 12345
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info, io.BytesIO(b"\0" * info.size) if info.isreg() else None)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def top(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"./Task09_Spleen/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_of_any_packing_arrives_whole(tmp_path, mode):
    litter = {"./Task09_Spleen/imagesTr/._a.nii.gz": b"apple", "__MACOSX/x": b"apple"}
    archive = tar(tmp_path / "Task09_Spleen.tar", {**top(FILES), **litter}, mode=mode)
    contents = extract(archive, tmp_path / "out", {"url": "https://host/a"})
    assert tree(tmp_path / "out") == FILES
    assert contents == Contents(3, sum(map(len, FILES.values()))) and contents.lie_in(tmp_path / "out")
    assert json.loads((tmp_path / "out" / MARKER).read_text())["url"] == "https://host/a"
    assert listing(tmp_path) == ["Task09_Spleen.tar", "out"]
    path = tmp_path / "out" / "dataset.json"
    assert stat.S_IMODE(path.stat().st_mode) & 0o7111 == 0 and path.stat().st_uid == os.getuid()


def test_a_zip_and_the_zips_in_it_become_folders(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"p1.png": b"1", "deep.zip": b"PK not really"}).read_bytes()
    archive = zipped(tmp_path / "a.zip", {"set/metadata.csv": b"a,b", "set/images/part_1.zip": inner})
    contents = extract(archive, tmp_path / "out", {})
    wanted = {
        "metadata.csv": b"a,b",
        "images/part_1/p1.png": b"1",
        "images/part_1/deep.zip": b"PK not really",
    }
    assert tree(tmp_path / "out") == wanted
    assert contents == Contents(3, sum(map(len, wanted.values())))


def test_a_single_packed_file_loses_its_suffix(tmp_path):
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(b"a,b"))
    extract(tmp_path / "table.csv.gz", tmp_path / "out", {})
    assert tree(tmp_path / "out") == {"table.csv": b"a,b"}


def test_what_is_data_is_not_taken_for_an_archive(tmp_path):
    zipped(tmp_path / "a.npz", {"x.npy": b""})
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "c.hdf5").write_bytes(b"\x89HDF" + b"\0" * 600)
    assert [kind_of(tmp_path / name) for name in ("a.npz", "b.nii.gz", "c.hdf5")] == [None] * 3


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "a/..\\..\\evil", "C:/evil", "C:\\evil"]
)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_that_lead_out_refuse_the_archive(tmp_path, make, name):
    archive = make(tmp_path / "a.bin", {"good": b"1", name: b"evil"})
    with pytest.raises(ReadError, match=r"refused, member .* leads out of its folder"):
        extract(archive, tmp_path / "deep" / "out", {})
    assert listing(tmp_path) == ["a.bin", "deep"] and listing(tmp_path / "deep") == []
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    "info",
    [
        member("l", tarfile.SYMTYPE, "/etc/passwd"),
        member("a/l", tarfile.SYMTYPE, "../../../etc/passwd"),
        member("l", tarfile.LNKTYPE, "../outside"),
        member("l", tarfile.SYMTYPE, "nowhere"),
        member("l", tarfile.SYMTYPE, "."),
        member("d", tarfile.CHRTYPE),
        member("d", tarfile.BLKTYPE),
        member("d", tarfile.FIFOTYPE),
        member("long/" + "n" * 300),
        member("deep/" * 1000 + "x"),
    ],
    ids=lambda info: f"{info.name[:6]}-{info.type.decode()}-{info.linkname}",
)
def test_links_out_devices_and_pipes_refuse_the_archive(tmp_path, info):
    archive = tar(tmp_path / "a.tar", {"good": b"1"}, info)
    with pytest.raises(ReadError, match="refused"):
        extract(archive, tmp_path / "out", {})
    assert listing(tmp_path) == ["a.tar"]


def test_writing_through_a_link_is_impossible(tmp_path):
    """The classic: a link to a folder outside, then a file below that link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for link in (str(outside), "../outside"):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(member("d", tarfile.SYMTYPE, link))
            archive.addfile(member("d/x", size=3), io.BytesIO(b"abc"))
        with pytest.raises(ReadError, match="refused"):
            extract(tmp_path / "a.tar", tmp_path / "out", {})
    assert listing(outside) == [] and listing(tmp_path) == ["a.tar", "outside"]


def test_links_inside_become_copies(tmp_path):
    links = member("d/soft", tarfile.SYMTYPE, "../good"), member("hard", tarfile.LNKTYPE, "d/soft")
    contents = extract(tar(tmp_path / "a.tar", {"good": b"123"}, *links), tmp_path / "out", {})
    assert tree(tmp_path / "out") == {"good": b"123", "d/soft": b"123", "hard": b"123"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert contents == Contents(3, 9)


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("l")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ReadError, match="is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out", {})


@pytest.mark.parametrize(
    "make", [lambda p, f: tar(p, f, mode="w:gz"), lambda p, f: tar(p, f, mode="w:xz"), zipped]
)
def test_bombs_are_cut(tmp_path, make, monkeypatch):
    monkeypatch.setattr(extracting, "FLOOR", 1 << 20)
    archive = make(tmp_path / "a.bin", {f"{i}": b"\0" * (4 << 20) for i in range(4)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(ReadError, match="a bomb"):
        extract(archive, tmp_path / "out", {})
    assert listing(tmp_path) == ["a.bin"]


def test_a_bomb_in_a_zip_in_a_zip_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "FLOOR", 1 << 20)
    inner = zipped(tmp_path / "inner", {"x": b"\0" * (20 << 20)})
    archive = zipped(tmp_path / "a.zip", {"inner.zip": inner.read_bytes()})
    with pytest.raises(ReadError, match="a bomb"):
        extract(archive, tmp_path / "out", {})


def test_a_bomb_that_lies_about_its_size_is_cut(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x": b"\0" * (8 << 20)})
    data = bytearray(archive.read_bytes())
    small = (1000).to_bytes(4, "little")
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(signature) + at
        data[place : place + 4] = small
    archive.write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        extract(archive, tmp_path / "out", {})
    assert listing(tmp_path) == ["a.zip"]


def test_a_bomb_in_a_header_is_cut(tmp_path):
    """An extended header is read into memory before any member is seen."""
    info = member("x" * 10)
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as stream:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        stream.write(b"\0" * (64 << 20))
    with pytest.raises(ReadError, match=f"a header of {64 << 20} bytes"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out", {})


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "MOST_MEMBERS", 10)
    with pytest.raises(ReadError, match="more than 10 members"):
        extract(tar(tmp_path / "a.tar", {str(i): b"" for i in range(11)}), tmp_path / "out", {})


def test_the_disk_is_looked_at_while_unpacking(tmp_path, monkeypatch):
    free = extracting.SPARE + 30_000
    monkeypatch.setattr(extracting.shutil, "disk_usage", lambda path: type("U", (), {"free": free}))
    for archive in (tar(tmp_path / "a.tar", FILES), zipped(tmp_path / "a.zip", FILES)):
        with pytest.raises(StoreError, match=r"no room to unpack .* free them and run the same"):
            extract(archive, tmp_path / "out", {})
    assert listing(tmp_path) == ["a.tar", "a.zip"]


def test_a_file_that_is_a_folder_too_is_refused(tmp_path):
    for files in ({"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}):
        with pytest.raises(ReadError, match="a file and a folder at once"):
            extract(tar(tmp_path / "a.tar", files), tmp_path / "out", {})


def test_a_second_member_of_a_name_replaces_the_first(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for data in (b"first", b"2"):
            info = member("x", size=len(data))
            archive.addfile(info, io.BytesIO(data))
    assert extract(tmp_path / "a.tar", tmp_path / "out", {}) == Contents(1, 1)
    assert tree(tmp_path / "out") == {"x": b"2"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_cut_anywhere_is_refused(tmp_path, mode):
    whole = tar(tmp_path / "whole.tar", FILES, mode=mode).read_bytes()
    end = len(whole.rstrip(b"\0")) if mode == "w" else len(whole) - 10
    cuts = {512, 513, 1024, end // 2, end} | ({1536, 512 * 82} if mode == "w" else set())
    for cut in sorted(cuts):
        path = tmp_path / "a.tar"
        path.write_bytes(whole[:cut])
        with pytest.raises(ReadError):
            extract(path, tmp_path / "out", {})
        assert listing(tmp_path) == ["a.tar", "whole.tar"], cut


def test_a_broken_header_in_the_middle_is_not_the_end(tmp_path):
    data = bytearray(tar(tmp_path / "a.tar", {"a": b"1", "b": b"2", "c": b"3"}).read_bytes())
    data[1024] ^= 0xFF  # the name of b: its header's sum is wrong
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        extract(tmp_path / "a.tar", tmp_path / "out", {})


def test_a_zip_whose_directory_lies_about_places_is_damaged(tmp_path):
    data = bytearray(zipped(tmp_path / "a.zip", {"x": b"1" * 100}).read_bytes())
    data[data.index(b"PK\x05\x06") + 16 + 1] = 1  # the offset of the directory: members lie before byte 0
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        extract(tmp_path / "a.zip", tmp_path / "out", {})


def test_encrypted_and_foreign_archives_say_what_to_do(tmp_path):
    data = bytearray(zipped(tmp_path / "a.zip", {"x": b"1"}).read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ReadError, match=r"is encrypted; unpack it yourself, then give --from FOLDER"):
        extract(tmp_path / "a.zip", tmp_path / "out", {})
    (tmp_path / "b.rar").write_bytes(b"Rar!\x1a\x07" + b"x" * 600)
    with pytest.raises(ReadError, match="unpack it yourself"):
        extract(tmp_path / "b.rar", tmp_path / "out", {})


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_the_checksum_of_a_packed_tar_is_verified(tmp_path, mode):
    path = tar(tmp_path / "a.tar", FILES, mode=mode)
    data = bytearray(path.read_bytes())
    data[-6 if mode == "w:gz" else len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        extract(path, tmp_path / "out", {})


def test_an_empty_archive_is_refused(tmp_path):
    with pytest.raises(ReadError, match="holds no file"):
        extract(tar(tmp_path / "a.tar", {}), tmp_path / "out", {})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_crash_and_never_leave_anything(tmp_path, data):
    kinds = {"tar": "w", "tgz": "w:gz", "xz": "w:xz", "zip": ""}
    kind = data.draw(st.sampled_from(sorted(kinds)))
    path = tmp_path / "a.bin"
    small = {"set/a": b"1" * 700, "set/b/c": b"2", "d": b"3"}
    if kind == "zip":
        zipped(path, small)
    else:
        tar(path, small, member("l", tarfile.SYMTYPE, "d"), mode=kinds[kind])
    broken = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(broken) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        broken[place] = value
    path.write_bytes(broken)
    out = tmp_path / "out"
    try:
        assert extract(path, out, {}).lie_in(out)
        assert not [p for p in out.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]
        extracting.shutil.rmtree(out)
    except MedloomError:
        pass
    assert listing(tmp_path) == ["a.bin"]


def test_a_killed_unpacking_leaves_nothing_that_looks_finished(tmp_path):
    archive = tar(tmp_path / "a.tar", {f"{i}.bin": os.urandom(200_000) for i in range(200)})
    code = "import sys; from pathlib import Path; from medloom.data.fetch.extract import extract\n"
    code += "extract(Path(sys.argv[1]), Path(sys.argv[2]), {})"
    child = subprocess.Popen([sys.executable, "-c", code, str(archive), str(tmp_path / "out")])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".partial-out/*"))) < 20:
        assert child.poll() is None and time.monotonic() < deadline
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    assert extract(archive, tmp_path / "out", {}).files == 200
    assert listing(tmp_path) == ["a.tar", "out"]


def test_packed_files_of_other_kinds_are_damage_not_crashes(tmp_path):
    for name, pack in (("a.bz2", bz2.compress), ("a.xz", lzma.compress), ("a.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(os.urandom(10_000))[:5000])
        with pytest.raises(ReadError, match="damaged"):
            extract(path, tmp_path / "out", {})
