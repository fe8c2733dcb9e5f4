"""Reading shards: whole, boxes, resized, masks; exact bytes, verified bytes, over processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from medloom.data import open_shards
from medloom.data.errors import ShardError
from medloom.data.shards import frame
from medloom.data.shards import index as indexing
from medloom.data.shards.pictures import resize
from medloom.data.shards.reader import SampleRef, Shards

from .conftest import make_sample, smooth, write_folder


@pytest.fixture
def shards(example):
    with_handles = Shards.open(example.path)
    yield with_handles
    with_handles.close()


def test_everything_comes_back_as_it_was_put_in(example, shards):
    assert len(shards) == 5
    assert [shards.meta(ref)["key"] for ref in shards.refs()] == list(example.samples)
    for ref in shards.refs():
        sample = shards.sample(ref)
        expected = example.samples[sample.key]
        np.testing.assert_array_equal(sample.image, expected.image)
        assert sample.image.dtype == expected.image.dtype
        assert sample.meta == expected.meta
        assert sample.jpeg == expected.jpeg
        assert (sample.mask is None) == (expected.mask is None)
        if expected.mask is not None:
            np.testing.assert_array_equal(sample.mask, expected.mask)


def test_random_boxes_equal_slices_of_the_whole(example, shards):
    generator = np.random.default_rng(0)
    for ref in shards.refs():
        expected = example.samples[shards.meta(ref)["key"]]
        spatial = expected.image.shape[1:]
        for _ in range(25):
            origin = [int(generator.integers(n)) for n in spatial]
            shape = [int(generator.integers(1, n - o + 1)) for o, n in zip(origin, spatial, strict=True)]
            place = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
            np.testing.assert_array_equal(
                shards.read(ref, origin, shape), expected.image[(slice(None), *place)]
            )
            if expected.mask is not None:
                np.testing.assert_array_equal(shards.read_mask(ref, origin, shape), expected.mask[place])


@pytest.mark.parametrize(
    ("origin", "shape"),
    [((-1, 0, 0), (5, 5, 5)), ((0, 0, 0), (71, 5, 5)), ((0, 0, 0), (0, 5, 5)), ((0, 0), (5, 5))],
)
def test_boxes_outside_are_refused(shards, origin, shape):
    with pytest.raises(ShardError, match="box"):
        shards.read(SampleRef(0, 0), origin, shape)


def test_refs_outside_are_refused(shards):
    for ref in (SampleRef(2, 0), SampleRef(0, 2), SampleRef(-1, 0), SampleRef(0, -1)):
        with pytest.raises(ShardError, match="there are 2"):
            shards.read(ref)
    with pytest.raises(ShardError, match="pic-2d"):
        list(shards.refs("nowhere"))


def test_sources_and_keys_are_found(shards):
    assert [shards.source_of(ref.shard).id for ref in shards.refs("pic-2d")] == ["pic-2d"] * 3
    assert shards.find("pic-b") == SampleRef(1, 1)
    with pytest.raises(ShardError, match="no sample"):
        shards.find("pic-z")


def test_a_crop_reads_only_its_chunks(example, shards, monkeypatch):
    ref = SampleRef(0, 0)
    shards.read(ref)  # opens the shard
    member = shards._handle(0).index.members_of(0)[1]
    seen = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: seen.append(len(to[0])) or real(fd, to, at))
    crop = shards.read(ref, (0, 0, 64), (64, 64, 26))
    np.testing.assert_array_equal(crop, example.samples["vol-a"].image[:, :64, :64, 64:90])
    assert 0 < sum(seen) < member.size / 3


def test_a_picture_comes_with_its_description_in_one_read(example, shards, monkeypatch):
    ref = shards.find("pic-c")  # a JPEG
    box, size = (0.0, 0.0, 500.0, 640.0), (100, 128)
    want = shards.meta(ref), shards.read_resized(ref, box, size)
    seen, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *place: seen.append(place[1:]) or real(*place))
    got = shards.meta(ref, ahead=True), shards.read_resized(ref, box, size)
    assert len(seen) == 1 and got[0] == want[0]
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(shards.read_resized(ref, box, size), want[1])
    assert len(seen) == 2  # what was fetched ahead serves once
    shards.meta(ref, ahead=True)
    np.testing.assert_array_equal(shards.read(shards.find("pic-a")), example.samples["pic-a"].image)
    np.testing.assert_array_equal(shards.read(ref), example.samples["pic-c"].image)


@pytest.mark.parametrize("channels", [[0], [1], [1, 0], [0, 1], [1, 1, 0]])
def test_chosen_channels_equal_those_of_the_whole(example, shards, channels):
    for key in ("vol-b", "pic-b", "pic-c"):
        image = example.samples[key].image
        got = shards.read(shards.find(key), channels=channels)
        np.testing.assert_array_equal(got, image[channels])
        box = [2] * (image.ndim - 1), [5] * (image.ndim - 1)
        place = (channels, *[slice(2, 7)] * (image.ndim - 1))
        np.testing.assert_array_equal(shards.read(shards.find(key), *box, channels=channels), image[place])
    for wrong in ([], [3], [-1]):
        with pytest.raises(ShardError, match=r"channels .*: the image has"):
            shards.read(shards.find("vol-b"), channels=wrong)


def test_channels_that_are_left_out_are_not_read(tmp_path):
    image = smooth((4, 24, 40, 40), 900, np.int16)
    folder = write_folder(tmp_path / "four", {"v-3d": [make_sample("v-a", image, spacing=[1.0] * 3)]})
    shards = Shards.open(folder.path)
    handle = shards._handle(0)
    seen, real = [], frame._read_file(handle.source)
    handle_source, handle.source = handle.source, lambda ranges: seen.extend(ranges) or real(ranges)
    read = {}
    for channels in ([2], [0, 3], None):
        seen.clear()
        wanted = image if channels is None else image[channels]
        np.testing.assert_array_equal(shards.read(SampleRef(0, 0), channels=channels), wanted)
        read[len(wanted)] = sum(size for _, size in seen)
    assert 0 < read[1] < 0.3 * read[4] and 0.4 * read[4] < read[2] < 0.6 * read[4]
    handle.source = handle_source


@pytest.mark.parametrize("key", ["pic-a", "pic-b", "pic-c"])
@pytest.mark.parametrize("box_fraction", [1.0, 0.6, 0.11])
def test_resized_boxes_are_near_the_resized_original(example, shards, key, box_fraction):
    image = example.samples[key].image
    _, height, width = image.shape
    h, w = height * box_fraction, width * box_fraction
    y, x = (height - h) * 0.7, (width - w) * 0.3
    got = shards.read_resized(shards.find(key), (y, x, y + h, x + w), (32, 40))
    want = resize(image, (y, x, y + h, x + w), (32, 40))
    assert got.shape == want.shape == (image.shape[0], 32, 40)
    assert got.dtype == image.dtype
    scale = float(image.max()) - float(image.min())
    assert np.abs(got.astype(float) - want.astype(float)).mean() < 0.01 * scale


def test_resizing_to_the_same_size_changes_nothing(example, shards):
    for key in ("pic-a", "pic-b", "pic-c"):
        image = example.samples[key].image
        whole = (0, 0, *image.shape[1:])
        np.testing.assert_array_equal(shards.read_resized(shards.find(key), whole, image.shape[1:]), image)


def test_resizing_reads_a_smaller_level(example, shards, monkeypatch):
    ref = shards.find("pic-a")
    image = example.samples["pic-a"].image
    rows = shards._handle(ref.shard).index.members_of(ref.ordinal)
    whole = next(row.size for row in rows if row.kind == 2 and row.level == 0)
    seen = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: seen.append(len(to[0])) or real(fd, to, at))
    shards.read_resized(ref, (0, 0, *image.shape[1:]), (150, 150))
    assert 0 < sum(seen) < whole / 8


def test_resized_boxes_outside_and_volumes_are_refused(shards):
    for box in ((0, 0, 41, 50), (5, 5, 5, 9), (-1, 0, 9, 9), (0, 0, 9)):
        with pytest.raises(ShardError, match="box"):
            shards.read_resized(shards.find("pic-b"), box, (8, 8))
        with pytest.raises(ShardError, match="box"):
            shards.read_resized(shards.find("pic-c"), (box[0], box[1], *(1e4,) * (len(box) - 2)), (8, 8))
    with pytest.raises(ShardError, match="volume"):
        shards.read_resized(SampleRef(0, 0), (0, 0, 8, 8), (8, 8))


def test_pickles_as_its_path(example, shards):
    shards.read(SampleRef(0, 0))
    data = pickle.dumps(shards)
    assert len(data) < 400
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.read(SampleRef(1, 1)), shards.read(SampleRef(1, 1)))
    copy.close()


def _sums(shards, queue):
    queue.put([float(shards.read(ref).astype(np.float64).sum()) for ref in shards.refs()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_is_read_from_other_processes_while_open_here(shards, method):
    expected = [float(shards.read(ref).astype(np.float64).sum()) for ref in shards.refs()]
    context = multiprocessing.get_context(method)
    queues = [context.Queue() for _ in range(2)]
    workers = [context.Process(target=_sums, args=(shards, queue)) for queue in queues]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for queue in queues] == [expected, expected]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_open_files_are_bounded_and_closed(example):
    def opened():
        targets = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                targets.append(link.readlink())
        return sum(1 for target in targets if target.suffix == ".tar")

    before = opened()
    shards = Shards(example.path, open_shards=1)
    for ref in [*shards.refs(), *shards.refs()]:
        shards.read(ref)
        assert opened() == before + 1
    shards.close()
    assert opened() == before
    shards.read(SampleRef(0, 0))
    del shards  # forgotten, not closed
    assert opened() == before


def test_a_lost_index_is_rebuilt_with_the_same_bytes(example_copy):
    tar = example_copy.tar("vol-3d-00000.tar")
    path = indexing.index_path(tar)
    original = path.read_bytes()
    path.unlink()
    shards = Shards.open(example_copy.path)
    np.testing.assert_array_equal(shards.read(SampleRef(0, 0)), example_copy.samples["vol-a"].image)
    assert path.read_bytes() == original


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_index_is_rebuilt(example_copy, flip, damage):
    path = indexing.index_path(example_copy.tar("vol-3d-00000.tar"))
    original = path.read_bytes()
    if damage == "flip":
        flip(path, len(original) // 2)
    else:
        path.write_bytes({"cut": original[:-8], "foreign": b"x" * 500, "empty": b""}[damage])
    shards = Shards.open(example_copy.path)
    np.testing.assert_array_equal(shards.read(SampleRef(0, 1)), example_copy.samples["vol-b"].image)
    assert path.read_bytes() == original


def test_a_lost_index_is_not_rebuilt_from_a_damaged_tar(example_copy, flip):
    tar = example_copy.tar("vol-3d-00000.tar")
    indexing.index_path(tar).unlink()
    flip(tar, tar.stat().st_size // 2)
    with pytest.raises(ShardError, match=r"vol-3d-00000\.tar: sha256"):
        Shards.open(example_copy.path).read(SampleRef(0, 0))


def test_every_flipped_bit_of_an_image_is_noticed(example_copy, flip):
    generator = np.random.default_rng(1)
    for name, shard, count in (("vol-3d-00000.tar", 0, 2), ("pic-2d-00000.tar", 1, 3)):
        tar = example_copy.tar(name)
        index = indexing.load(indexing.index_path(tar))
        chunks = [row for row in index.members if row["kind"] in (1, 2) and row["level"] == 0]
        assert len(chunks) == count
        for ordinal, row in enumerate(chunks):
            offset = int(row["offset"]) + int(generator.integers(300, int(row["size"]) - 300))
            flip(tar, offset)
            shards = Shards.open(example_copy.path)
            with pytest.raises(
                ShardError, match=rf"{name}: member .*-{'abc'[ordinal]}\.(b2nd|jpg).*checksum"
            ):
                shards.read(SampleRef(shard, ordinal))
            shards.close()
            flip(tar, offset)


def test_a_truncated_shard_raises_with_its_name(example_copy):
    tar = example_copy.tar("vol-3d-00000.tar")
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    shards = Shards.open(example_copy.path)
    with pytest.raises(ShardError, match=r"vol-3d-00000\.tar: member .*ends at byte"):
        shards.read(SampleRef(0, 0))
        shards.read(SampleRef(0, 1))
    tar.unlink()
    with pytest.raises(ShardError, match=r"vol-3d-00000\.tar: cannot be opened"):
        Shards.open(example_copy.path).read(SampleRef(0, 0))


def test_folders_without_a_manifest_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"manifest\.json is missing"):
        open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ShardError, match="format 99"):
        open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="JSON"):
        open_shards(tmp_path)
