"""data/collection.py: the YAML is checked, the scan is deterministic, and leaks stop it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from medloom.data import privacy
from medloom.data.collection import Collection, Scan, scan
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.sample import Modality, Organ

ROOT = Path(__file__).resolve().parents[2]
SALT = "a salt for tests"


def make(
    folder: Path, rows: list[str] | None = None, columns: str = "path,label,who,split"
) -> dict[str, Any]:
    """A table dataset in `folder`; returns its entry of `sources`."""
    rows = rows if rows is not None else ["b.png,x,p1,train", "a.png,y,p2,test", "c.png,x,p3,val"]
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row.split(",")[0]).write_bytes(b"junk")
    (folder / "manifest.csv").write_text("\n".join([columns, *rows]) + "\n")
    options = {"label": "label", "subject": "who", "split": "split"}
    return {
        "dataset": folder.name,
        "layout": "table",
        "root": folder.name,
        "modality": "ct",
        "options": options,
    }


def write(folder: Path, *sources: dict[str, Any], **keys: Any) -> Path:
    path = folder / "collection.yaml"
    path.write_text(yaml.safe_dump({"name": "c", "salt": SALT, "sources": list(sources), **keys}))
    return path


def names(result: Scan) -> list[tuple[str, str]]:
    return [(record.dataset, record.name) for _, record in result.records]


# ---- loading


def test_a_collection_is_checked_and_typed(tmp_path: Path) -> None:
    entry = make(tmp_path / "one")
    entry |= {"organ": "retina", "licence": "MIT", "mask_values": {255: 1}, "mask_classes": {1: "disc"}}
    collection = Collection.load(write(tmp_path, entry, held_out=[{"dataset": "one", "splits": ["test"]}]))
    (source,) = collection.sources
    assert (source.dataset, source.root, source.licence) == ("one", tmp_path / "one", "MIT")
    assert (source.modality, source.organ) == (Modality.CT, Organ.EYE)
    assert (source.mask_values, source.mask_classes) == ({255: 1}, {1: "disc"})
    assert source.options.subject == "who"
    assert collection.salt == SALT.encode()
    assert SALT not in repr(collection)


def test_without_a_salt_the_users_own_is_taken(tmp_path: Path) -> None:
    collection = Collection.load(write(tmp_path, make(tmp_path / "one"), salt=None))
    assert collection.salt == privacy.load_salt()


def test_the_root_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make(tmp_path / "data/one")
    path = write(tmp_path, entry, root=None)
    with pytest.raises(CollectionError, match="--root"):
        Collection.load(path)
    assert Collection.load(path, root=tmp_path / "data").sources[0].root == tmp_path / "data/one"
    assert Collection.load(path, overrides=[f"root={tmp_path / 'data'}"]).root == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assert Collection.load("collection.yaml", root="data").root == tmp_path / "data"
    assert Collection.load(write(tmp_path, entry, root="data")).root == tmp_path / "data"


def test_overrides_reach_into_sources(tmp_path: Path) -> None:
    path = write(tmp_path, make(tmp_path / "one"))
    assert Collection.load(path, overrides=["sources[0].modality=mri"]).sources[0].modality == Modality.MRI


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "One!"}, r"sources\[0\]: dataset: 'One!'.*'one'"),
        ({"layout": "tabel"}, r"sources\[0\]\.layout: unknown 'tabel'; did you mean table"),
        ({"modality": "ctt"}, "unknown modality 'ctt'; did you mean ct"),
        ({"organ": "lungg"}, "unknown organ 'lungg'; did you mean lung"),
        ({"splits": ["trian"]}, "unknown split 'trian'; did you mean train"),
        ({"fourth_axis": "frame"}, "unknown 'frame'; did you mean frames"),
        ({"mask_values": "nonzer"}, "expected null, nonzero or"),
        ({"mask_values": {"a": 1}}, "expected null, nonzero or"),
        ({"licens": "MIT"}, "licens: unknown key; did you mean licence"),
        ({"options": {"lable": "x"}}, "lable: unknown key; did you mean label"),
        ({"options": {"words": {"modalty": {}}}}, "did you mean modality"),
        ({"mask_classes": {"one": "x"}}, "mask_classes"),
    ],
)
def test_a_wrong_entry_is_named_with_its_neighbours(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, make(tmp_path / "one") | change)
    with pytest.raises(ConfigError, match=message):
        Collection.load(path)


def test_wrong_keys_of_the_collection_and_of_rules(tmp_path: Path) -> None:
    entry = make(tmp_path / "one")
    with pytest.raises(ConfigError, match="held_outs: unknown key; did you mean held_out"):
        Collection.load(write(tmp_path, entry, held_outs=[]))
    with pytest.raises(ConfigError, match=r"held_out\[0\]: no source 'onne'; did you mean one"):
        Collection.load(write(tmp_path, entry, held_out=[{"dataset": "onne"}]))
    with pytest.raises(ConfigError, match=r"held_out\[0\]\.splits: unknown split 'tset'; did you mean test"):
        Collection.load(write(tmp_path, entry, held_out=[{"dataset": "one", "splits": ["tset"]}]))
    with pytest.raises(ConfigError, match="no such file"):
        Collection.load(tmp_path / "nothing.yaml")


def test_collections_that_cannot_be_loaded(tmp_path: Path) -> None:
    entry = make(tmp_path / "one")
    with pytest.raises(CollectionError, match="no sources"):
        Collection.load(write(tmp_path))
    with pytest.raises(CollectionError, match="'one' is given twice"):
        Collection.load(write(tmp_path, entry, entry))
    with pytest.raises(CollectionError, match=r"gone: no such folder \(root of source one\)"):
        Collection.load(write(tmp_path, entry | {"root": "gone"}))
    with pytest.raises(CollectionError, match=r"nowhere: no such folder \(root of collection c\)"):
        Collection.load(write(tmp_path, entry), root=tmp_path / "nowhere")
    with pytest.raises(CollectionError, match=r"dataset\.json: missing; layout msd needs it"):
        Collection.load(write(tmp_path, {"dataset": "one", "layout": "msd", "root": "one"}))


def test_a_short_salt_in_the_yaml_is_refused(tmp_path: Path) -> None:
    collection = Collection.load(write(tmp_path, make(tmp_path / "one"), salt="abc"))
    with pytest.raises(ConfigError, match="collection c: salt"):
        scan(collection)


# ---- scanning


def test_the_order_is_the_yamls_and_then_the_names(tmp_path: Path) -> None:
    path = write(tmp_path, make(tmp_path / "two"), make(tmp_path / "one"))
    first, second = scan(Collection.load(path)), scan(Collection.load(path))
    wanted = [(dataset, name) for dataset in ("two", "one") for name in ("a.png", "b.png", "c.png")]
    assert names(first) == wanted
    assert first == second
    assert all(source.dataset == record.dataset for source, record in first.records)


def test_the_order_of_rows_and_of_the_disk_does_not_matter(tmp_path: Path) -> None:
    rows = ["b.png,x,p1,train", "a.png,y,p2,test", "c.png,x,p3,val"]
    forward = scan(Collection.load(write(tmp_path, make(tmp_path / "one", rows))))
    backward = scan(Collection.load(write(tmp_path, make(tmp_path / "one", rows[::-1]))))
    assert forward == backward


def test_progress_counts_to_the_end_of_every_source(tmp_path: Path) -> None:
    rows = [f"{number:03d}.png,x,p{number},train" for number in range(300)]
    seen: list[tuple[int, int, str]] = []
    collection = Collection.load(write(tmp_path, make(tmp_path / "one", rows), make(tmp_path / "two")))
    scan(collection, lambda *call: seen.append(call))
    one, two = "scan | one", "scan | two"
    assert seen == [(0, 300, one), (256, 300, one), (300, 300, one), (0, 3, two), (3, 3, two)]


def test_held_out_splits_and_datasets_leave_the_records(tmp_path: Path) -> None:
    rules = [{"dataset": "one", "splits": ["test", "val"]}, {"dataset": "two"}]
    path = write(
        tmp_path, make(tmp_path / "one"), make(tmp_path / "two"), make(tmp_path / "three"), held_out=rules
    )
    result = scan(Collection.load(path))
    assert Counter(dataset for dataset, _ in names(result)) == {"one": 1, "three": 3}
    assert [(record.dataset, record.name) for _, record in result.held_out] == [
        ("one", "a.png"), ("one", "c.png"), ("two", "a.png"), ("two", "b.png"), ("two", "c.png"),
    ]  # fmt: skip


def test_a_whole_dataset_is_held_out_with_the_images_that_have_no_split(tmp_path: Path) -> None:
    entry = make(tmp_path / "one", ["a.png,x,p1,", "b.png,x,p2,train"])
    result = scan(Collection.load(write(tmp_path, entry, held_out=[{"dataset": "one"}])))
    assert (len(result.records), len(result.held_out)) == (0, 2)


def test_a_rule_that_would_hold_nothing_out_stops_the_scan(tmp_path: Path) -> None:
    entry = make(tmp_path / "one", ["a.png,x,p1,train"])
    collection = Collection.load(write(tmp_path, entry, held_out=[{"dataset": "one", "splits": ["test"]}]))
    with pytest.raises(CollectionError, match=r"no image of split 'test' .it has train"):
        scan(collection)


def test_splits_of_a_source_come_after_held_out_rules(tmp_path: Path) -> None:
    entry = make(tmp_path / "one") | {"splits": ["train"]}
    result = scan(Collection.load(write(tmp_path, entry, held_out=[{"dataset": "one", "splits": ["test"]}])))
    assert names(result) == [("one", "b.png")]
    assert [record.name for _, record in result.held_out] == ["a.png"]
    assert [(item.path, item.reason) for item in result.excluded] == [
        ("c.png", "split val is not among train")
    ]


def test_labels_outside_the_declared_classes_fail_alone(tmp_path: Path) -> None:
    rows = ["a.png,benign,p1,", "b.png,bening,p2,", "c.png,,p3,"]
    entry = make(tmp_path / "one", rows) | {"classes": ["benign", "malignant"]}
    result = scan(Collection.load(write(tmp_path, entry)))
    assert names(result) == [("one", "a.png"), ("one", "c.png")]
    (failure,) = result.failures
    assert failure.path == "b.png"
    assert "'bening' is not among the declared classes; did you mean benign" in failure.reason
    assert failure.key == privacy.key_of(SALT.encode(), "one", "b.png")


def test_a_name_that_is_listed_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["a.png,x,p1,train", "b.png,x,p2,train", "a.png,y,p1,train"]
    with caplog.at_level(logging.WARNING):
        result = scan(Collection.load(write(tmp_path, make(tmp_path / "one", rows))))
    assert names(result) == [("one", "a.png"), ("one", "b.png")]
    assert result.records[0][1].labels == {"class": "x"}
    assert [failure.reason for failure in result.failures] == ["is listed twice; the first one counts"]
    assert "1 of 3 images cannot be used" in caplog.text


@pytest.mark.parametrize(
    "rows", [["a.png,x,p1,train", "b.png,x,p1,test"], ["a.png,x,p1,train", "a.png,x,p1,test"]]
)
def test_a_subject_in_two_splits_stops_the_scan_and_stays_unnamed(tmp_path: Path, rows: list[str]) -> None:
    collection = Collection.load(write(tmp_path, make(tmp_path / "one", rows)))
    with pytest.raises(CollectionError, match=r"is in two splits, train .* and test") as caught:
        scan(collection)
    assert privacy.subject_key(SALT.encode(), "one", "p1") in str(caught.value)
    assert "p1" not in str(caught.value)


def test_an_image_without_a_usable_label_still_betrays_a_leak(tmp_path: Path) -> None:
    rows = ["a.png,x,p1,train", "b.png,wrong,p1,test"]
    collection = Collection.load(write(tmp_path, make(tmp_path / "one", rows) | {"classes": ["x"]}))
    with pytest.raises(CollectionError, match="in two splits"):
        scan(collection)


def test_the_same_subject_in_two_datasets_is_two_subjects(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", ["a.png,x,p1,train"]), make(tmp_path / "two", ["a.png,x,p1,test"])
    assert len(scan(Collection.load(write(tmp_path, one, two))).records) == 2


def test_excludes_mend_a_leak_and_are_listed(tmp_path: Path) -> None:
    rows = ["a.png,x,p1,train", "b.png,x,p1,test", "c.png,x,p2,test"]
    entry = make(tmp_path / "one", rows) | {"exclude": ["b.*"]}
    result = scan(Collection.load(write(tmp_path, entry)))
    assert names(result) == [("one", "a.png"), ("one", "c.png")]
    assert [(item.path, item.reason) for item in result.excluded] == [("b.png", "exclude 'b.*'")]


def test_empty_collections_stop_the_scan(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    empty = {"dataset": "none", "layout": "image_folder", "root": "none"}
    with pytest.raises(CollectionError, match=r"layout image_folder finds no image .source none"):
        scan(Collection.load(write(tmp_path, empty)))
    with pytest.raises(CollectionError, match="collection c: empty, 3 images were excluded"):
        scan(Collection.load(write(tmp_path, make(tmp_path / "one") | {"exclude": ["*"]})))


def test_a_source_of_which_nothing_can_be_used_stops_the_scan(tmp_path: Path) -> None:
    entry = make(tmp_path / "one") | {"classes": ["other"]}
    with pytest.raises(CollectionError, match=r"none of 3 images can be used; the first, a\.png: label 'y'"):
        scan(Collection.load(write(tmp_path, entry)))


# ---- the shipped collection of real data


def test_the_real_collection_needs_a_root() -> None:
    with pytest.raises(CollectionError, match="--root"):
        Collection.load(ROOT / "configs/collections/realdata.yaml")


@pytest.mark.realdata
def test_the_real_collection_is_read_whole_and_holds_out_its_tasks(realdata: Path) -> None:
    collection = Collection.load(ROOT / "configs/collections/realdata.yaml", root=realdata)
    result = scan(collection)
    assert result.failures == []
    listed = {
        item["id"]: item["n_items"] for item in json.loads((realdata / "index.json").read_text())["datasets"]
    }
    found = Counter(record.dataset for _, record in result.records + result.held_out)
    found.update(item.dataset for item in result.excluded)
    assert set(listed) == set(found)
    found["dicom_series_mixed"] = sum(
        len(record.paths) for _, record in result.records if record.dataset == "dicom_series_mixed"
    )
    assert {dataset: listed[dataset] for dataset in found} == found
    held = Counter((record.dataset, record.split) for _, record in result.held_out)
    whole, tests = {"mr_hippocampus_msd", "us_breast_busi"}, {"derm_ham10000", "endoscopy_polyps_endotect"}
    assert {dataset for dataset, _ in held} == whole | tests | {"micro_nuclei_dsb2018"}
    assert held["derm_ham10000", "test"] == 75
    assert ("derm_ham10000", "train") not in held
    subjects = {(r.dataset, r.subject) for _, r in result.records} & {
        (r.dataset, r.subject) for _, r in result.held_out
    }
    assert subjects == set()


@pytest.mark.realdata
def test_the_real_collection_knows_what_it_shows(realdata: Path) -> None:
    result = scan(Collection.load(ROOT / "configs/collections/realdata.yaml", root=realdata))
    everything = [record for _, record in result.records + result.held_out]
    assert all(record.modality is not None for record in everything)
    assert all(record.organ is not None or record.dataset == "dicom_series_mixed" for record in everything)
    assert {record.modality for record in everything if record.dataset == "dicom_series_mixed"} == {
        Modality.CT, Modality.MRI, Modality.PET, Modality.SPECT, Modality.DSA,
    }  # fmt: skip
    assert all(source.licence != "unknown" for source, _ in result.records)
