"""Shards are plain tars: `tar` and stock webdataset read them; a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tarfile
from pathlib import Path

import blosc2
import numpy as np
import pytest
import webdataset
from medloom.data.errors import ShardError
from medloom.data.shards import writer as writing
from medloom.data.shards.writer import ShardWriter


def test_tar_lists_and_extracts_the_members(example, tmp_path):
    tar = example.tar("vol-3d-00000.tar")
    listing = subprocess.run(["tar", "tf", tar], check=True, capture_output=True, text=True).stdout.split()
    assert listing == [
        "vol-a.json", "vol-a.b2nd", "vol-a.seg.b2nd", "vol-b.json", "vol-b.b2nd",
    ]  # fmt: skip
    subprocess.run(["tar", "xf", tar, "-C", tmp_path], check=True)
    volume = blosc2.open(str(tmp_path / "vol-a.b2nd"), mode="r")
    np.testing.assert_array_equal(volume[:], example.samples["vol-a"].image)


def test_headers_are_ustar_without_times_or_owners(example):
    with tarfile.open(example.tar("pic-2d-00000.tar")) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert info.isreg()
            assert not info.pax_headers
    assert example.tar("pic-2d-00000.tar").read_bytes()[257:263] == b"ustar\0"


def test_stock_webdataset_reads_them(example):
    urls = [str(example.tar(name)) for name in ("vol-3d-00000.tar", "pic-2d-00000.tar")]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    seen = {}
    for item in dataset:
        sample = example.samples[item["__key__"]]
        assert json.loads(item["json"]) == sample.meta
        if "b2nd" in item:
            np.testing.assert_array_equal(blosc2.ndarray_from_cframe(item["b2nd"])[:], sample.image)
        else:
            assert item["jpg"] == sample.jpeg
        assert ("seg.b2nd" in item) == (sample.mask is not None)
        seen[item["__key__"]] = sorted(k for k in item if not k.startswith("__"))
    assert list(seen) == list(example.samples)
    assert seen["pic-a"] == ["b2nd", "json", "l2.b2nd"]


def test_webdataset_decodes_jpeg_and_json_by_itself(example):
    dataset = webdataset.WebDataset(str(example.tar("pic-2d-00000.tar")), shardshuffle=False).decode("rgb8")
    item = next(item for item in dataset if item["__key__"] == "pic-c")
    np.testing.assert_array_equal(item["jpg"].transpose(2, 0, 1), example.samples["pic-c"].image)
    assert item["json"]["dataset"] == "pic"


def test_equal_samples_give_equal_files(example, example_copy):
    for path in sorted(example.path.iterdir()):
        assert path.read_bytes() == (example_copy.path / path.name).read_bytes(), path.name


def test_blosc2_opens_a_frame_inside_the_tar_by_offset(example):
    from medloom.data.shards.index import index_path, load

    tar = example.tar("vol-3d-00000.tar")
    row = load(index_path(tar)).members_of(0)[1]
    array = blosc2.open(str(tar), mode="r", offset=row.offset)
    np.testing.assert_array_equal(array[:], example.samples["vol-a"].image)


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("after", [0, 1, 7, 12])
def test_a_full_disk_is_named_and_leaves_nothing(example, tmp_path, monkeypatch, after):
    writes = 0

    class Full:
        def __init__(self, handle):
            self.handle = handle

        def write(self, data):
            nonlocal writes
            writes += 1
            if writes > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.handle.write(data)

        def close(self):
            self.handle.close()

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)))
    target = tmp_path / "vol-3d-00000.tar"
    with (
        pytest.raises(
            ShardError, match=r"vol-3d-00000\.tar: no space left after .* run the same command again"
        ),
        ShardWriter(target) as writer,
    ):
        for key in ("vol-a", "vol-b"):
            writer.add(example.samples[key])
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("where", ["rename", "index"])
def test_a_disk_full_at_the_end_leaves_nothing(example, tmp_path, monkeypatch, where):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "index":
        monkeypatch.setattr(writing, "write_bytes", full)
    else:
        monkeypatch.setattr("medloom.data.atomic._fsync", full)
    with pytest.raises(ShardError, match="no space left"), ShardWriter(tmp_path / "v-3d-00000.tar") as writer:
        writer.add(example.samples["vol-a"])
    assert _leftovers(tmp_path) == []


def test_an_unwritable_folder_is_named(example, tmp_path):
    with pytest.raises(ShardError, match=r"nowhere.*cannot be written"):
        ShardWriter(tmp_path / "nowhere" / "v-3d-00000.tar").__enter__()


def test_an_exception_while_writing_leaves_nothing(example, tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "v-3d-00000.tar") as writer:
        writer.add(example.samples["vol-a"])
        raise KeyboardInterrupt
    assert _leftovers(tmp_path) == []


def test_a_sample_that_is_refused_leaves_no_half_of_itself(example, tmp_path):
    bad = example.samples["vol-a"]
    bad = type(bad)(key=bad.key, image=bad.image.astype(np.float64), meta=bad.meta)
    with ShardWriter(tmp_path / "vol-3d-00000.tar") as writer:
        with pytest.raises(ShardError, match="float64"):
            writer.add(bad)
        writer.add(example.samples["vol-b"])
    assert writer.entry.count == 1
    with tarfile.open(writer.path) as archive:
        assert archive.getnames() == ["vol-b.json", "vol-b.b2nd"]


def test_a_really_full_disk(example, tmp_path):
    """A file system of one megabyte, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this user has not")
    try:
        with pytest.raises(ShardError, match="no space left"), ShardWriter(disk / "v-3d-00000.tar") as writer:
            writer.add(example.samples["vol-a"])
            writer.add(example.samples["pic-a"])
        assert _leftovers(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
