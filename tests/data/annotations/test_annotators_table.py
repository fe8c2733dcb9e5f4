"""A table with a row an annotator becomes one record an image, and shards with readings."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from medloom.data.collection import Collection, scan
from medloom.data.ingest.build import build
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow


def collection(folder: Path, rows: str, source: str = "") -> Collection:
    folder.mkdir()
    for number in range(3):
        Pillow.fromarray(np.full((20, 30), 9 + 40 * number, np.uint8)).save(folder / f"{number}.png")
        for reader in "ab":
            mask = np.zeros((20, 30), np.uint8)
            mask[4 : 12 + (reader == "b"), 5:15] = 1
            Pillow.fromarray(mask).save(folder / f"{number}_{reader}.png")
    (folder / "manifest.csv").write_text("path,who,grade,seg,split\n" + rows)
    text = f"""
        name: c
        salt: a-salt-for-tests
        sources:
          - dataset: us
            layout: table
            modality: ultrasound
            {source}
            label_kinds: {{grade: {{kind: ordinal, order: [0, 1, 2]}}}}
            options: {{annotator: who, labels: [grade], mask: seg, split: split}}
        """
    (folder / "c.yaml").write_text(textwrap.dedent(text))
    return Collection.load(folder / "c.yaml")


ROWS = """\
0.png,Dr. Alpha,0,0_a.png,train
0.png,Dr. Beta,1,0_b.png,train
1.png,Dr. Alpha,2,1_a.png,train
2.png,,1,2_a.png,train
2.png,Dr. Beta,2,2_b.png,train
"""


def test_rows_of_one_image_become_its_readings(tmp_path: Path) -> None:
    first, second, third = (record for _, record in scan(collection(tmp_path / "in", ROWS)).records)
    assert [(r.annotator, r.labels, r.mask and r.mask.name) for r in first.readings] == [
        ("Dr. Alpha", {"grade": 0}, "0_a.png"),
        ("Dr. Beta", {"grade": 1}, "0_b.png"),
    ]
    assert first.labels == {} and first.mask is None
    assert len(second.readings) == 1
    assert third.labels == {"grade": 1} and third.mask is not None and third.mask.name == "2_a.png"


def test_the_shards_hold_readings_and_consensus_and_no_name(tmp_path: Path, files_of) -> None:
    build(collection(tmp_path / "in", ROWS, "consensus: majority"), tmp_path / "out")
    shards = Shards.open(tmp_path / "out")
    metas = [shards.meta(ref) for ref in shards.refs("us-2d")]
    assert sorted(len(meta["readings"]) for meta in metas) == [1, 1, 2]
    both = next(meta for meta in metas if len(meta["readings"]) == 2)
    assert both["labels"] == {"grade": 0} and both["mask"]["origin"] == "majority"
    assert len({reading["annotator"] for meta in metas for reading in meta["readings"]}) == 2
    assert not any(b"Alpha" in data or b"Beta" in data for data in files_of(tmp_path / "out").values())


def test_rows_that_contradict_each_other_refuse_the_image(tmp_path: Path) -> None:
    rows = ROWS.replace("0.png,Dr. Beta,1,0_b.png,train", "0.png,Dr. Beta,1,0_b.png,test")
    rows += "1.png,Dr. Alpha,0,1_b.png,train\n"
    failures = {failure.path: failure.reason for failure in scan(collection(tmp_path / "in", rows)).failures}
    assert failures == {
        "0.png": "its rows disagree on its split; mend the table",
        "1.png": "two rows by one annotator; keep one, or name them apart",
    }
