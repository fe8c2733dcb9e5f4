"""The input contract: what an encoder was fed travels with it, and what is strange to it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.pretrain.contract import strangers
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder

MR = {"images": 9, "spacing_mm": {"p5": [1.0, 1.0, 1.0], "p50": [2.0, 1.0, 1.0], "p95": [5.0, 1.2, 1.2]}}


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_travels_with_the_encoder(tiny_config: Callable[..., Any], tmp_path: Path, ndim: int) -> None:
    config = tiny_config(tmp_path / "run", "trainer.steps=1", ndim=ndim)
    contract = load_encoder(pretrain(config))[1].record["input"]
    assert contract["rule"] == "medloom-1" and contract["crop"] == [16] * ndim
    seen = contract["modalities"]
    if ndim == 2:
        assert set(seen) == {"ultrasound", "dermoscopy"} and contract["channels"] == 3
        assert seen["ultrasound"] == {"images": 24, "rules": {"picture": 1.0}, "stored_channels": [1]}
        assert seen["dermoscopy"]["stored_channels"] == [3]
    else:
        assert seen["mri"]["rules"] == {"volume": 1.0} and contract["channels"] == 1
        assert seen["mri"]["spacing_mm"] == {key: [1.0, 1.0, 1.0] for key in ("p5", "p50", "p95")}


def test_the_crop_is_what_met_the_encoder_not_what_was_loaded(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", "trainer.steps=1", ndim=2)
    crops = [{"count": 2, "size": [8, 8]}]
    config.objective = {"name": "simclr", "hidden_dim": 16, "out_dim": 8, "crops": crops}
    assert list(config.data.crop) == [16, 16]
    assert load_encoder(pretrain(config))[1].record["input"]["crop"] == [8, 8]


def test_what_is_strange_is_said() -> None:
    contract = {"modalities": {"mri": MR, "x-ray": {"images": 3}}}
    assert strangers(contract, ["mri", "mri"], [3.0, 1.0, 0.6]) == []
    assert strangers(contract, ["mri"], [10.0, 1.0, 1.0]) == []
    assert strangers(contract, ["mri"], [10.1, 1.0, 1.0]) == [
        "mri at 10 x 1 x 1 mm, it was trained around 2 x 1 x 1 mm"
    ]
    assert strangers(contract, ["mri"], [2.0, 0.4, 1.0]) == [
        "mri at 2 x 0.4 x 1 mm, it was trained around 2 x 1 x 1 mm"
    ]
    assert strangers(contract, ["x-ray"], None) == []
    assert strangers(contract, ["ct"], None) == ["ct was not among what it was trained on (mri, x-ray)"]
    assert strangers({}, ["ct"], None) == []
