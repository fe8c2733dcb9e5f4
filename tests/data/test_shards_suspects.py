"""Checking just the samples of a quarantine list: damaged ones are told from those that were mended."""

from __future__ import annotations

import json

import pytest
from medloom.data.errors import ShardError
from medloom.data.shards import index as indexing
from medloom.data.shards.suspects import Suspect, check_samples, listed


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lists_are_read_once_each_and_a_torn_line_is_left_out(tmp_path):
    row = {"shard": "pic-2d-00000.tar", "sample": 1, "member": "pic-b.b2nd", "key": "pic-b"}
    path = write(tmp_path / "quarantine.jsonl", row, row, row | {"sample": 0, "key": ""})
    path.write_text(path.read_text() + '{"shard": "vol-3d')
    assert listed(path) == [
        Suspect("pic-2d-00000.tar", 0, "pic-b"),
        Suspect("pic-2d-00000.tar", 1, "pic-b"),
    ]
    assert listed(write(path)) == []
    with pytest.raises(ShardError, match="no line names"):
        listed(write(path, {"name": "x"}, ["y"]))
    with pytest.raises(ShardError, match="cannot be read"):
        listed(tmp_path / "nothing.jsonl")


def test_only_the_listed_samples_are_read(example_copy, flip):
    tar = example_copy.tar("pic-2d-00000.tar")
    index = indexing.load(indexing.index_path(tar))
    flip(tar, index.members_of(0)[1].offset + 700)
    suspects = [Suspect(tar.name, 0, "pic-a"), Suspect(tar.name, 1, "pic-b")]
    calls = []
    faults = check_samples(example_copy.path, suspects, lambda *call: calls.append(call))
    assert [(f.shard, f.member) for f in faults] == [(tar.name, "pic-a.b2nd")]
    assert "checksum" in faults[0].reason
    assert calls[-1][:2] == (2, 2)
    assert check_samples(example_copy.path, suspects[1:]) == []
    assert check_samples(example_copy.path, [Suspect(tar.name, -1, "pic-b")]) == []


def test_samples_that_are_not_there_are_named(example_copy):
    suspects = [
        Suspect("other-2d-00000.tar", 0, "x"),
        Suspect("pic-2d-00000.tar", 7, "pic-g"),
        Suspect("vol-3d-00000.tar", -1, "vol-z"),
    ]
    faults = check_samples(example_copy.path, suspects)
    assert [fault.shard for fault in faults] == [suspect.shard for suspect in suspects]
    assert "other shards" in faults[0].reason
    assert "vol-z" in faults[2].reason
    example_copy.tar("vol-3d-00000.tar").unlink()
    assert len(check_samples(example_copy.path, [Suspect("vol-3d-00000.tar", 0, "vol-a")])) == 1


def test_bytes_that_are_as_written_and_cannot_be_decoded_are_found(example_copy, flip):
    """A JPEG that was broken before it was stored: its checksum is right."""
    tar = example_copy.tar("pic-2d-00000.tar")
    row = indexing.load(indexing.index_path(tar)).members_of(2)[1]
    data = bytearray(tar.read_bytes())
    start = row.offset
    data[start : start + 300] = bytes(300)
    tar.write_bytes(data)
    indexing.rebuild(tar)
    faults = check_samples(example_copy.path, [Suspect(tar.name, 2, "pic-c")])
    assert [fault.shard for fault in faults] == [tar.name]
    assert "pic-c.jpg" in faults[0].reason
