"""Classes of a run: numbered through the datasets, never those of a test or validation sample."""

import numpy as np
import pytest
from medloom.data.errors import ConfigError
from medloom.data.shards.reader import Shards
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.stream import Stream
from medloom.data.stream.targets import class_heads, structure_heads
from medloom.data.stream.validation import Validation, with_label, with_mask
from medloom.pretrain.config import ProbeConfig
from medloom.pretrain.probe_sets import probe_sets

from .labelled import picture, sample, write

SPLITS = ("train", "train", "val", "train", "test", "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)

    def flat(key, word, split, **labels):
        image = rng.integers(0, 255, (1, 16, 16)).astype(np.uint8)
        known = {} if word is None else {"class": word}
        return sample(key, image, "x-ray", split=split, labels=known | labels)

    skin = [flat(f"skin-{n:04d}", ("mole", "wart", None)[n % 3], SPLITS[n % 6], age=n) for n in range(30)]
    lung = [flat(f"lung-{n:04d}", ("wart", "clear")[n % 2], None, grade=n % 4) for n in range(40)]
    tags = [flat(f"tags-{n:04d}", ["a", "b"], "train", one="same") for n in range(4)]
    polyp = [picture(f"polyp-{n:04d}", (24, 20), 0, split=SPLITS[n % 6]) for n in range(12)]
    sources = {"skin-2d": skin, "lung-2d": lung, "tags-2d": tags, "polyp-2d": polyp}
    kinds = {"grade": {"kind": "ordinal", "order": [3, 2, 1, 0]}}
    return write(
        tmp_path_factory.mktemp("targets"),
        sources,
        lung_2d={"label_kinds": kinds},
        tags_2d={"label_kinds": {"class": {"kind": "multi-label"}}},
        skin_2d={"label_kinds": {"age": {"kind": "value"}}},
    )


def stream(folder, **kwargs):
    return Stream(StreamConfig(shards=str(folder), crop=[16, 16], workers=0, batch_size=4, **kwargs))


def seen(opened, count=400):
    """key -> label of the samples at the first positions; one sample has one label."""
    found = {}
    for one in opened.__getitems__(range(count)):
        assert found.setdefault(one["key"], one["label"]) == one["label"]
    return found


def test_each_dataset_is_a_head_of_its_own(folder):
    opened = stream(folder, labels="class")
    assert opened.targets is not None
    assert opened.targets.classes == {"skin": ["mole", "wart"], "lung": ["clear", "wart"]}
    shards = Shards.open(folder)
    found = seen(opened)
    for key, label in found.items():
        meta = shards.meta(shards.find(key))
        if label >= 0:
            name = [("skin", "mole"), ("skin", "wart"), ("lung", "clear"), ("lung", "wart")][label]
            assert name == (meta["dataset"], meta["labels"]["class"])
    assert set(found.values()) == {-1, 0, 1, 2, 3}


def test_shared_classes_are_one_head(folder):
    opened = stream(folder, labels="class", labels_shared=True)
    assert opened.targets is not None and opened.targets.classes == {"all": ["mole", "wart", "clear"]}
    found = seen(opened)
    assert {label for key, label in found.items() if key.startswith("lung")} == {-1, 1, 2}
    assert {label for key, label in found.items() if key.startswith("skin")} == {-1, 0, 1}


def test_labels_of_test_and_validation_samples_are_withheld(folder):
    shards, found = Shards.open(folder), seen(stream(folder, labels="class"))
    lung = next(source for source in shards.manifest.sources if source.id == "lung-2d")
    validates = Validation.of(shards, lung, with_label("class"))
    for key, label in found.items():
        meta = shards.meta(shards.find(key))
        if meta["split"] in ("val", "test") or (meta["split"] is None and validates(meta)):
            assert label == -1
        elif meta["dataset"] in ("skin", "lung") and meta["labels"].get("class"):
            assert label >= 0
    assert sum(key.startswith("skin") and label >= 0 for key, label in found.items()) >= 10
    assert sum(key.startswith("lung") and label == -1 for key, label in found.items()) >= 4


def test_no_label_that_a_probe_scores_is_ever_read(folder):
    shards = Shards.open(folder)
    opened = stream(folder, labels="class", masks=True)
    assert opened.targets is not None
    scores = ProbeConfig(scores=["knn", "linear", "dense"])
    scored = {"class": 0, "mask": 0}
    for kind, sets in probe_sets(shards, scores, [opened.config]).items():
        for ref, validates in ((r, v) for one in sets for r, v in zip(one.refs, one.validation, strict=True)):
            meta = shards.meta(ref)
            label, table = opened.targets.label(meta), opened.targets.table(meta)
            assert (label < 0 if kind == "class" else table is None) == bool(validates)
            scored[kind] += bool(validates)
    assert min(scored.values()) >= 2


def test_of_few_subjects_one_validates(tmp_path):
    """A hash may take none of them, or all."""
    for subjects in ("abc", "bdf", "kl", "mnopq"):
        ones = [picture(f"few-{n:04d}", (12, 12), 0, subject=name) for n, name in enumerate(subjects)]
        path = write(tmp_path / subjects, {"few-2d": ones})
        shards = Shards.open(path)
        validates = Validation.of(shards, shards.manifest.sources[0], with_mask)
        assert 0 < sum(validates(one.meta) for one in ones) < len(ones)
        found = {
            one["key"]: (one["mask"] == -1).all() for one in stream(path, masks=True).__getitems__(range(40))
        }
        assert found == {one.key: validates(one.meta) for one in ones}


def test_label_maps_of_withheld_samples_are_unknown(folder):
    opened = stream(folder, masks=True, sources=["polyp"])
    for one in opened.__getitems__(range(60)):
        withheld = SPLITS[int(one["key"][-4:]) % 6] in ("val", "test")
        assert (one["mask"] == -1).all() if withheld else (one["mask"] >= 0).all()


def test_ordinal_classes_keep_their_order(folder):
    opened = stream(folder, labels="grade")
    assert opened.targets is not None and opened.targets.classes == {"lung": ["3", "2", "1", "0"]}


def test_labels_that_are_no_classes_are_refused_with_a_near_name(folder):
    for key in ("age", "one", "clas"):
        with pytest.raises(ConfigError, match=f"data.labels is '{key}'.*"):
            stream(folder, labels=key)
    with pytest.raises(ConfigError, match=r"did you mean class\?"):
        stream(folder, labels="clas")
    with pytest.raises(ConfigError, match=r"data\.masks.*no source has label maps"):
        stream(folder, masks=True, sources=["skin"])
    with pytest.raises(ConfigError, match=r"data\.zoom is for volumes"):
        stream(folder, zoom=[0.5, 2.0])


def test_heads_come_from_the_manifest_and_the_metadata(folder):
    shards = Shards.open(folder)
    sources = shards.manifest.sources
    assert list(class_heads("class", sources)) == ["skin", "lung"]
    assert structure_heads(shards, sources) == {"polyp": ["background", "one", "two", "three"]}


def test_the_log_says_what_is_learnt(folder):
    lines = stream(folder, labels="class", masks=True).describe(3)
    assert "4 classes of skin, lung" in lines[0] and "label maps: 4 classes of polyp" in lines[1]
