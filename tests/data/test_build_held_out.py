"""What is held out never reaches the shards: by rule, by subject, by content in any dataset."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import BY_RULE, build
from medloom.data.ingest.work import CONTENT_HELD_OUT, SUBJECT_HELD_OUT
from medloom.data.shards.reader import Shards

NAME = "Mustermann"


@pytest.fixture
def yaml(tmp_path, make_collection):
    """Volumes 4 and 5 (subject 2) are held out as split test; volume 3 belongs to subject 1."""
    return make_collection(tmp_path / "in", held_out="[{dataset: ct, splits: [test]}]")


def hashes(out):
    shards = Shards.open(out)
    return {shards.meta(ref)["content_hash"] for ref in shards.refs()}


def held_hashes(yaml, out):
    """Hashes of the held-out images, from a build that keeps them."""
    build(Collection.load(yaml), out, keep_held_out=True)
    shards = Shards.open(out)
    metas = [shards.meta(ref) for ref in shards.refs("ct-3d")]
    return {meta["content_hash"] for meta in metas if meta["split"] == "test"}


def test_by_rule(yaml, tmp_path):
    result = build(Collection.load(yaml), tmp_path / "out")
    held = held_hashes(yaml, tmp_path / "all")
    assert len(held) == 2
    assert not held & hashes(tmp_path / "out")
    assert result.manifest.held_out.rules == [{"dataset": "ct", "splits": ["test"]}]
    assert result.manifest.held_out.excluded == {BY_RULE: 2}
    assert result.manifest.held_out.checked == 2
    assert result.manifest.held_out.not_checked == []
    assert result.manifest.sources[0].splits == {"train": 4}
    rows = [json.loads(line) for line in (tmp_path / "out" / "excluded.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == [BY_RULE] * 2
    assert NAME not in (tmp_path / "out" / "excluded.jsonl").read_text()


def test_by_content_in_another_dataset_and_under_another_name(yaml, tmp_path):
    ct = tmp_path / "in" / "ct"
    copies = tmp_path / "in" / "copies"
    copies.mkdir()
    shutil.copy(ct / f"{NAME}_5.nii.gz", copies / "renamed.nii.gz")
    image = nibabel.load(ct / f"{NAME}_4.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.asanyarray(image.dataobj), np.eye(4)), copies / "again.nii"
    )  # other bytes
    other = np.asanyarray(nibabel.load(ct / f"{NAME}_0.nii.gz").dataobj) + np.int16(1)
    nibabel.save(nibabel.Nifti1Image(other, np.eye(4)), copies / "innocent.nii")
    text = yaml.read_text()
    yaml.write_text(
        text + "  - {dataset: copies, layout: table, root: copies, modality: ct, options: {file: list.csv}}\n"
    )
    (copies / "list.csv").write_text("path\nrenamed.nii.gz\nagain.nii\ninnocent.nii\n")
    result = build(Collection.load(yaml), tmp_path / "out")
    found = {row.path: row.reason for row in result.excluded if row.dataset == "copies"}
    assert found == {"renamed.nii.gz": CONTENT_HELD_OUT, "again.nii": CONTENT_HELD_OUT}
    assert next(s for s in result.manifest.sources if s.dataset == "copies").count == 1
    assert result.manifest.held_out.excluded == {BY_RULE: 2, CONTENT_HELD_OUT: 2}
    assert not held_hashes(yaml, tmp_path / "all") & hashes(tmp_path / "out")


def test_by_subject_inside_the_dataset(yaml, tmp_path):
    """An image without a split, of a subject whose other images are held out."""
    ct = tmp_path / "in" / "ct"
    rows = (ct / "manifest.csv").read_text().splitlines()
    rows[4] = rows[4].replace(f"{NAME}1,train", f"{NAME}2,")  # volume 3, no declared split, subject 2
    (ct / "manifest.csv").write_text("\n".join(rows) + "\n")
    result = build(Collection.load(yaml), tmp_path / "out")
    found = {row.path: row.reason for row in result.excluded if row.reason != BY_RULE}
    assert found == {f"{NAME}_3.nii.gz": SUBJECT_HELD_OUT}
    assert result.manifest.sources[0].count == 3


def test_a_held_out_image_that_cannot_be_read_is_confessed(yaml, tmp_path):
    (tmp_path / "in" / "ct" / f"{NAME}_5.nii.gz").write_bytes(b"rubbish")
    result = build(Collection.load(yaml), tmp_path / "out")
    assert result.manifest.held_out.checked == 1
    assert len(result.manifest.held_out.not_checked) == 1
    assert result.manifest.held_out.not_checked[0].startswith("ct-")


def test_a_new_rule_rebuilds_what_it_touches(tmp_path, make_collection, files_of):
    yaml = make_collection(tmp_path / "in")
    out = tmp_path / "out"
    assert build(Collection.load(yaml), out).manifest.count == 16
    yaml.write_text(yaml.read_text().replace("held_out: []", "held_out: [{dataset: ct, splits: [test]}]"))
    assert build(Collection.load(yaml), out).manifest.count == 14
    build(Collection.load(yaml), tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_two_workers_exclude_the_same(yaml, tmp_path, files_of):
    build(Collection.load(yaml), tmp_path / "one", shard_bytes=20_000)
    build(Collection.load(yaml), tmp_path / "two", shard_bytes=20_000, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
