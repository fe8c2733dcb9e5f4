"""`medloom shards check` and `repair` from the command line: what they print, write and return."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.writer import ShardWriter
from medloom.scripts import cli


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound")
    generator = np.random.default_rng(0)
    with ShardWriter(path / "ct-3d-00000.tar") as writer:
        for name in "ab":
            image = generator.integers(-1000, 1000, (1, 20, 40, 40)).astype(np.int16)
            meta = dict.fromkeys(META_KEYS) | {
                "format": FORMAT_VERSION, "key": f"ct-{name}", "dataset": "ct", "modality": "ct", "ndim": 3,
                "organ": "chest", "licence": "CC0-1.0", "shape": list(image.shape), "dtype": "int16",
                "labels": {}, "spacing": [2.0, 1.0, 1.0],
            }  # fmt: skip
            writer.add(Sample(key=f"ct-{name}", image=image, mask=None, jpeg=None, meta=meta))
    source = SourceEntry(id="ct-3d", dataset="ct", ndim=3, count=2, licence="CC0-1.0", shards=(writer.entry,))
    Manifest(name="small", sources=(source,)).save(path)
    return path


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def damage(folder):
    tar = folder / "ct-3d-00000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(data)


def test_check_tells_and_returns_one(folder, tmp_path, capsys):
    assert cli.main(["shards", "check", str(folder)]) == 0
    assert "every member is intact" in capsys.readouterr().out
    damage(folder)
    report = tmp_path / "faults.json"
    assert cli.main(["shards", "check", str(folder), "--workers", "2", "--json", str(report)]) == 1
    shown = capsys.readouterr().out
    assert "ct-a.b2nd" in shown
    assert "medloom shards repair" in shown
    (fault,) = json.loads(report.read_text())["faults"]
    assert (fault["shard"], fault["member"], fault["kind"]) == ("ct-3d-00000.tar", "ct-a.b2nd", "bytes")
    assert cli.main(["shards", "check", str(folder), "--fast"]) == 0  # blind to this, and says so
    assert "indices, sizes and records are sound" in capsys.readouterr().out
    assert cli.main(["shards", "check", str(tmp_path / "nowhere")]) == 2


def test_check_of_a_quarantine_list(folder, tmp_path, capsys):
    path = tmp_path / "quarantine.jsonl"
    rows = [{"shard": "ct-3d-00000.tar", "sample": n, "key": f"ct-{k}"} for n, k in enumerate("ab")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["shards", "check", str(folder), "--quarantine", str(path)]) == 0
    assert "all can be read" in capsys.readouterr().out
    damage(folder)
    assert cli.main(["shards", "check", str(folder), "--quarantine", str(path)]) == 1
    assert "1 of 2 listed samples are damaged" in capsys.readouterr().out
    assert cli.main(["shards", "check", str(folder), "--quarantine", str(tmp_path / "none")]) == 2


def test_repair_shows_its_plan_and_then_does_it(folder, sound, capsys):
    assert cli.main(["shards", "repair", str(folder)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    damage(folder)
    before = (folder / "ct-3d-00000.tar").read_bytes()
    assert cli.main(["shards", "repair", str(folder), "--from", str(sound)]) == 1
    assert "add --apply" in capsys.readouterr().out
    assert (folder / "ct-3d-00000.tar").read_bytes() == before
    assert cli.main(["shards", "repair", str(folder), "--apply"]) == 1  # nothing to mend it with
    assert "--from" in capsys.readouterr().out
    assert cli.main(["shards", "repair", str(folder), "--from", str(sound), "--apply"]) == 0
    assert "1 of 1 faults mended" in capsys.readouterr().out
    assert cli.main(["shards", "check", str(folder)]) == 0
    assert cli.main(["shards", "repair", str(folder), "--from", str(folder / "nowhere")]) == 2


def test_dropping_lets_training_go_on(folder, capsys):
    damage(folder)
    assert cli.main(["shards", "repair", str(folder), "--drop", "--apply"]) == 0
    assert "dropped.jsonl" in capsys.readouterr().out
    assert cli.main(["shards", "check", str(folder)]) == 0
    assert Manifest.load(folder).count == 1


def test_stats_prints_tables_and_writes_a_report(folder, capsys):
    assert cli.main(["shards", "stats", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "samples by modality" in shown
    assert "ct-3d" in shown
    report = json.loads((folder / "stats" / "stats.json").read_text())
    assert report["samples"] == 2
    assert (folder / "stats" / "counts.png").is_file()
    assert cli.main(["shards", "check", str(folder)]) == 0
    assert cli.main(["shards", "stats", str(folder), "--sample", "1"]) == 0
    assert "read: 1 of 2 samples" in capsys.readouterr().out
    assert cli.main(["shards", "stats", "s3://bucket/shards"]) == 2
