"""Models Genesis: what it spoils, what it restores, what it refuses."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.objectives.genesis import Genesis
from medloom.pretrain.views import ViewConfig

from .overfit import overfit
from .small import small_batch, small_encoder, small_objective

STILL = ViewConfig(flip=0.0)


@pytest.mark.parametrize(("family", "ndim"), [("convnet", 2), ("vit3d", 3)])
def test_the_target_is_the_clean_image(family: str, ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder(family)
    objective = small_objective("genesis", encoder)
    assert isinstance(objective, Genesis)
    objective.config.view = STILL
    batch = small_batch(encoder, ndim)
    pooled = torch.zeros(4, encoder.embed_dim)
    monkeypatch.setattr(objective, "restore", lambda *_: (batch.image, pooled))
    assert float(objective.step(batch, encoder).loss) == 0.0
    panel = objective.panel(batch, encoder)
    assert list(panel) == ["input", "spoilt", "reconstruction"]
    assert bool((panel["spoilt"] != batch.image).flatten(1).any(1).all())
    monkeypatch.setattr(objective, "restore", lambda spoilt, _: (spoilt, pooled))
    given = float(objective.step(batch, encoder).loss)
    assert given == pytest.approx(float((panel["spoilt"] - batch.image).double().square().mean()), abs=1e-5)


def test_what_is_left_out_spoils_nothing() -> None:
    encoder = small_encoder("convnet")
    objective = small_objective("genesis", encoder, intensity=0.0, shuffle=0.0, paint=0.0)
    assert isinstance(objective, Genesis)
    batch = small_batch(encoder, 2)
    assert torch.equal(objective.spoilt(batch.image, batch), batch.image)


def test_thirty_two_images_are_restored() -> None:
    narrow = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    encoder = small_encoder("convnet", kwargs=narrow)
    objective = small_objective("genesis", encoder, intensity=0.0)
    first, last, _ = overfit(objective, encoder, (32, 32), steps=40, lr=1e-2)
    assert last < 0.4 * first


def test_a_probability_over_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.paint is 1\.5"):
        Genesis.Config(paint=1.5)
