"""Repair: the folder comes back byte by byte, or says what is missing; nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.locks import locked
from medloom.data.shards import copies, repair
from medloom.data.shards import index as indexing
from medloom.data.shards.check import check
from medloom.data.shards.manifest import Manifest
from medloom.data.shards.reader import Shards
from medloom.data.shards.repair import apply, plan

VOLUMES, PICTURES = "vol-3d-00000.tar", "pic-2d-00000.tar"


def state(folder):
    """What counts: everything but what was set aside."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def ruin(path, *, offset=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 4
    path.write_bytes(data)


@pytest.fixture
def folder(example_copy):
    return example_copy.path


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "elsewhere"))


def mend(folder, *arguments, **options):
    return apply(plan(folder, *arguments, **options))


def test_a_sound_folder_needs_nothing(folder):
    assert plan(folder).steps == []


def test_a_plan_changes_nothing(folder, copy):
    ruin(folder / VOLUMES)
    (folder / "pic-2d-00000.idx").unlink()
    (folder / "old-2d-00000.tar").write_bytes(b"x")
    before = state(folder)
    for options in ({}, {"source": str(copy)}, {"drop": True}, {"rebuildable": True}):
        assert len(plan(folder, **options).steps) == 3
    assert state(folder) == before


@pytest.mark.parametrize("damage", ["lost", "flipped", "foreign", "cut"])
def test_indices_are_made_again(folder, damage):
    before, path = state(folder), folder / "vol-3d-00000.idx"
    data = path.read_bytes()
    if damage == "lost":
        path.unlink()
    elif damage == "flipped":
        ruin(path)
    else:
        path.write_bytes((folder / "pic-2d-00000.idx").read_bytes() if damage == "foreign" else data[:-9])
    assert [(step.do, step.file) for step in plan(folder).steps] == [("index", path.name)]
    assert mend(folder) == []
    assert state(folder) == before


@pytest.mark.parametrize("where", ["header", "padding", "end"])
def test_what_only_the_tar_format_holds_is_mended_without_a_copy(folder, where):
    before = state(folder)
    row = indexing.load(folder / "pic-2d-00000.idx").members[1]
    end = int(row["offset"]) + int(row["size"])
    assert end % 512
    offset = {"header": int(row["offset"]) - 400, "padding": end, "end": -1}[where]
    ruin(folder / PICTURES, offset=offset)
    assert [step.do for step in plan(folder).steps] == ["restore"]
    assert mend(folder) == []
    assert state(folder) == before


def test_pixels_are_not_mended_without_a_copy(folder):
    ruin(folder / VOLUMES)
    before = state(folder)
    ((step, reason),) = mend(folder)
    assert (step.do, step.file) == ("leave", VOLUMES)
    assert "--from" in reason
    assert "--drop" in reason
    assert state(folder) == before


def test_swapped_and_renamed_shards_go_back_to_their_places(folder):
    before = state(folder)
    (folder / VOLUMES).rename(folder / "x")
    (folder / PICTURES).rename(folder / VOLUMES)
    (folder / "x").rename(folder / PICTURES)
    assert mend(folder) == []
    assert state(folder) == before
    (folder / VOLUMES).rename(folder / "renamed-3d-00000.tar")
    assert mend(folder) == []
    assert state(folder) == before
    assert (folder / "set-aside" / "renamed-3d-00000.tar").is_file()


@pytest.mark.parametrize("damage", ["lost", "flipped", "cut", "empty"])
def test_shards_come_back_from_another_folder(folder, copy, damage):
    before, tar = state(folder), folder / VOLUMES
    data = tar.read_bytes()
    if damage == "lost":
        tar.unlink()
    elif damage == "flipped":
        ruin(tar)
    else:
        tar.write_bytes(data[:7777] if damage == "cut" else b"")
    made = plan(folder, str(copy))
    assert [step.do for step in made.steps] == ["copy"]
    calls = []
    assert apply(made, lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1] == len(data)
    assert state(folder) == before


def test_a_damaged_copy_replaces_nothing(folder, copy):
    ruin(folder / VOLUMES)
    ruin(folder / PICTURES)
    ruin(copy / VOLUMES, offset=5000)
    bad = (folder / VOLUMES).read_bytes()
    remain = mend(folder, str(copy))
    assert [step.file for step, _ in remain] == [VOLUMES]
    assert "damaged, too" in remain[0][1]
    assert (folder / VOLUMES).read_bytes() == bad
    assert {fault.shard for fault in check(folder)} == {VOLUMES}
    assert not list(folder.glob(".partial-*"))


def test_another_build_is_no_source(folder, copy):
    manifest = Manifest.load(copy)
    entry = replace(manifest.sources[0].shards[0], sha256="0" * 64)
    replace(manifest, sources=(replace(manifest.sources[0], shards=(entry,)), manifest.sources[1])).save(copy)
    ruin(folder / VOLUMES)
    ((step, reason),) = mend(folder, str(copy))
    assert step.do == "leave"
    assert "another build" in reason
    with pytest.raises(ShardError, match="manifest"):
        plan(folder, str(copy / "nowhere"))


class Killed(BaseException):
    pass


def test_a_copy_that_is_killed_continues_where_it_was(folder, copy, monkeypatch):
    before, asked = state(folder), []
    piece = len(before[VOLUMES]) // 12
    (folder / VOLUMES).unlink()
    monkeypatch.setattr(copies, "PIECE", piece)
    real = copies.Source.pieces

    def pieces(self, entry, start):
        asked.append(start)
        for number, piece in enumerate(real(self, entry, start)):
            if number == 3 and len(asked) < 4:
                raise Killed
            yield piece

    monkeypatch.setattr(copies.Source, "pieces", pieces)
    for _ in range(3):
        with pytest.raises(Killed):
            mend(folder, str(copy))
        assert not (folder / VOLUMES).exists()
    assert mend(folder, str(copy)) == []
    assert asked == [0, 3 * piece, 6 * piece, 9 * piece]
    assert state(folder) == before


def test_wrong_bytes_of_an_earlier_attempt_are_not_believed(folder, copy):
    before = state(folder)
    entry = Manifest.load(folder).sources[0].shards[0]
    (folder / VOLUMES).unlink()
    copies.partial_of(folder, entry).write_bytes(b"not these")
    assert mend(folder, str(copy)) == []
    assert state(folder) == before


def test_repair_killed_at_any_step_is_finished_by_the_next(folder, copy, monkeypatch):
    """Two swapped shards, a lost index: killed before and after every rename and link."""
    before = state(folder)
    (folder / VOLUMES).rename(folder / "x")
    (folder / PICTURES).rename(folder / VOLUMES)
    (folder / "x").rename(folder / PICTURES)
    (folder / "vol-3d-00000.idx").unlink()
    swapped = state(folder)
    for fatal in range(12):
        for path in folder.iterdir():
            path.unlink()
        for name, data in swapped.items():
            (folder / name).write_bytes(data)
        count = 0

        def deadly(real, fatal=fatal):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == fatal:
                    raise Killed
                result = real(*arguments, **options)
                count += 1
                if count == fatal:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patch:
            for module, name in (
                (copies.os, "link"),
                (copies, "rebuild"),
                (repair, "settle"),
                (repair, "take"),
            ):
                patch.setattr(module, name, deadly(getattr(module, name)))
            try:
                mend(folder)
            except Killed:
                assert {v for n, v in swapped.items() if n.endswith(".tar")} <= set(state(folder).values())
        assert mend(folder) == []
        assert state(folder) == before, fatal


def test_one_repair_at_a_time(folder):
    ruin(folder / "vol-3d-00000.idx")
    made = plan(folder)
    with locked(folder, "a build is"), pytest.raises(ShardError, match="working in this folder"):
        apply(made)


def test_dropping_keeps_every_intact_sample_and_says_what_is_lost(example_copy):
    folder = example_copy.path
    index = indexing.load(folder / "vol-3d-00000.idx")
    ruin(folder / VOLUMES, offset=index.members_of(0)[1].offset + 900)
    damaged = (folder / VOLUMES).read_bytes()
    (folder / PICTURES).unlink()
    old = Manifest.load(folder).hash
    assert mend(folder, drop=True) == []
    assert check(folder) == []
    shards = Shards.open(folder)
    assert [shards.meta(ref)["key"] for ref in shards.refs()] == ["vol-b"]
    np.testing.assert_array_equal(shards.read(next(iter(shards.refs()))), example_copy.samples["vol-b"].image)
    assert [source.id for source in shards.manifest.sources] == ["vol-3d"]
    assert shards.manifest.sources[0].count == 1
    assert shards.manifest.sources[0].modalities == {"mri": 1}
    assert shards.manifest.hash != old
    assert shards.manifest.build["dropped"] == [
        {"shard": VOLUMES, "samples": 1, "of": 2}, {"shard": PICTURES, "samples": 3, "of": 3},
    ]  # fmt: skip
    lost = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [(row["shard"], row["sample"], row["key"]) for row in lost] == [
        (VOLUMES, 0, "vol-a"), (PICTURES, 0, ""), (PICTURES, 1, ""), (PICTURES, 2, ""),
    ]  # fmt: skip
    assert "checksum" in lost[0]["reason"]
    (aside,) = (folder / "set-aside").glob("*.tar")
    assert aside.read_bytes() == damaged
    assert plan(folder).steps == []


def test_a_drop_that_is_killed_before_the_manifest_is_done_again(example_copy, monkeypatch):
    folder = example_copy.path
    index = indexing.load(folder / "vol-3d-00000.idx")
    ruin(folder / VOLUMES, offset=index.members_of(0)[1].offset + 900)
    whole = Path(shutil.copytree(folder, folder.parent / "undisturbed"))
    assert mend(whole, drop=True) == []
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            mend(folder, drop=True)
    assert check(folder) != []
    assert mend(folder, drop=True) == []
    assert state(folder) == state(whole)


def test_nothing_is_dropped_when_nothing_would_be_left(folder):
    (folder / VOLUMES).unlink()
    (folder / PICTURES).unlink()
    with pytest.raises(ShardError, match="nothing would be left"):
        mend(folder, drop=True)
    assert Manifest.load(folder).count == 5


def test_shards_come_back_from_a_url(folder, copy):
    before = state(folder)
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(copy), "/elsewhere", recursive=True)
    try:
        ruin(folder / VOLUMES)
        assert mend(folder, "memory://elsewhere") == []
        assert state(folder) == before
    finally:
        memory.rm("/elsewhere", recursive=True)
