"""The kNN probe: its vote, its splits, and that it reads what the stream reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from medloom.data.shards.reader import Shards
from medloom.data.stream.config import StreamConfig
from medloom.pretrain.config import ProbeConfig
from medloom.pretrain.encoders.base import Features
from medloom.pretrain.probes import KnnProbe, _split, balanced_accuracy, knn_predict, load, probe_sets
from sklearn.neighbors import KNeighborsClassifier


class Spread(torch.nn.Module):
    """Features of an image: how much it changes from row to row, and from column to column."""

    in_channels = 3

    def forward(self, x: torch.Tensor) -> Features:
        spread = torch.stack([x.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)], dim=1)
        return Features(pooled=spread, tokens=spread[:, None].repeat(1, 4, 1), grid=(2, 2))


def test_vote_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(200, 8, generator=generator)
    query = torch.randn(60, 8, generator=generator)
    labels = (train[:, 0] > 0).long() + (train[:, 1] > 0.5).long()
    unit = torch.nn.functional.normalize
    for k in (1, 5, 7):
        # Odd k and an identical metric: cosine order is the Euclidean order of unit vectors. Ties among three
        # classes are left out of the comparison, where scikit-learn takes the lowest label.
        oracle = KNeighborsClassifier(k).fit(unit(train).numpy(), labels.numpy())
        share = oracle.predict_proba(unit(query).numpy())
        clear = torch.from_numpy((share == share.max(1, keepdims=True)).sum(1) == 1)
        expected = torch.from_numpy(oracle.predict(unit(query).numpy()))
        found = knn_predict(train, labels, query, k=k, classes=3)
        assert torch.equal(found[clear], expected[clear])


def test_a_tie_goes_to_the_nearer_class() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert knn_predict(train, torch.tensor([1, 0]), query, k=2, classes=2).tolist() == [1, 0]


def test_balanced_accuracy_ignores_class_sizes() -> None:
    truth = torch.tensor([0] * 90 + [1] * 10)
    assert balanced_accuracy(truth, torch.zeros(100, dtype=torch.long)) == 0.5


def test_declared_validation_is_used_and_test_is_never_read() -> None:
    def row(number: int, split: str | None) -> tuple[int, dict]:
        return number, {"key": f"k{number}", "split": split, "subject": None, "labels": {"class": number % 2}}

    rows = [row(n, "val" if n < 6 else "train") for n in range(20)]
    found = _split("x", rows, "class")
    assert found is not None
    assert np.flatnonzero(found.validation).tolist() == list(range(6))

    class Fake:
        manifest = SimpleNamespace(
            sources=[SimpleNamespace(id="a-2d", dataset="a", ndim=2, labels={"class": {"0": 20, "1": 20}})]
        )

        def refs(self, source: str) -> range:
            return range(40)

        def meta(self, ref: int) -> dict:
            return row(ref, "test" if ref < 20 else "train")[1]

    sets = probe_sets(Fake(), ProbeConfig(), 2)  # pyright: ignore[reportArgumentType]
    assert sorted(sets[0].refs) == list(range(20, 40))


def test_one_subject_stays_on_one_side() -> None:
    rows = [(n, {"key": f"k{n}", "subject": f"s{n // 4}", "labels": {"class": n % 2}}) for n in range(120)]
    found = _split("x", rows, "class")
    assert found is not None
    sides = {(n // 4, bool(side)) for (n, _), side in zip(rows, found.validation, strict=True)}
    assert len(sides) == 30
    assert 0.1 < found.validation.mean() < 0.5


def test_features_that_tell_classes_apart_score_well_and_constant_ones_at_chance(tiny_shards: Path) -> None:
    data = StreamConfig(shards=str(tiny_shards), ndim=2, crop=[16, 16], batch_size=4)
    probe = KnnProbe(ProbeConfig(k=100), data)  # more than there are: cut to the smaller class
    assert {chosen.name for chosen in probe.sets} == {"tiny_pictures", "tiny_colour"}
    scores = probe(Spread(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert scores["probe/knn_tiny_pictures"] > 0.8
    assert scores["probe/rankme"] >= 1

    class Blind(Spread):
        def forward(self, x: torch.Tensor) -> Features:
            return super().forward(torch.ones_like(x) * torch.arange(x[0].numel()).reshape(x[0].shape))

    blind = probe(Blind(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert abs(blind["probe/knn_tiny_pictures"] - 0.5) < 0.01


def test_whole_images_are_read_at_the_crop_size(tiny_shards: Path) -> None:
    shards = Shards.open(tiny_shards)
    data = StreamConfig(shards=str(tiny_shards), ndim=3, crop=[16, 24, 24], batch_size=4)
    sample = load(shards, next(shards.refs("tiny_volumes-3d")), data)
    assert sample["image"].shape == (1, 16, 24, 24)
    assert sample["image"].dtype == np.int16
    middle = shards.read(next(shards.refs("tiny_volumes-3d")), [4, 0, 0], [16, 22, 20])
    assert np.array_equal(sample["image"][:, :, 1:23, 2:22], middle)
