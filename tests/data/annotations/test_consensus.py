"""Consensus: majority against SimpleITK's vote, STAPLE against simulated annotators, labels by kind."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.annotations import consensus as module
from medloom.data.annotations.consensus import consensus, consensus_labels, majority, staple
from medloom.data.annotations.kinds import parse_kinds
from medloom.data.errors import ConfigError

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK (extra `formats`) is the oracle and does STAPLE")


def ball(size: int = 40, radius: float = 11.0) -> np.ndarray:
    grid = np.indices((size, size, size)) - (size - 1) / 2
    return ((grid**2).sum(0) <= radius**2).astype(np.uint8)


def annotate(truth: np.ndarray, sensitivity: float, specificity: float, seed: int) -> np.ndarray:
    """An annotator who errs voxel by voxel."""
    draws = np.random.default_rng(seed).random(truth.shape)
    return np.where(truth > 0, draws < sensitivity, draws >= specificity).astype(np.uint8)


def test_majority_is_simpleitks_vote_where_there_is_no_tie() -> None:
    masks = [np.random.default_rng(n).integers(0, 4, (9, 10, 11)).astype(np.uint8) for n in range(5)]
    images = [sitk.GetImageFromArray(mask) for mask in masks]
    voted = sitk.GetArrayFromImage(sitk.LabelVoting(images, 255))
    found = majority(masks)
    clear = voted != 255
    assert 0.3 < clear.mean() < 1
    np.testing.assert_array_equal(found[clear], voted[clear])
    votes = np.stack([(np.stack(masks) == value).sum(0) for value in range(4)])
    np.testing.assert_array_equal(found, votes.argmax(0))  # of equally many the smallest


def test_two_annotators_leave_what_both_marked() -> None:
    a, b = np.array([[1, 1, 0, 2]], np.uint8), np.array([[1, 0, 0, 1]], np.uint8)
    assert majority([a, b]).tolist() == [[1, 0, 0, 1]]
    assert majority([a, b.astype(np.uint16)]).dtype == np.uint16


def test_staple_finds_out_how_good_each_annotator_is() -> None:
    truth = ball()
    quality = [(0.97, 0.995), (0.9, 0.98), (0.5, 0.97), (0.5, 0.97), (0.45, 0.96)]
    masks = [annotate(truth, *known, seed) for seed, known in enumerate(quality)]
    found = staple(masks)
    box = module._region(masks)
    for number, (sensitivity, specificity) in enumerate(quality):
        assert found.sensitivity[1][number] == pytest.approx(sensitivity, abs=0.015)
        assert found.specificity[1][number] == pytest.approx(specificity, abs=0.005)

    def dice(mask: np.ndarray) -> float:
        return 2 * (mask & truth)[box].sum() / (mask[box].sum() + truth[box].sum())

    assert dice(found.mask) > 0.97 > 0.9 > dice(majority(masks))


def test_staple_does_not_depend_on_the_field_of_view() -> None:
    truth = ball(40, 7)
    masks = [np.roll(truth, shift, axis=0) for shift in (-1, 0, 1, 2)]
    wide = [np.pad(mask, 20) for mask in masks]
    narrow, large = staple(masks), staple(wide)
    np.testing.assert_array_equal(narrow.mask, large.mask[20:-20, 20:-20, 20:-20])
    assert narrow.specificity == large.specificity
    direct = sitk.STAPLEImageFilter()
    direct.SetForegroundValue(1.0)
    images = [sitk.GetImageFromArray(mask[module._region(masks)]) for mask in masks]
    probability = sitk.GetArrayFromImage(direct.Execute(images))
    np.testing.assert_array_equal(narrow.mask[module._region(masks)], probability > 0.5)


def test_staple_of_several_structures_and_dtypes() -> None:
    truth = ball(24, 8).astype(np.uint16)
    truth[:, :, 12:][truth[:, :, 12:] > 0] = 300
    masks = [truth, truth.copy(), np.roll(truth, 1, axis=1)]
    found = staple(masks)
    np.testing.assert_array_equal(found.mask, truth)
    assert set(found.sensitivity) == {1, 300} and found.mask.dtype == np.uint16


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_equal_and_empty_masks_stay_what_they_are(method: str) -> None:
    empty = np.zeros((8, 9), np.uint8)
    np.testing.assert_array_equal(consensus([empty, empty], method), empty)
    same = np.zeros((8, 9), np.uint8)
    same[2:5, 3:6] = 7
    np.testing.assert_array_equal(consensus([same, same.copy(), same.copy()], method), same)


def test_staple_without_simpleitk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'medloom\[formats\]'"):
        staple([np.zeros((4, 4), np.uint8)])


KINDS = parse_kinds(
    {"grade": {"kind": "ordinal", "order": ["low", "mid", "high"]}, "f": "multi-label", "age": "value"},
    "kinds",
)


@pytest.mark.parametrize(
    ("name", "values", "agreed"),
    [
        ("class", ["a", "b", "a"], "a"),
        ("class", ["a", "b"], None),
        ("class", ["a"], "a"),
        ("grade", ["low", "high", "mid"], "mid"),
        ("grade", ["low", "low", "high", "high"], "low"),
        ("f", [["x", "y"], ["x"], ["y", "z"]], ["x", "y"]),
        ("f", [["x"], []], []),
        ("age", [40.0, 50.0, 90.0], 50.0),
    ],
)
def test_one_label_of_several_by_its_kind(name: str, values: list, agreed: object) -> None:
    found = consensus_labels([{name: value} for value in values], KINDS)
    assert found == ({} if agreed is None else {name: agreed})


def test_only_those_who_said_something_count() -> None:
    assert consensus_labels([{"class": "a"}, {}, {"class": "a", "f": ["x"]}], KINDS) == {
        "class": "a",
        "f": ["x"],
    }
