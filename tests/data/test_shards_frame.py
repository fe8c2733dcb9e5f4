"""Partial reads keep empty arrays and a buffer from read to read; no read may notice that."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.shards import frame
from medloom.data.shards.reader import Shards


@pytest.fixture
def volume(example):
    """(descriptor, index, member row, array [C, D, H, W]) of a volume with a chunk of zeros."""
    shards = Shards.open(example.path)
    handle = shards._handle(0)
    yield handle.source, handle.index, handle.index.members_of(0)[1], example.samples["vol-a"].image
    shards.close()


def cut(image, origin, shape):
    return image[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))]


def test_zeros_are_zeros_after_a_read_that_filled_the_same_places(volume):
    descriptor, index, member, image = volume
    shape = (1, 3, 3, 3)
    full, empty = (0, 0, 0, 70), (0, 12, 5, 5)  # one chunk each
    assert index.chunk(index.array(member.array).first)[1] == 0
    for origin in (full, empty, full):
        got = frame.read_box(descriptor, index, member, origin, shape)
        np.testing.assert_array_equal(got, cut(image, origin, shape))


def test_kept_arrays_are_bounded_and_no_read_sees_the_chunks_of_another(volume, monkeypatch):
    descriptor, index, member, image = volume
    monkeypatch.setattr(frame, "_arrays", {})
    monkeypatch.setattr(frame, "_KEPT_ARRAYS", 2)
    for shape in ((1, 3, 3, 3), (1, 70, 3, 3), (1, 3, 100, 3), (1, 70, 100, 90)):
        got = frame.read_box(descriptor, index, member, (0, 0, 0, 0), shape)
        np.testing.assert_array_equal(got, cut(image, (0, 0, 0, 0), shape))
    assert len(frame._arrays) == 2
    for place in (0, 20, 40):  # the same array again, over chunks of data and of zeros
        got = frame.read_box(descriptor, index, member, (0, 0, place, 0), (1, 70, 60, 90))
        np.testing.assert_array_equal(got, cut(image, (0, 0, place, 0), (1, 70, 60, 90)))
    monkeypatch.setattr(frame, "_arrays", {})
    monkeypatch.setattr(frame, "_KEPT_CHUNKS", 3)
    frame.read_box(descriptor, index, member, (0, 0, 0, 0), image.shape)
    assert not frame._arrays


def test_a_read_that_fails_leaves_nothing_for_the_next(volume, monkeypatch):
    descriptor, index, member, image = volume
    monkeypatch.setattr(frame, "_arrays", {})

    def broken(ranges):
        yield from itertools.islice(frame._read_file(descriptor)(ranges), 1)
        raise ShardError("the network is gone")

    frame.read_box(descriptor, index, member, (0, 0, 0, 0), image.shape)
    monkeypatch.setattr(frame, "COALESCE_GAP", -1)  # every chunk its own range
    with pytest.raises(ShardError, match="network"):
        frame.read_box(broken, index, member, (0, 0, 0, 0), image.shape)
    assert not frame._arrays
    got = frame.read_box(descriptor, index, member, (0, 0, 0, 0), image.shape)
    np.testing.assert_array_equal(got, image)


def test_threads_do_not_meet(volume):
    descriptor, index, member, image = volume
    wrong = []

    def work(seed):
        generator = np.random.default_rng(seed)
        for _ in range(150):
            origin = [0, *(int(generator.integers(n - 20)) for n in image.shape[1:])]
            got = frame.read_box(descriptor, index, member, origin, (1, 20, 20, 20))
            if not np.array_equal(got, cut(image, origin, (1, 20, 20, 20))):
                wrong.append(origin)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ranges_are_asked_for_once_joined_and_bounded(volume, monkeypatch):
    descriptor, index, member, image = volume
    asked = []

    def remote(ranges):
        asked.append(list(ranges))
        return [os.pread(descriptor, size, offset) for offset, size in ranges]

    got = frame.read_box(remote, index, member, (0, 0, 0, 0), image.shape)
    np.testing.assert_array_equal(got, image)
    assert len(asked) == 1
    assert len(asked[0]) == 1  # neighbours in one range
    longest = max(size for _, size, _ in (index.chunk(n) for n in range(index.array(0).count)))
    monkeypatch.setattr(frame, "LONGEST_READ", longest + 1)
    got = frame.read_box(remote, index, member, (0, 0, 0, 0), image.shape)
    np.testing.assert_array_equal(got, image)
    assert len(asked[1]) > 1
    assert max(size for _, size in asked[1]) <= longest + 1
    monkeypatch.setattr(frame, "LONGEST_READ", 10)  # every chunk is longer than the kept buffer
    monkeypatch.setattr(frame, "_buffers", [])
    np.testing.assert_array_equal(frame.read_box(descriptor, index, member, (0, 0, 0, 0), image.shape), image)


def test_rows_equal_the_tables(volume):
    _, index, member, _ = volume
    layout, row = index.array(member.array), index.arrays[member.array]
    ndim = int(row["ndim"])
    for name in ("shape", "chunk", "block"):
        assert list(getattr(layout, name)) == row[name][:ndim].tolist()
    assert layout.dtype == np.dtype(bytes(row["dtype"]).decode())
    assert (layout.first, layout.count) == (int(row["first"]), int(row["count"]))
    assert [index.chunk(n) for n in range(len(index.chunks))] == index.chunks.tolist()
    columns = ["offset", "size", "crc", "kind", "level", "array", "sample"]
    assert [index.member(n) for n in range(len(index.members))] == index.members[columns].tolist()
    assert [index.ndim_of(n) for n in range(len(index))] == index.samples["ndim"].tolist()
