"""A curation from files to `curation.json`: what goes, why, and that it is the same every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.curate import measure
from medloom.data.curate.curate import curate
from medloom.data.curate.findings import Settings
from medloom.data.curate.sheets import draw
from medloom.data.errors import ConfigError
from medloom.data.privacy import key_of
from PIL import Image as Pillow

from .conftest import NAME

SALT = b"a-salt-for-tests"


def rows(path: Path) -> dict[str, dict]:
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def key(dataset: str, name: str) -> str:
    return key_of(SALT, dataset, f"{NAME}_{name}")


@pytest.fixture
def decisions(tmp_path) -> Callable[..., dict[str, str]]:
    """`decisions(collection, **options)`: file name -> decision and rules, by dataset/name."""

    def run(collection: Collection, names: list[str], **options) -> dict[str, str]:
        result = curate(collection, tmp_path / "out", **options)
        found = rows(result.path)
        words = {}
        for name in names:
            row = found[key(*name.split("/"))]
            rules = [finding["rule"] for finding in row.get("findings", ())]
            words[name] = " ".join([row["decision"], *rules])
        return words

    return run


def test_copies_of_many_kinds(collection, decisions, image):
    base, other = image(1), image(2)
    files = {
        "a.png": base,
        "b.tif": base,  # the same pixels in another format
        "c.jpg": base,  # lossy
        "d.png": base[6:, 8:],  # cropped
        "e.png": np.asarray(Pillow.fromarray(base).resize((120, 96), Pillow.Resampling.BICUBIC)),
        "f.png": (base * 0.7 + 20).astype(np.uint8),
        "g.png": np.ascontiguousarray(base[:, ::-1]),
        "h.png": other,
    }
    found = decisions(collection({"pics": files}), [f"pics/{name}" for name in files])
    assert found == {
        "pics/a.png": "keep", "pics/b.tif": "drop copy", "pics/c.jpg": "drop near",
        "pics/d.png": "drop near", "pics/e.png": "drop near", "pics/f.png": "drop near",
        "pics/g.png": "keep turned", "pics/h.png": "keep",
    }  # fmt: skip


def test_volumes_with_dropped_slices_wider_types_and_central_slices(collection, decisions, image):
    base = image(1, (40, 48, 56)).astype(np.int16)
    files = {
        "a.nii.gz": base,
        "b.nii": base.astype(np.float32),  # the same values, stored wider, not compressed
        "c.nii.gz": base[4:],
        "d.nii.gz": np.delete(base, np.arange(2, 40, 5), axis=0),
        "e.nii.gz": image(2, (40, 48, 56)),
    }
    slices = {"s.png": base[20].astype(np.uint8), "t.png": image(3, (48, 56))}
    names = [*(f"vols/{name}" for name in files), *(f"pics/{name}" for name in slices)]
    assert decisions(collection({"vols": files, "pics": slices}), names) == {
        "vols/a.nii.gz": "keep", "vols/b.nii": "drop copy", "vols/c.nii.gz": "drop near",
        "vols/d.nii.gz": "drop near", "vols/e.nii.gz": "keep", "pics/s.png": "keep slice",
        "pics/t.png": "keep",
    }  # fmt: skip


def test_held_out_by_pixels_near_pixels_and_subject(collection, decisions, image):
    held = {"a.png test:p1": image(1), "b.png test:p2": image(2), "c.png test:p3": image(3)}
    train = {"d.png train:p4": image(4), "e.png train:p5": image(5)}
    other = {
        "x.tif": image(1), "y.png": image(2)[5:, 9:], "z.png": np.ascontiguousarray(np.rot90(image(3))),
        "w.png": image(6),
    }  # fmt: skip
    made = collection({"task": held | train, "other": other}, held_out="[{dataset: task, splits: [test]}]")
    names = ["task/a.png", "task/d.png", *(f"other/{name}" for name in other)]
    assert decisions(made, names) == {
        "task/a.png": "held_out", "task/d.png": "keep", "other/x.tif": "drop held_out_copy",
        "other/y.png": "drop held_out_near", "other/z.png": "drop held_out_near", "other/w.png": "keep",
    }  # fmt: skip


def test_a_subject_without_a_split_of_its_own_is_dropped_unseen(collection, decisions, image):
    files = {"a.png test:p1": image(1), "b.png :p1": image(2), "c.png :p2": image(3)}
    made = collection({"task": files}, held_out="[{dataset: task, splits: [test]}]")
    assert decisions(made, ["task/b.png", "task/c.png"]) == {
        "task/b.png": "drop subject",
        "task/c.png": "keep",
    }


def test_relatives_of_a_held_out_dataset_are_dropped_unseen(collection, decisions, image):
    made = collection(
        {"busi": {"a.png": image(1)}, "breastmnist": {"b.png": image(2)}, "ham": {"c.png": image(3)}},
        held_out="[{dataset: busi}]",
    )
    names = ["busi/a.png", "breastmnist/b.png", "ham/c.png"]
    assert decisions(made, names) == {
        "busi/a.png": "held_out", "breastmnist/b.png": "drop relation", "ham/c.png": "keep",
    }  # fmt: skip


def test_clean_for_a_task_by_the_name_that_the_user_gives(collection, tmp_path, image):
    made = collection({"mine": {"a.png": image(1)}, "rest": {"b.png": image(2)}})
    result = curate(made, tmp_path / "out", clean_for=["msd-task03-liver"], ids=["mine=lits"])
    row = rows(result.path)[key("mine", "a.png")]
    assert row["decision"] == "drop"
    assert row["findings"][0]["held_out"] == "task msd-task03-liver"
    assert rows(result.path)[key("rest", "b.png")]["decision"] == "keep"
    with pytest.raises(ConfigError, match="mine"):
        curate(made, tmp_path / "other", ids=["mines=lits"])


def test_nothing_that_names_a_person_or_a_file(collection, tmp_path, image):
    made = collection({"pics": {"a.png": image(1), "b.png": image(1), "c.png": image(1)[5:]}})
    result = curate(made, tmp_path / "out")
    text = result.path.read_text()
    for secret in (NAME, ".png", str(tmp_path), "a-salt-for-tests"):
        assert secret not in text
    for receipt in (tmp_path / "out" / "work").rglob("*.json"):
        assert NAME not in receipt.read_text()


def test_the_same_bytes_with_workers_restarts_and_again(collection, tmp_path, image, monkeypatch):
    monkeypatch.setattr("medloom.data.curate.curate.UNIT_BYTES", 60_000)
    files = {f"{n:02d}.png": image(n // 2)[n % 2 * 4 :] for n in range(10)}
    made = collection({"pics": files})
    first = curate(made, tmp_path / "one").path.read_bytes()
    assert len(list((tmp_path / "one" / "work" / "units").glob("*.json"))) > 2
    assert curate(made, tmp_path / "two", workers=2).path.read_bytes() == first

    def never(*_):
        raise AssertionError("an image was read again")

    monkeypatch.setattr(measure, "measures_of", never)
    assert curate(made, tmp_path / "one").path.read_bytes() == first
    loose = Settings.of([], ["near"], {"near_2d": "0.5"})
    assert b"near (flag)" in curate(made, tmp_path / "one", settings=loose).path.read_bytes()


def test_one_bad_file_is_listed_and_the_rest_is_curated(collection, tmp_path, image):
    made = collection({"pics": {"a.png": image(1), "b.png": image(2)}})
    bad = tmp_path / "in" / "pics" / f"{NAME}_a.png"
    bad.write_bytes(bad.read_bytes()[:300])
    result = curate(made, tmp_path / "out")
    row = rows(result.path)[key("pics", "a.png")]
    assert row["decision"] == "refused"
    assert NAME not in row["reason"]
    assert [failure.path for failure in result.failures] == [f"{NAME}_a.png"]
    assert rows(result.path)[key("pics", "b.png")]["decision"] == "keep"


KILLED = """
import os, signal, sys
from pathlib import Path
from medloom.data.collection import Collection
from medloom.data.curate import curate, measure
curate.UNIT_BYTES = 60_000
left = int(sys.argv[3])
inner = measure.save
def save(path, array):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    inner(path, array)
measure.save = save
curate.curate(Collection.load(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_killed_run_continues(collection, tmp_path, image, monkeypatch, after):
    made = collection({"pics": {f"{n}.png": image(n) for n in range(8)}})
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "collection.yaml"),
        str(tmp_path / "out"),
        str(after),
    ]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out" / "curation.json").exists()
    monkeypatch.setattr("medloom.data.curate.curate.UNIT_BYTES", 60_000)
    whole = curate(made, tmp_path / "whole").path.read_bytes()
    assert curate(made, tmp_path / "out").path.read_bytes() == whole


def test_a_chain_of_copies_does_not_pull_its_ends_together(collection, decisions, image):
    """Each crop is alike to the next; the last is not alike to the first, and stays."""
    base = image(7, (400, 400))
    files = {f"{n}.png": np.ascontiguousarray(base[: 400 - 16 * n, : 400 - 16 * n]) for n in range(5)}
    found = decisions(collection({"pics": files}), [f"pics/{name}" for name in files])
    assert found["pics/0.png"] == "keep"
    assert found["pics/1.png"] == "drop near"
    assert list(found.values()).count("keep") >= 2


def test_leaks_between_splits_are_counted(collection, tmp_path, image):
    files = {"a.png train:p": image(1), "b.png test:q": image(1)[4:], "c.png test:r": image(2)}
    result = curate(collection({"task": files}, held_out="[{dataset: task}]"), tmp_path / "out")
    assert result.leaks == {"task": {"test and train": 1}}
    assert {row["decision"] for row in rows(result.path).values()} == {"held_out"}


def test_sheets_show_what_was_found(collection, tmp_path, image):
    made = collection(
        {"pics": {"a.png": image(1), "b.png": image(1)[5:], "c.png": np.full((80, 80), 9, np.uint8)}}
    )
    result = curate(made, tmp_path / "out")
    sheets = draw(result, tmp_path / "out" / "sheets")
    assert [path.name for path in sheets] == ["near.png", "blank.png"]
    pixels = np.asarray(Pillow.open(sheets[0]).convert("L"))
    tiles = pixels[54 : 54 + 176, 10 : 10 + 176], pixels[54 : 54 + 176, 188 : 188 + 176]
    assert np.corrcoef(tiles[0].ravel(), tiles[1].ravel())[0, 1] > 0.8
    assert tiles[0].std() > 20
