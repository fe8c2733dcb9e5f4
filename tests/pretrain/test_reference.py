"""Reference features: every family's agree after a round trip; another network is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.release.reference import (
    ABOUT,
    SIDE,
    TOLERANCE,
    belongs,
    difference,
    prove_encoder,
    reference_image,
    reference_sizes,
)
from medloom.pretrain.weights import load_encoder, save_encoder

from .small import SMALL_ENCODERS, small_encoder

CONTRACT = {"input": {"rule": "medloom-1", "crop": [48, 64]}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The artefact of a small ViT."""
    save_encoder(tmp_path / "run", small_encoder("vit"), CONTRACT)
    return tmp_path / "run"


@pytest.mark.parametrize("family", SMALL_ENCODERS)
def test_every_family_proves_itself(family: str, tmp_path: Path) -> None:
    save_encoder(tmp_path, small_encoder(family), {})
    again, report = load_encoder(tmp_path)
    assert report.proved is not None and report.proved < TOLERANCE / 10
    assert "reference features agree" in str(report)
    assert all(module.training for module in again.modules())  # as it was built
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as file:
        assert {name[0] for name in file.files if name != ABOUT} == {str(n) for n in again.axes}


def test_the_image_is_a_formula_of_the_contract() -> None:
    image = reference_image(3, (20, 30))
    assert image.shape == (1, 3, 20, 30) and image.dtype == torch.float32
    assert abs(float(image.mean())) < 0.3 and 0.7 < float(image.std()) < 1.3
    assert not torch.equal(image[0, 0], image[0, 1])
    assert torch.equal(reference_image(1, (20, 30))[0, 0], image[0, 0])
    u, v, k = 12.5 / 20, 7.5 / 30, torch.tensor([1.0, 3.0, 8.0]).double()
    waves = (torch.cos(2 * torch.pi * k * (u + v / 2) + 2 + k) / k).sum()
    edge = 0.5 if (int(5 * u + 2 / 3) + int(5 * v + 2 / 3)) % 2 == 0 else -0.5
    assert float(image[0, 2, 12, 7]) == pytest.approx(float(waves) + edge, abs=1e-6)
    assert reference_image(1, (8, 8, 8)).shape == (1, 1, 8, 8, 8)


def test_sizes_follow_the_contract_up_to_a_bound() -> None:
    encoder = small_encoder("vit")  # patches of 8 pixels, positions for 32 x 32
    assert reference_sizes(encoder, CONTRACT["input"]) == [(48, 64)]
    assert reference_sizes(encoder, {"crop": [1024, 40]}) == [(SIDE[2], 40)]
    assert reference_sizes(encoder, {}) == [(32, 32)]
    both = {"crop": [64, 64], "crops": [[64, 64], [48, 48], [16, 24, 32]]}
    assert reference_sizes(small_encoder("vit_any"), both) == [(64, 64), (16, 24, 32)]
    deep = small_encoder("resenc", strides=[1, 4, 4, 4])  # one token at 64 voxels, which its norm refuses
    assert reference_sizes(deep, {"crop": [160, 160, 160]}) == [(128, 128, 128)]


def test_a_changed_network_around_the_same_weights_is_refused(saved: Path) -> None:
    other = build_encoder({"name": "vit", "in_channels": 1, **SMALL_ENCODERS["vit"], "num_heads": 2})
    other.load_state_dict(load_encoder(saved)[0].state_dict())
    assert difference(saved / "reference.npz", other)[0] > 10 * TOLERANCE
    with pytest.raises(CheckpointError, match=r"reference image differ by .* \(at most 0.001\)"):
        prove_encoder(saved / "reference.npz", other)


def test_the_loader_refuses_what_the_record_got_wrong(saved: Path) -> None:
    record = json.loads((saved / "encoder.json").read_text())
    record["architecture"]["args"]["num_heads"] = 2  # every tensor keeps its shape
    (saved / "encoder.json").write_text(json.dumps(record))
    for name in (saved, saved / "encoder.safetensors", saved / "encoder.json"):
        with pytest.raises(CheckpointError, match="the network around the weights"):
            load_encoder(name)
    assert load_encoder(saved, prove=False)[1].proved is None


def test_features_of_other_weights_are_not_theirs(saved: Path) -> None:
    torch.manual_seed(5)
    other = build_encoder({"name": "vit", "in_channels": 1, **SMALL_ENCODERS["vit"]})
    save_encoder(saved.parent / "other", other, CONTRACT)
    shutil.copy(saved / "reference.npz", saved.parent / "other")
    assert not belongs(saved.parent / "other" / "reference.npz", {"sha256": "0"})
    assert load_encoder(saved.parent / "other")[1].proved is None
    with pytest.raises(CheckpointError, match=r"no reference\.npz of these weights"):
        load_encoder(saved.parent / "other", prove=True)


def test_an_adapted_encoder_is_proved_as_it_was_trained_when_asked(saved: Path) -> None:
    assert load_encoder(saved, in_channels=3)[1].proved is None
    encoder, report = load_encoder(saved, in_channels=3, prove=True)
    assert report.proved == 0.0 and encoder.in_channels == 3 and report.adapted


@pytest.mark.parametrize("damage", ["cut", "renamed", "sizes", "formula"])
def test_a_damaged_file_is_named(damage: str, saved: Path) -> None:
    path = saved / "reference.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    said = json.loads(str(arrays.pop(ABOUT)))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "renamed":
        np.savez(path, **{ABOUT: np.array(json.dumps(said)), "x": next(iter(arrays.values()))})
    else:
        said[damage] = {"formula": 7, "sizes": "7x"}[damage]
        np.savez(path, **{ABOUT: np.array(json.dumps(said))}, **arrays)
    with pytest.raises(CheckpointError, match=r"reference\.npz: (not readable|made by formula 7)"):
        load_encoder(saved)


def test_features_that_are_not_finite_are_not_released(tmp_path: Path) -> None:
    broken = small_encoder("vit")
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        save_encoder(tmp_path, broken, {})
