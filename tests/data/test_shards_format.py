"""What goes into a shard: block sizes, encoding, levels, metadata; and that equal input gives equal bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.shards.format import (
    SUPPORTED_DTYPES,
    checksum,
    encode_array,
    encode_meta,
    halve,
    members_of,
    partition,
    split_name,
)


@pytest.mark.parametrize(
    ("shape", "spacing", "chunk", "block"),
    [
        ((1, 200, 512, 512), (1.0, 1.0, 1.0), (1, 64, 64, 64), (1, 32, 32, 32)),
        ((1, 200, 512, 512), None, (1, 64, 64, 64), (1, 32, 32, 32)),
        ((1, 40, 512, 512), (5.0, 0.7, 0.7), (1, 8, 64, 64), (1, 4, 32, 32)),  # thick slices
        ((2, 256, 256, 30), (1.0, 1.0, 2.0), (1, 64, 64, 30), (1, 32, 32, 16)),  # sagittal slices
        ((20, 100, 30), (1.0, 1.0, 1.0), (20, 64, 30), (20, 32, 30)),  # a label map
        ((1, 9, 9, 9), (float("nan"), 1.0, 1.0), (1, 9, 9, 9), (1, 9, 9, 9)),
    ],
)
def test_blocks_of_volumes_follow_the_spacing(shape, spacing, chunk, block):
    assert partition(shape, spacing, ndim=3) == (chunk, block)


def test_blocks_of_pictures():
    assert partition((3, 2048, 2048), None, ndim=2) == ((3, 256, 256), (3, 64, 64))
    assert partition((3, 300, 200), None, ndim=2, tiled=False) == ((3, 300, 200), (3, 300, 200))


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_every_dtype_keeps_its_type_size_and_its_values(dtype):
    array = (np.arange(2 * 40 * 50).reshape(1, 2, 40, 50) % 120).astype(dtype)
    data = encode_array(array, (1, 2, 40, 50), (1, 2, 32, 32))
    frame = blosc2.ndarray_from_cframe(data)
    assert frame.schunk.typesize == array.dtype.itemsize
    assert blosc2.Filter.SHUFFLE in frame.schunk.cparams.filters
    np.testing.assert_array_equal(frame[:], array)


def test_big_endian_arrays_are_stored_little_endian():
    array = np.arange(1000, dtype=">i2").reshape(1, 10, 10, 10)
    frame = blosc2.ndarray_from_cframe(encode_array(array, (1, 10, 10, 10), (1, 10, 10, 10)))
    np.testing.assert_array_equal(frame[:], array)
    assert frame.dtype == np.dtype("<i2")


@pytest.mark.parametrize("dtype", ["float64", "bool", "complex64", "int64"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ShardError, match="cannot be stored"):
        encode_array(np.zeros((1, 4, 4, 4), dtype), (1, 4, 4, 4), (1, 4, 4, 4))


def test_halve_is_the_mean_of_four_and_repeats_odd_edges():
    image = np.array([[[1, 2, 9], [3, 5, 10], [7, 7, 200]]], np.uint8)
    np.testing.assert_array_equal(halve(image), [[[3, 10], [7, 200]]])  # 11 / 4 = 2.75 -> 3, 9.5 -> 10
    signed = np.array([[[-5, -5], [-5, -6]]], np.int16)
    assert halve(signed)[0, 0, 0] == -5
    top = np.full((1, 2, 2), 65535, np.uint16)
    assert halve(top)[0, 0, 0] == 65535


def test_members_of_each_kind(example):
    names = {key: [m.name for m in members_of(sample)] for key, sample in example.samples.items()}
    assert names["vol-a"] == ["vol-a.json", "vol-a.b2nd", "vol-a.seg.b2nd"]
    assert names["pic-a"] == ["pic-a.json", "pic-a.b2nd", "pic-a.l1.b2nd", "pic-a.l2.b2nd"]
    assert names["pic-b"] == ["pic-b.json", "pic-b.b2nd"]
    assert names["pic-c"] == ["pic-c.json", "pic-c.jpg", "pic-c.seg.b2nd"]


def test_jpeg_bytes_are_stored_untouched(example):
    sample = example.samples["pic-c"]
    assert [m.data for m in members_of(sample) if m.name.endswith(".jpg")] == [sample.jpeg]


def test_metadata_outside_the_list_is_refused(example):
    meta = dict(example.samples["vol-a"].meta)
    with pytest.raises(ShardError, match="PatientName"):
        encode_meta("vol-a", meta | {"PatientName": "Doe^Jane"})
    del meta["affine"]
    with pytest.raises(ShardError, match="affine"):
        encode_meta("vol-a", meta)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ä", "x" * 81, "a b"])
def test_keys_that_tar_or_webdataset_would_split_are_refused(example, key):
    sample = example.samples["pic-b"]
    bad = type(sample)(key=key, image=sample.image, meta=sample.meta | {"key": key})
    with pytest.raises(ShardError, match="key"):
        list(members_of(bad))


def test_unknown_member_names_are_refused():
    assert split_name("a-1.l12.b2nd") == ("a-1", 2, 12)
    for name in ("a.png", "a", "a.lx.b2nd", "a.seg.json"):
        with pytest.raises(ShardError, match="unknown member"):
            split_name(name)


def test_checksum_is_the_common_crc32():
    import zlib

    assert checksum(b"medloom") == zlib.crc32(b"medloom")


SCRIPT = """
import hashlib, sys
import numpy as np
import blosc2
blosc2.set_nthreads(int(sys.argv[1]))
from medloom.data.shards.format import encode_array
x = (np.random.default_rng(0).normal(size=(1, 130, 140, 150)) * 200).astype(np.int16)
print(hashlib.sha256(encode_array(x, (1, 64, 64, 64), (1, 32, 32, 32))).hexdigest())
"""


def test_bytes_do_not_depend_on_the_process_or_its_threads(tmp_path: Path):
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, n], check=True, capture_output=True, cwd=tmp_path
        ).stdout
        for n in ("1", "1", "4")
    }
    assert len(outputs) == 1
