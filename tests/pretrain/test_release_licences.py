"""What the licences of everything that weights have seen say about sharing them."""

from __future__ import annotations

from typing import Any

from medloom.pretrain.release.licences import judged


def test_licences_of_what_it_started_from_count() -> None:
    source = {"dataset": "b", "licence": "CC-BY-NC-4.0", "count": 3}
    free = {"dataset": "a", "licence": "CC0-1.0", "count": 2}
    record = {"training": {"sources": [free], "ancestor": {"training": {"sources": [source]}}}}
    assert judged(record)["forbids"] == ["b (CC-BY-NC-4.0): non-commercial"]
    unknown = {"training": {"sources": [free], "init_from": "vit_base.dino"}}
    assert judged(unknown)["forbids"] == [
        "it started from vit_base.dino, whose training data and licence are not on record"
    ]
    assert "no training data" in judged({})["forbids"][0]
    assert judged({"training": {"sources": [free, free]}}, "no need")["override"] is None
    assert judged({"training": {"sources": [free, free]}})["parts"][0]["images"] == 4


def test_an_ancestor_that_is_known_in_part_stands_against_it() -> None:
    free = {"dataset": "a", "licence": "CC0-1.0", "count": 2}
    start = {"training": {"sources": [free], "complete": False}}
    record = {"training": {"sources": [free], "init_from": "rad-dino", "ancestor": start}}
    assert judged(record)["forbids"] == ["what rad-dino was trained on is known only in part"]
    assert judged(start)["forbids"] == ["what it was trained on is known only in part"]


def test_the_licence_of_the_weights_it_started_from_counts() -> None:
    free = {"dataset": "a", "licence": "CC0-1.0", "count": 2}
    start = {"licence": "CC-BY-NC-4.0", "training": {"sources": [free]}}
    found = judged({"training": {"sources": [free], "init_from": "3dino", "ancestor": start}})
    assert found["forbids"] == ["weights of 3dino (CC-BY-NC-4.0): non-commercial"]
    assert found["credit"] == ["weights of 3dino"] and found["together"] == "non-commercial"
    open_ = {"licence": "MIT", "training": {"sources": [free]}}
    assert not judged({"training": {"sources": [free], "ancestor": open_}})["forbids"]


def test_the_strictest_of_all_that_is_stated_of_a_dataset_decides_everything() -> None:
    def source(licence: str, name: str = "a") -> dict[str, Any]:
        return {"dataset": name, "licence": licence, "count": 1}

    strict, free = source("CC-BY-NC-SA-4.0"), source("CC0-1.0")
    for twice in ([strict, free], [free, strict]):
        found = judged({"training": {"sources": twice}})
        assert "non-commercial" in found["forbids"][0] and found["parts"][0]["images"] == 2
        assert found["credit"] == found["share_alike"] == ["a"]
        assert found["together"] == "non-commercial, share-alike"
    catalogued = judged({"training": {"sources": [source("CC0-1.0", "ham10000")]}})
    assert catalogued["together"] == "non-commercial" and catalogued["credit"] == ["ham10000"]


def test_the_catalogue_may_be_stricter_than_the_collection() -> None:
    record = {"training": {"sources": [{"dataset": "ham10000", "licence": "CC0-1.0", "count": 1}]}}
    found = judged(record)
    assert found["parts"][0]["catalogued"] == "CC-BY-NC-4.0"
    assert found["forbids"] == ["ham10000 (CC0-1.0): non-commercial"]
