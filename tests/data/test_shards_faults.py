"""Fault injection: whatever is done to a folder of shards, `check` finds it and names shard and member."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medloom.data.sample import Sample
from medloom.data.shards import index as indexing
from medloom.data.shards.check import check
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.writer import ShardWriter

VOLUMES, PICTURES = "vol-3d-00000.tar", "pic-2d-00000.tar"
JPEG = bytes.fromhex("ffd8ffe0") + bytes(range(200)) + bytes.fromhex("ffd9")  # never decoded here


def sample(key, image, *, mask=None, jpeg=None):
    ndim = image.ndim - 1
    meta = dict.fromkeys(META_KEYS) | {
        "format": FORMAT_VERSION, "key": key, "modality": "ct" if ndim == 3 else "x-ray", "ndim": ndim,
        "shape": list(image.shape), "dtype": image.dtype.name, "labels": {},
    }  # fmt: skip
    return Sample(key=key, image=image, mask=mask, jpeg=jpeg, meta=meta)


def write(path, name, samples):
    with ShardWriter(path / name) as writer:
        for one in samples:
            writer.add(one)
    dataset, ndim = name.split("-")[0], int(name.split("-")[1][0])
    return SourceEntry(
        id=f"{dataset}-{ndim}d",
        dataset=dataset,
        ndim=ndim,
        count=len(samples),
        licence="",
        shards=(writer.entry,),
    )


def volumes(prefix="vol"):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 99, (1, 70, 66, 20)).astype(np.int16)
    image[:, :64, :64] = 0  # a chunk of zeros
    return [
        sample(f"{prefix}-a", image, mask=(image[0] > 5).astype(np.uint8)),
        sample(f"{prefix}-b", generator.integers(0, 99, (2, 5, 9, 9)).astype(np.int16)),
    ]


def pictures():
    generator = np.random.default_rng(1)
    return [
        sample("pic-a", generator.integers(0, 9, (1, 300, 200)).astype(np.uint16)),  # with a level
        sample("pic-b", generator.integers(0, 255, (3, 12, 9)).astype(np.uint8)),
        sample("pic-c", np.zeros((3, 8, 8), np.uint8), jpeg=JPEG),
        sample("pic-d", np.zeros((3, 8, 8), np.uint8), jpeg=JPEG[::-1]),  # as long as pic-c
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound")
    sources = (write(path, VOLUMES, volumes()), write(path, PICTURES, pictures()))
    Manifest(name="faults", sources=sources).save(path)
    assert check(path) == []
    return path


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def flip(path, offset, bit):
    """Flip one bit; the file system must not see a torn file, so the length stays."""
    with path.open("r+b") as handle:
        handle.seek(offset)
        (byte,) = handle.read(1)
        handle.seek(offset)
        handle.write(bytes([byte ^ 1 << bit]))


def regions(tar):
    """(member, part, start, stop) of every byte of a sound tar."""
    with tarfile.open(tar) as archive:
        for info in archive:
            stop = info.offset_data + info.size
            yield info.name, "header", info.offset, info.offset_data
            yield info.name, "data", info.offset_data, stop
            if info.size % 512:
                yield info.name, "padding", stop, stop + -info.size % 512
        end = stop + -info.size % 512
    yield "", "end", end, tar.stat().st_size


def found(path):
    return {(fault.shard, fault.member) for fault in check(path)}


@pytest.mark.parametrize("name", [VOLUMES, PICTURES])
def test_a_flipped_bit_anywhere_in_a_tar_is_found_and_its_member_named(folder, name):
    tar = folder / name
    generator = np.random.default_rng(2)
    parts = list(regions(tar))
    assert {part for _, part, _, _ in parts} == {"header", "data", "padding", "end"}
    assert sum(stop - start for _, _, start, stop in parts) == tar.stat().st_size
    for member, part, start, stop in parts:
        places = {start, stop - 1, *generator.integers(start, stop, 6 if part == "data" else 2).tolist()}
        for place in places:
            bit = int(generator.integers(8))
            flip(tar, place, bit)
            assert found(folder) == {(name, member)}, (member, part, place - start, bit)
            flip(tar, place, bit)
    assert found(folder) == set()


def test_a_flipped_bit_in_every_byte_of_a_header_is_found(folder):
    """Some header bytes mean nothing to tar (the end of the checksum field, the device numbers)."""
    tar = folder / PICTURES
    row = indexing.load(indexing.index_path(tar)).members[1]
    start = int(row["offset"]) - 512
    generator = np.random.default_rng(3)
    for place in range(512):
        bit = int(generator.integers(8))
        flip(tar, start + place, bit)
        assert found(folder) == {(PICTURES, "pic-a.b2nd")}, (place, bit)
        flip(tar, start + place, bit)


def test_chunks_frame_headers_and_trailers_are_covered(folder):
    """The parts of a Blosc2 frame that no chunk checksum covers: the member's covers them."""
    tar = folder / VOLUMES
    index = indexing.load(indexing.index_path(tar))
    member = index.members_of(0)[1]
    chunks = [index.chunk(n) for n in range(index.array(0).count)]
    assert 0 in [size for _, size, _ in chunks]
    first = min(offset for offset, size, _ in chunks if size)
    last = max(offset + size for offset, size, _ in chunks)
    assert 0 < first < last < member.size
    for place in (0, 11, first - 1, first, last - 1, last, member.size - 1):
        flip(tar, member.offset + place, 5)
        assert found(folder) == {(VOLUMES, "vol-a.b2nd")}
        flip(tar, member.offset + place, 5)


@pytest.mark.parametrize("name", ["vol-3d-00000.idx", "pic-2d-00000.idx", "manifest.json"])
def test_a_flipped_bit_in_every_byte_of_a_record_is_found(folder, name):
    generator = np.random.default_rng(4)
    data = (folder / name).read_bytes()
    for place in range(len(data)):
        bit = int(generator.integers(8))
        flip(folder / name, place, bit)
        fast = name == "manifest.json"  # no pixel is needed to tell
        assert name in {fault.shard for fault in check(folder, fast=fast)}, (place, bit, data[place])
        (folder / name).write_bytes(data)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_cut_is_found(folder, data):
    name = data.draw(st.sampled_from([VOLUMES, PICTURES, "vol-3d-00000.idx", "manifest.json"]))
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(original[: data.draw(st.integers(0, len(original) - 1))])
    try:
        assert name in {shard for shard, _ in found(folder)}
    finally:
        (folder / name).write_bytes(original)


@pytest.mark.parametrize("name", [VOLUMES, PICTURES])
def test_a_cut_at_every_boundary_names_the_members_that_are_gone(folder, name):
    """A sample of which not one header is left is named by its place: the index holds no keys."""
    tar, original = folder / name, (folder / name).read_bytes()
    parts = list(regions(tar))
    last = {member: stop for member, part, _, stop in parts if part == "data"}
    for cut in sorted({place for _, _, start, stop in parts for place in (start, start + 1, stop - 1)}):
        tar.write_bytes(original[:cut])
        gone = [member for member, stop in last.items() if stop > cut]
        headers = [m for m, part, start, _ in parts if part == "header" and start + 265 <= cut]  # the magic
        keys = {member.partition(".")[0] for member in headers}
        named = [fault.member for fault in check(folder)]
        assert len(named) == max(1, len(gone))
        for member, told in zip(gone, named, strict=bool(gone)):
            known = member.partition(".")[0] in keys
            assert told == member if known else told.startswith("member at byte")
    assert {fault.shard for fault in check(folder, fast=True)} == {name}


def blocks(tar):
    """Member name -> (header, data and padding) as they lie in the tar."""
    data = tar.read_bytes()
    with tarfile.open(tar) as archive:
        infos = archive.getmembers()
    return {i.name: data[i.offset : i.offset_data + i.size + -i.size % 512] for i in infos}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pic-c.jpg", "pic-d.jpg"),
        ("pic-a.b2nd", "pic-b.b2nd"),
        ("pic-a.json", "pic-d.json"),
        ("pic-b.json", "pic-b.b2nd"),
    ],
)
def test_swapped_members_are_both_named(folder, one, other):
    tar = folder / PICTURES
    parts = blocks(tar)
    end = tar.read_bytes()[sum(map(len, parts.values())) :]
    swap = {one: other, other: one}
    tar.write_bytes(b"".join(parts[swap.get(name, name)] for name in parts) + end)
    assert {(PICTURES, one), (PICTURES, other)} <= found(folder)


def test_members_that_swapped_only_their_names_are_both_named(folder):
    tar = folder / PICTURES
    parts = blocks(tar)
    one, other = parts["pic-c.jpg"], parts["pic-d.jpg"]
    data = tar.read_bytes()
    data = data.replace(one, other[:512] + one[512:]).replace(other, one[:512] + other[512:])
    tar.write_bytes(data)
    assert found(folder) == {(PICTURES, "pic-c.jpg"), (PICTURES, "pic-d.jpg")}


def test_swapped_shards_are_told_from_damaged_ones(folder):
    one, other, aside = folder / VOLUMES, folder / PICTURES, folder / "aside"
    one.rename(aside), other.rename(one), aside.rename(other)
    faults = [fault for fault in check(folder) if fault.shard.endswith(".tar")]
    assert [(f.shard, f.member) for f in faults] == [(VOLUMES, ""), (PICTURES, "")]
    assert f"holds the bytes of {PICTURES}" in faults[0].reason
    indices = [indexing.index_path(path) for path in (one, other)]
    indices[0].rename(aside), indices[1].rename(indices[0]), aside.rename(indices[1])
    assert {f.shard for f in check(folder) if "holds the bytes" in f.reason} == {VOLUMES, PICTURES}
    assert {f.shard for f in check(folder, fast=True)} >= {VOLUMES, PICTURES}


def test_lost_and_exchanged_indices_are_named(folder):
    one, other = folder / "vol-3d-00000.idx", folder / "pic-2d-00000.idx"
    data = one.read_bytes()
    one.unlink()
    for fast in (False, True):
        assert {(f.shard, f.kind) for f in check(folder, fast=fast)} == {(one.name, "index")}
    one.write_bytes(other.read_bytes())
    for fast in (False, True):
        assert {(f.shard, f.kind) for f in check(folder, fast=fast)} == {(one.name, "index")}
    one.write_bytes(data)
    assert check(folder, fast=True) == []


@pytest.mark.parametrize("change", ["count", "bytes", "sha256", "file", "source count", "name", "drop"])
def test_altered_manifests_are_found(folder, change):
    manifest = Manifest.load(folder)
    text = (folder / "manifest.json").read_text()
    entry, source = manifest.sources[0].shards[0], manifest.sources[0]
    old, new = {
        "count": ('"count": 2', '"count": 1'),
        "bytes": (f'"bytes": {entry.bytes}', f'"bytes": {entry.bytes + 512}'),
        "sha256": (entry.sha256, entry.sha256[::-1]),
        "file": (entry.file, "vol-3d-00001.tar"),
        "source count": (f'"count": {source.count},\n   "dataset"', '"count": 7,\n   "dataset"'),
        "name": ('"name": "faults"', '"name": "others"'),
        "drop": ('"licence": ""', '"licence": "CC0-1.0"'),
    }[change]
    assert old in text
    (folder / "manifest.json").write_text(text.replace(old, new))
    for fast in (False, True):
        assert "manifest.json" in {fault.shard for fault in check(folder, fast=fast)}
    # Altered and sealed again: what the shards hold contradicts it.
    if change in ("count", "bytes", "sha256", "file", "source count"):
        values = json.loads((folder / "manifest.json").read_text())
        Manifest.load(folder).save(folder)
        assert values["hash"] != json.loads((folder / "manifest.json").read_text())["hash"]
        assert check(folder) != []


def test_without_a_manifest_the_shards_are_held_against_their_indices(folder):
    (folder / "manifest.json").unlink()
    assert found(folder) == {("manifest.json", "")}
    row = indexing.load(folder / "pic-2d-00000.idx").members[1]
    flip(folder / PICTURES, int(row["offset"]) + 9, 1)
    assert found(folder) == {("manifest.json", ""), (PICTURES, "pic-a.b2nd")}


def test_keys_that_occur_twice_are_named_with_both_shards(folder):
    extra = write(folder, "more-3d-00000.tar", volumes())
    manifest = Manifest.load(folder)
    replace(manifest, sources=(*manifest.sources, extra)).save(folder)
    faults = check(folder)
    assert [(f.shard, f.member, f.kind) for f in faults] == [
        ("more-3d-00000.tar", "vol-a.json", "twice"), ("more-3d-00000.tar", "vol-b.json", "twice"),
    ]  # fmt: skip
    assert all(VOLUMES in fault.reason for fault in faults)
    assert check(folder, fast=True) == faults


def test_stray_and_missing_files_and_torn_lists_are_named(folder):
    (folder / "old-3d-00000.tar").write_bytes(b"x")
    (folder / "old-3d-00000.idx").write_bytes(b"x")
    (folder / ".partial-1-x").write_bytes(b"x")
    (folder / "failures.jsonl").write_text('{"key": "a"}\n')
    (folder / "excluded.jsonl").write_text('{"key": \n')
    (folder / "notes.txt").write_text("a note of the user's is none of our business")
    (folder / VOLUMES).unlink()
    assert {shard for shard, _ in found(folder)} == {
        "old-3d-00000.tar", "old-3d-00000.idx", ".partial-1-x", "failures.jsonl", "excluded.jsonl", VOLUMES,
    }  # fmt: skip


def test_every_fault_is_found_whatever_the_number_of_processes(folder):
    (folder / "vol-3d-00000.idx").unlink()
    flip(folder / PICTURES, 5000, 1)
    calls = []
    faults = check(folder, lambda *call: calls.append(call), workers=2)
    assert faults == check(folder)
    assert len(faults) == 2
    assert calls[-1][0] == calls[-1][1] > 0


def test_an_unreadable_shard_does_not_hide_the_others(folder, monkeypatch):
    (folder / VOLUMES).unlink()
    (folder / VOLUMES).symlink_to("/proc/self/mem")  # opens, and fails when it is read
    flip(folder / PICTURES, 5000, 1)
    assert {shard for shard, _ in found(folder)} == {VOLUMES, PICTURES}


def test_a_manifest_that_lost_its_last_byte_is_found(folder):
    original = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(original[:-1])
    assert "manifest.json" in {shard for shard, _ in found(folder)}
