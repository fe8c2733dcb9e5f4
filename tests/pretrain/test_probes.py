"""Online probes: their splits, that they read what the stream reads, equal scores on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import pytest
import torch
from medloom.data.errors import ShardError
from medloom.data.shards.reader import SampleRef, Shards
from medloom.data.stream.config import StreamConfig
from medloom.pretrain.config import ProbeConfig
from medloom.pretrain.encoders.base import Features
from medloom.pretrain.probe_sets import boxes, load, load_mask, probe_sets
from medloom.pretrain.probes import Probe, cadence
from PIL import Image

from .ranks_harness import on_two_ranks, one_process


class Spread(torch.nn.Module):
    """Features of an image: how much it changes from row to row, and from column to column."""

    in_channels, embed_dim, convolutional = 3, 2, False

    def forward(self, x: torch.Tensor) -> Features:
        spread = torch.stack([x.diff(dim=axis).abs().mean(dim=(1, 2, 3)) for axis in (2, 3)], dim=1)
        return Features(pooled=spread, tokens=spread[:, None].repeat(1, 4, 1), grid=(2, 2))


def test_a_declared_validation_split_is_used_and_a_test_split_never_read() -> None:
    splits = {"test": 20, "val": 6, "train": 14}

    class Fake:
        manifest = SimpleNamespace(
            sources=[
                SimpleNamespace(
                    id="a-2d",
                    dataset="a",
                    ndim=2,
                    count=40,
                    masks=0,
                    splits=splits,
                    labels={"class": {"0": 20, "1": 20}},
                )
            ]
        )

        def refs(self, source: str) -> range:
            return range(40)

        def meta(self, ref: int) -> dict:
            split = "test" if ref < 20 else "val" if ref < 26 else "train"
            return {"key": f"k{ref}", "split": split, "subject": None, "labels": {"class": ref % 2}}

    data = [StreamConfig(ndim=2, crop=[16, 16])]
    sets = probe_sets(Fake(), ProbeConfig(), data)  # pyright: ignore[reportArgumentType]
    (chosen,) = sets["class"]
    assert sorted(chosen.refs) == list(range(20, 40)) and not sets["mask"]
    assert sorted(np.array(chosen.refs)[chosen.validation]) == list(range(20, 26))


def test_features_that_tell_classes_apart_score_well_and_constant_ones_at_chance(tiny_shards: Path) -> None:
    data = StreamConfig(shards=str(tiny_shards), ndim=2, crop=[16, 16], batch_size=4)
    probe = Probe(ProbeConfig(k=100), data)  # more than there are: cut to the smaller class
    assert {chosen.name for chosen in probe.sets["class"]} == {"tiny_pictures", "tiny_colour"}
    scores = probe(Spread(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert scores["probe/knn_tiny_pictures"] > 0.8
    assert scores["probe/linear_tiny_pictures"] > 0.8
    assert scores["probe/rankme"] >= 1

    class Blind(Spread):
        def forward(self, x: torch.Tensor) -> Features:
            return super().forward(torch.ones_like(x) * torch.arange(x[0].numel()).reshape(x[0].shape))

    blind = probe(Blind(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert abs(blind["probe/knn_tiny_pictures"] - 0.5) < 0.01
    assert abs(blind["probe/linear_tiny_pictures"] - 0.5) < 0.01


def test_whole_images_are_read_at_the_crop_size(tiny_shards: Path) -> None:
    shards = Shards.open(tiny_shards)
    data = StreamConfig(shards=str(tiny_shards), ndim=3, crop=[16, 24, 24], batch_size=4)
    sample = load(shards, next(shards.refs("tiny_volumes-3d")), data)
    assert sample["image"].shape == (1, 16, 24, 24)
    assert sample["image"].dtype == np.int16
    middle = shards.read(next(shards.refs("tiny_volumes-3d")), [4, 0, 0], [16, 22, 20])
    assert np.array_equal(sample["image"][:, :, 1:23, 2:22], middle)


class Means(torch.nn.Module):
    """Tokens that are the mean intensity of their patch of 4 pixels a side."""

    in_channels, embed_dim, convolutional = 1, 1, False

    def forward(self, x: torch.Tensor, pyramid: bool = False) -> Features:
        pool = torch.nn.functional.avg_pool2d if x.ndim == 4 else torch.nn.functional.avg_pool3d
        grid = pool(x, 4)
        tokens = grid.flatten(2).transpose(1, 2)
        return Features(pooled=tokens.mean(dim=1), tokens=tokens, grid=tuple(grid.shape[2:]))


def dense_scores(shards: str, ndim: int) -> dict[str, float]:
    data = StreamConfig(shards=shards, ndim=ndim, crop=[32, 32] if ndim == 2 else [16, 16, 16], channels=1)
    probe = Probe(ProbeConfig(scores=["dense", "linear"], dense_samples=30), data)
    return probe(Means(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ndim", [2, 3])
def test_tokens_that_follow_tissue_score_well_on_label_maps(masked_shards: Path, ndim: int) -> None:
    good = dense_scores(str(masked_shards), ndim)[f"probe/dense_{'flat' if ndim == 2 else 'solid'}"]
    assert 0.75 < good <= 1

    class Noise(Means):
        def forward(self, x: torch.Tensor, pyramid: bool = False) -> Features:
            return super().forward(torch.rand(x.shape, generator=torch.Generator().manual_seed(len(x))))

    data = StreamConfig(
        shards=str(masked_shards), ndim=ndim, crop=[32, 32] if ndim == 2 else [16] * 3, channels=1
    )
    noise = Probe(ProbeConfig(scores=["dense"]), data)(Noise(), torch.device("cpu"))  # type: ignore[arg-type]
    assert noise.popitem()[1] < 0.5 * good


def test_a_label_map_lies_on_the_voxels_of_its_image(masked_shards: Path) -> None:
    shards = Shards.open(masked_shards)
    for ndim, source in ((2, "flat-2d"), (3, "solid-3d")):
        data = StreamConfig(shards="", ndim=ndim, crop=[48, 48] if ndim == 2 else [12, 20, 28], channels=1)
        ref = next(shards.refs(source))
        for origin in [None] if ndim == 2 else [None, (13, 3, 0), (10, 8, 0)]:
            image = load(shards, ref, data, origin)["image"][0].astype(float)
            labels = load_mask(shards, ref, data, origin, ["0", "7"])
            assert set(np.unique(labels)) <= {-1, 0, 1} and (labels == 1).any()
            edge = np.abs(image - 130) < 45  # resizing mixes both sides of an outline there
            assert ((labels == 1) == (image > 130))[(labels >= 0) & ~edge].all()
    assert (load_mask(shards, ref, data, origin, ["0"]) != 1).all(), "values that are not named are unknown"


def test_boxes_are_where_labels_are() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[10:, :10, 10:] = 1
    mask[0, 0, 0] = 2
    assert boxes(mask, [10, 10, 10], 8) == [(10, 0, 10), (0, 0, 0)]
    assert boxes(mask, [10, 10, 10], 1) == [(10, 0, 10)]
    assert boxes(np.ones((8, 30, 12), np.uint8), [16, 16, 12], 8) == [(0, 7, 0)]


def test_the_cadence_is_a_share_of_the_run() -> None:
    assert cadence(ProbeConfig(every_steps=7), 1000, 10, 4) == 7
    assert cadence(ProbeConfig(every_steps=0), 1000, 10**6, 256) == 0
    every = cadence(ProbeConfig(), 6000, 100_000, 256)
    assert 6000 / (1.2 * 256 * every) == pytest.approx(0.01, rel=0.01)
    assert cadence(ProbeConfig(), 6000, 100, 16) == 0, "one probe would take longer than the run"
    assert cadence(ProbeConfig(), 0, 10**6, 256) == 0


def test_parts_of_a_teacher_keep_their_modes(tiny_shards: Path) -> None:
    encoder = Spread()
    encoder.norm = torch.nn.BatchNorm2d(3)
    encoder.eval()
    encoder.norm.train()  # as in a teacher: everything in evaluation, batch norms in training
    data = StreamConfig(shards=str(tiny_shards), ndim=2, crop=[16, 16], batch_size=4)
    probe = Probe(ProbeConfig(scores=["knn"], max_samples=12), data)
    probe(encoder, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert encoder.norm.training and not encoder.training


def on_a_rank(_: torch.Tensor, *, shards: str, ndim: int, tiny: str) -> torch.Tensor:
    """All scores as one sum of squares, which differs where one bit of one score does."""
    scores = dense_scores(shards, ndim)
    data = StreamConfig(shards=tiny, ndim=2, crop=[16, 16], batch_size=4)
    with mock.patch("medloom.pretrain.probes.BATCH", 8):
        scores |= Probe(ProbeConfig(), data)(Spread(), torch.device("cpu"))  # type: ignore[arg-type]
    values = torch.tensor([scores[key] for key in sorted(scores)], dtype=torch.float64)
    return (values * torch.arange(1, len(values) + 1)).square().sum() + 0.0 * _.sum()


@pytest.mark.parametrize("ndim", [2, 3])
def test_scores_are_the_same_bits_on_two_ranks(masked_shards: Path, tiny_shards: Path, ndim: int) -> None:
    given = {"shards": str(masked_shards), "ndim": ndim, "tiny": str(tiny_shards)}
    single, _ = one_process(on_a_rank, torch.zeros(2), **given)
    both, _ = on_two_ranks(on_a_rank, torch.zeros(2), **given)
    assert float(single) > 1 and torch.equal(single, both)


def test_a_sample_that_cannot_be_read_is_left_out(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from medloom.pretrain import probes

    data = StreamConfig(shards=str(tiny_shards), ndim=2, crop=[16, 16], batch_size=4)
    probe = Probe(ProbeConfig(), data)
    chosen = probe.sets["class"][0]
    bad = chosen.refs[3]

    def fails(shards: Shards, ref: SampleRef, *more: Any) -> dict[str, Any]:
        if ref == bad:
            raise ShardError("checksum")
        return load(shards, ref, *more)

    monkeypatch.setattr(probes, "load", fails)
    _, valid = probe.encode(chosen, Spread(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert np.flatnonzero(~valid.numpy()).tolist() == [3] and "left out" in caplog.text
    assert f"probe/knn_{chosen.name}" in probe(Spread(), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def masked_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and volumes with bright blobs, and their label maps (value 7), in shards."""
    from medloom.data.collection import Collection
    from medloom.data.ingest.build import build

    root = tmp_path_factory.mktemp("masked")
    rng = np.random.default_rng(0)
    for name, shape, count in (("flat", (64, 72), 16), ("solid", (24, 28, 36), 4)):
        axes = np.indices(shape).reshape(len(shape), -1)
        rows = ["path,mask"]
        (root / name).mkdir()
        for number in range(count):
            centre = [rng.uniform(0.35, 0.65) * n for n in shape]
            radius = rng.uniform(0.25, 0.32) * min(shape)
            inside = (np.sqrt(((axes - np.array(centre)[:, None]) ** 2).sum(0)) < radius).reshape(shape)
            image = (60 + 140 * inside + rng.normal(0, 8, shape)).clip(0, 255)
            if len(shape) == 2:
                Image.fromarray(image.astype(np.uint8)).save(root / name / f"{number}.png")
                Image.fromarray((7 * inside).astype(np.uint8)).save(root / name / f"{number}m.png")
            else:
                for tail, array in (("", image.astype(np.int16)), ("m", (7 * inside).astype(np.uint8))):
                    nibabel.save(
                        nibabel.Nifti1Image(array, np.eye(4)), root / name / f"{number}{tail}.nii.gz"
                    )
            end = "png" if len(shape) == 2 else "nii.gz"
            rows.append(f"{number}.{end},{number}m.{end}")
        (root / name / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "c.yaml").write_text(
        "name: masked\nsalt: only for tests\nsources:\n"
        "- {dataset: flat, layout: table, root: flat, modality: ultrasound, licence: CC0-1.0,"
        " options: {path: path, mask: mask}}\n"
        "- {dataset: solid, layout: table, root: solid, modality: mri, licence: CC0-1.0,"
        " options: {path: path, mask: mask}}\n"
    )
    build(Collection.load(root / "c.yaml"), root / "shards")
    return root / "shards"
