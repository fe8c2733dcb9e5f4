"""`check` finds every injected fault and names shard and member."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.shards import index as indexing
from medloom.data.shards.check import check


def test_sound_shards_have_no_faults(example):
    calls = []
    assert check(example.path, lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.parametrize("name", ["vol-3d-00000.tar", "pic-2d-00000.tar"])
def test_flipped_bits_are_found_wherever_they_are(example_copy, flip, name):
    tar = example_copy.tar(name)
    index = indexing.load(indexing.index_path(tar))
    members = {}
    for row in index.members:
        members[tar.read_bytes()[int(row["offset"]) - 512 :][:100].split(b"\0")[0].decode()] = row
    generator = np.random.default_rng(0)
    for member, row in members.items():
        offset = int(row["offset"]) + int(generator.integers(int(row["size"])))
        flip(tar, offset)
        faults = check(example_copy.path)
        assert [(fault.shard, fault.member) for fault in faults] == [(name, member)]
        assert "checksum" in faults[0].reason
        flip(tar, offset)
    assert check(example_copy.path) == []


def test_a_flip_between_members_is_found(example_copy, flip):
    tar = example_copy.tar("pic-2d-00000.tar")
    row = indexing.load(indexing.index_path(tar)).members[1]
    flip(tar, int(row["offset"]) - 512 + 130)  # in the tar header
    faults = check(example_copy.path)
    assert len(faults) == 1
    assert "header" in faults[0].reason
    flip(tar, int(row["offset"]) - 512 + 130)
    flip(tar, tar.stat().st_size - 5)  # in the padding at the end
    faults = check(example_copy.path)
    assert [(fault.shard, fault.member) for fault in faults] == [(tar.name, "")]
    assert "zero" in faults[0].reason


def test_a_shard_cut_in_half_names_the_members_that_are_gone(example_copy):
    tar = example_copy.tar("pic-2d-00000.tar")
    index = indexing.load(indexing.index_path(tar))
    row = index.members[1]
    cut = int(row["offset"]) + int(row["size"]) // 2
    tar.write_bytes(tar.read_bytes()[:cut])
    faults = check(example_copy.path)
    assert faults[0].shard == tar.name
    assert faults[0].member == "pic-a.b2nd"
    assert f"cut short after {int(row['size']) // 2} of" in faults[0].reason
    assert len(faults) == len(index.members) - 1


def test_missing_and_stray_files_are_named(example_copy):
    example_copy.tar("vol-3d-00000.tar").rename(example_copy.tar("old-3d-00000.tar"))
    indexing.index_path(example_copy.tar("pic-2d-00000.tar")).unlink()
    (example_copy.path / ".partial-12345678-x.tar").write_bytes(b"x")
    reasons = {fault.shard: fault.reason for fault in check(example_copy.path)}
    assert "missing" in reasons["vol-3d-00000.tar"]
    assert "not in the manifest" in reasons["old-3d-00000.tar"]
    assert "rebuilt" in reasons["pic-2d-00000.idx"]
    assert "killed build" in reasons[".partial-12345678-x.tar"]


def test_a_damaged_index_and_a_foreign_one_are_named(example_copy, flip):
    path = indexing.index_path(example_copy.tar("vol-3d-00000.tar"))
    original = path.read_bytes()
    flip(path, 100)
    assert [fault.shard for fault in check(example_copy.path)] == [path.name]
    path.write_bytes(indexing.index_path(example_copy.tar("pic-2d-00000.tar")).read_bytes())
    faults = check(example_copy.path)
    assert [fault.shard for fault in faults] == [path.name]
    assert "does not fit" in faults[0].reason
    path.write_bytes(original)
    assert check(example_copy.path) == []


def test_unknown_members_are_found(example_copy):
    import subprocess
    from dataclasses import replace

    from medloom.data.shards.manifest import Manifest

    tar = example_copy.tar("pic-2d-00000.tar")
    (example_copy.path / "note.txt").write_text("hello")
    subprocess.run(["tar", "rf", tar, "-C", example_copy.path, "note.txt"], check=True)
    manifest = Manifest.load(example_copy.path)
    entry = replace(manifest.sources[1].shards[0], bytes=tar.stat().st_size, sha256=indexing.file_sha256(tar))
    sources = (manifest.sources[0], replace(manifest.sources[1], shards=(entry,)))
    replace(manifest, sources=sources).save(example_copy.path)
    assert any("note.txt" in fault.reason for fault in check(example_copy.path))


def test_counts_that_do_not_add_up_are_found(example_copy):
    path = example_copy.path / "manifest.json"
    path.write_text(path.read_text().replace('"count": 2', '"count": 3', 1))
    assert any(
        "do not add up" in fault.reason or "manifest says" in fault.reason
        for fault in check(example_copy.path)
    )


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ShardError, match="manifest"):
        check(tmp_path)
