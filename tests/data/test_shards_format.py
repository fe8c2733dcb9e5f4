"""What goes into a shard: block sizes, encoding, levels, metadata; and that equal input gives equal bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.shards.codec import PROFILES, SUPPORTED_DTYPES, encode_array, scaled_integers, unscaled
from medloom.data.shards.format import (
    checksum,
    encode_meta,
    halve,
    members_of,
    partition,
    split_name,
)
from medloom.data.shards.reader import SampleRef, Shards

from .conftest import make_sample, write_folder


@pytest.mark.parametrize(
    ("shape", "spacing", "chunk", "block"),
    [
        ((1, 200, 512, 512), (1.0, 1.0, 1.0), (1, 64, 64, 64), (1, 32, 32, 32)),
        ((1, 200, 512, 512), None, (1, 64, 64, 64), (1, 32, 32, 32)),
        ((1, 40, 512, 512), (5.0, 0.7, 0.7), (1, 8, 64, 64), (1, 4, 32, 32)),  # thick slices
        ((2, 256, 256, 30), (1.0, 1.0, 2.0), (1, 64, 64, 30), (1, 32, 32, 16)),  # sagittal slices
        ((20, 100, 30), (1.0, 1.0, 1.0), (20, 64, 30), (20, 32, 30)),  # a label map
        ((1, 35, 50, 36), (1.0, 1.0, 1.0), (1, 35, 50, 36), (1, 35, 50, 36)),  # one chunk: one block
        ((1, 9, 9, 9), (float("nan"), 1.0, 1.0), (1, 9, 9, 9), (1, 9, 9, 9)),
    ],
)
def test_blocks_of_volumes_follow_the_spacing(shape, spacing, chunk, block):
    assert partition(shape, spacing, ndim=3) == (chunk, block)


def test_blocks_of_pictures():
    assert partition((3, 2048, 2048), None, ndim=2) == ((3, 256, 256), (3, 64, 64))
    assert partition((3, 300, 200), None, ndim=2, tiled=False) == ((3, 300, 200), (3, 300, 200))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_every_dtype_keeps_its_type_size_and_its_values(dtype, profile):
    array = (np.arange(2 * 40 * 50).reshape(1, 2, 40, 50) % 120 / 7).astype(dtype)
    data = encode_array(array, (1, 2, 40, 50), (1, 2, 32, 32), profile)
    frame = blosc2.ndarray_from_cframe(data)
    assert frame.schunk.typesize == array.dtype.itemsize
    codec, filter_ = {"small": ("ZSTD", "SHUFFLE"), "fast": ("LZ4", "BITSHUFFLE")}[profile]
    assert frame.schunk.cparams.codec == blosc2.Codec[codec]
    assert blosc2.Filter[filter_] in frame.schunk.cparams.filters
    np.testing.assert_array_equal(frame[:], array)


def test_the_difference_filter_is_taken_where_it_pays_and_decodes_in_boxes():
    smooth = np.cumsum(np.random.default_rng(0).integers(-2, 3, (1, 70, 80, 90)), -1).astype(np.int16)
    noise = np.random.default_rng(1).integers(0, 1 << 15, smooth.shape).astype(np.int16)
    taken = []
    for array in (smooth, noise):
        frame = blosc2.ndarray_from_cframe(encode_array(array, (1, 64, 64, 64), (1, 32, 32, 32)))
        taken.append(blosc2.Filter.BYTEDELTA in frame.schunk.cparams.filters)
        np.testing.assert_array_equal(frame[:, 40:70, 10:50, 63:70], array[:, 40:70, 10:50, 63:70])
    assert taken == [True, False]


def test_xor_with_the_pixel_before_only_where_the_picture_is_one_block():
    picture = np.random.default_rng(0).integers(0, 255, (3, 90, 80), np.uint8)
    whole = blosc2.ndarray_from_cframe(encode_array(picture, (3, 90, 80), (3, 90, 80)))
    tiled = blosc2.ndarray_from_cframe(encode_array(picture, (3, 64, 64), (3, 32, 32)))
    assert blosc2.Filter.DELTA in whole.schunk.cparams.filters
    assert blosc2.Filter.DELTA not in tiled.schunk.cparams.filters
    np.testing.assert_array_equal(whole[:], picture)
    np.testing.assert_array_equal(tiled[:, 70:80, 33:40], picture[:, 70:80, 33:40])


@pytest.mark.parametrize(
    ("codes", "scale", "stored"),
    [
        (np.arange(0, 200), 5.95897, np.uint8),
        (np.arange(-3000, 3000), 1.0, np.int16),
        (np.arange(0, 65536), 0.0123456, np.uint16),
        (np.arange(-32768, 32768), 1e-7, np.int16),
    ],
)
def test_scaled_integers_come_back_bit_for_bit(codes, scale, stored):
    generator = np.random.default_rng(0)
    image = unscaled(generator.choice(codes, (1, 30, 40, 50)).astype(np.int32), scale)
    found = scaled_integers(image)
    assert found is not None
    assert found[0].dtype == stored
    assert unscaled(*found).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype(np.float32),
        np.full((1, 4, 4, 4), 3.5, np.float32),
        np.where(np.arange(64).reshape(1, 4, 4, 4) % 2, -0.0, 2.0).astype(np.float32),
        (np.arange(100_000) * 0.5).astype(np.float32).reshape(1, 10, 100, 100),  # more than 16 bit
        np.append(np.arange(999) % 200 + 1, np.pi).astype(np.float32).reshape(1, 10, 10, 10),  # one voxel
        np.array([0, 1e-45, 3e38, 1], np.float32).reshape(1, 1, 2, 2),
    ],
)
def test_other_floats_stay_floats(image):
    assert scaled_integers(image) is None
    frame = blosc2.ndarray_from_cframe(encode_array(image, image.shape, image.shape))
    assert frame[:].tobytes() == image.tobytes()
    assert "scale" not in frame.schunk.meta


def test_scaled_images_are_read_as_they_were(tmp_path):
    image = unscaled(np.random.default_rng(0).integers(0, 900, (1, 70, 40, 50)), 2.2086275)
    sample = make_sample("a-0", image, spacing=[1.0, 1.0, 1.0])
    shards = Shards.open(write_folder(tmp_path, {"a-3d": [sample]}).path)
    ref = SampleRef(0, 0)
    assert shards.read(ref).tobytes() == image.tobytes()
    box = shards.read(ref, (30, 5, 7), (36, 20, 30))
    assert box.dtype == np.float32
    np.testing.assert_array_equal(box, image[:, 30:66, 5:25, 7:37])
    (tmp_path / "a-3d-00000.idx").unlink()  # the index that is made again knows the scale too
    np.testing.assert_array_equal(Shards.open(tmp_path).read(ref), image)
    assert (tmp_path / "a-3d-00000.tar").stat().st_size < image.nbytes // 2


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
    assert names["pic-a"] == ["pic-a.json", "pic-a.b2nd", "pic-a.l2.b2nd"]
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
