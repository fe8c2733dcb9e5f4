"""data/layouts/medmnist.py: the eighteen sets, their labels by name, and files that are not as expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.catalog import load
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.interop import stacked
from medloom.data.readers import read
from medloom.data.sample import Modality

RNG = np.random.default_rng(0)
COUNTS = {"train": 12, "val": 3, "test": 2}
SETS = sorted(load().medmnist)


def write(
    path: Path, *, size: int = 28, axes: int = 2, colours: int = 1, labels: Any = None, **other: Any
) -> dict:
    """An .npz as MedMNIST's; returns its arrays."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in COUNTS.items():
        shape = (count, *[size] * axes, *([3] if colours == 3 else []))
        arrays[f"{split}_images"] = RNG.integers(0, 256, shape).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array(labels or [[0]] * count)[:count].astype(np.uint8)
    arrays |= other
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_there_are_eighteen_sets() -> None:
    assert len(SETS) == 18


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_with_the_names_of_its_classes(
    name: str, tmp_path: Path, scan: Callable, stored: Callable
) -> None:
    facts = load().medmnist[name]
    several = "multi-label" in facts.task
    rows = RNG.integers(0, 2, (12, 14)) if several else np.arange(12)[:, None] % facts.n_classes
    axes = 3 if name.endswith("3d") else 2
    arrays = write(tmp_path / f"{name}.npz", axes=axes, colours=facts.n_channels, labels=rows.tolist())
    found = scan("medmnist", tmp_path)
    assert not found.refused and len(found.records) == 17
    record = found.records["train/07"]
    assert (record.modality, record.licence, record.split) == (facts.modality, facts.licence, "train")
    if several:
        assert record.labels == {"findings": [facts.labels[n] for n in range(14) if rows[7][n]]}
    else:
        assert record.labels["class"] == facts.labels[7 % facts.n_classes]
    samples = stored("medmnist", tmp_path)
    expected = [*arrays["test_images"], *arrays["train_images"], *arrays["val_images"]]
    for sample, image in zip(samples, expected, strict=True):
        wanted = image.transpose(2, 0, 1) if facts.n_channels == 3 else image[None]
        np.testing.assert_array_equal(sample.image, wanted)
    assert {sample.meta["ndim"] for sample in samples} == {axes}


def test_grades_in_order_are_a_class_and_a_number(tmp_path: Path, scan: Callable) -> None:
    write(tmp_path / "retinamnist.npz", colours=3, labels=[[3]] * 12)
    assert scan("medmnist", tmp_path).records["train/00"].labels == {"class": "3", "grade": 3}


@pytest.mark.parametrize(("file", "size"), [("_64", 64), ("_128", 128), ("_224", 224)])
def test_the_larger_sizes_have_the_same_names(tmp_path: Path, scan: Callable, file: str, size: int) -> None:
    write(tmp_path / "small/pathmnist.npz", colours=3)
    write(tmp_path / f"large/pathmnist{file}.npz", size=size, colours=3)
    small, large = (scan("medmnist", tmp_path / folder).records for folder in ("small", "large"))
    assert list(small) == list(large)
    assert large["train/00"].modality == Modality.HISTOPATHOLOGY
    (image,) = read(large["val/2"].paths, given=large["val/2"].given)
    assert image.array.shape == (3, size, size)


def test_of_several_files_one_is_named(tmp_path: Path, scan: Callable) -> None:
    for name in ("pathmnist", "pathmnist_64", "octmnist"):
        write(tmp_path / f"{name}.npz", colours=3 if name.startswith("path") else 1)
    with pytest.raises(
        CollectionError, match=r"holds octmnist\.npz, pathmnist\.npz, pathmnist_64\.npz; name one"
    ):
        scan("medmnist", tmp_path)
    with pytest.raises(CollectionError, match=r"holds pathmnist\.npz, pathmnist_64\.npz; name one.*size: 28"):
        scan("medmnist", tmp_path, options={"subset": "pathmnist"})
    assert scan("medmnist", tmp_path, options={"subset": "octmnist"}).records
    assert scan("medmnist", tmp_path, options={"size": 64}).records
    with pytest.raises(CollectionError, match=r"no \.npz of pathmnits at size any; did you mean pathmnist"):
        scan("medmnist", tmp_path, options={"subset": "pathmnits"})
    with pytest.raises(ConfigError, match="28, 64, 128, 224"):
        scan("medmnist", tmp_path, options={"size": 32})


def test_the_scan_does_not_read_the_images(
    tmp_path: Path, scan: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pathmnist.npz", colours=3)

    def never(*_: object) -> bytes:
        raise AssertionError("the images were read")

    monkeypatch.setattr(stacked.Inflated, "read", never)
    assert len(scan("medmnist", tmp_path).records) == 17


def test_an_unknown_name_keeps_the_numbers_of_its_classes(tmp_path: Path, scan: Callable) -> None:
    write(tmp_path / "mine.npz", labels=[[4]] * 12)
    record = scan("medmnist", tmp_path, licence="CC0-1.0").records["train/00"]
    assert (record.labels, record.modality, record.licence) == ({"class": "4"}, None, "CC0-1.0")
    write(tmp_path / "mine.npz", labels=[[0, 1, 1]] * 12)
    assert scan("medmnist", tmp_path).records["train/00"].labels == {"findings": ["1", "2"]}


def test_a_class_that_there_is_not_is_refused_alone(tmp_path: Path, scan: Callable) -> None:
    write(tmp_path / "breastmnist.npz", labels=[[0], [2], *[[1]] * 10])
    found = scan("medmnist", tmp_path)
    assert set(found.refused) == {"train/01", "val/1", "test/1"}
    assert found.refused["train/01"].startswith("label 2 is not among the classes 0 to 1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"val_images": None}, "val_images.npy"),
        ({"test_labels": None}, "test_labels.npy"),
        (
            {"train_labels": np.zeros((11, 1), np.uint8)},
            r"train_labels of shape \(11, 1\).*each of 12 images",
        ),
        ({"train_labels": np.zeros((12, 1))}, "type float64"),
        ({"train_images": np.zeros((12, 28, 28, 28, 3), np.uint8)}, r"expected \[N, H, W\]"),
        ({"train_images": np.array([[{}]], dtype=object)}, "not numbers"),
    ],
)
def test_arrays_that_do_not_match_stop_the_scan(
    tmp_path: Path, scan: Callable, change: dict, reason: str
) -> None:
    write(tmp_path / "pathmnist.npz", **change)
    with pytest.raises(CollectionError, match=rf"pathmnist\.npz: .*{reason}"):
        scan("medmnist", tmp_path)


def test_a_truncated_download_and_an_empty_folder_stop_the_scan(tmp_path: Path, scan: Callable) -> None:
    with pytest.raises(CollectionError, match=r"no \.npz; layout medmnist expects"):
        scan("medmnist", tmp_path)
    write(tmp_path / "pathmnist.npz", colours=3)
    path = tmp_path / "pathmnist.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CollectionError, match=r"pathmnist\.npz: truncated or corrupt zip"):
        scan("medmnist", tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_the_catalogue_names_every_class_once(name: str) -> None:
    facts = load().medmnist[name]
    assert sorted(facts.labels) == list(range(facts.n_classes))
    assert len(set(facts.labels.values())) == facts.n_classes
