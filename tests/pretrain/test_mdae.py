"""MDAE: noise and masks of drawn strength, the clean image as the target."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives import Batch
from medloom.pretrain.objectives.masked import Prediction
from medloom.pretrain.objectives.mdae import MDAE
from medloom.pretrain.pixels import patchify
from medloom.pretrain.views import ViewConfig

from .overfit import overfit
from .small import small_batch, small_encoder, small_objective


def made(family: str, **changes: object) -> tuple[MDAE, Encoder]:
    encoder = small_encoder(family)
    objective = small_objective("mdae", encoder, **changes)
    assert isinstance(objective, MDAE)
    return objective, encoder


def test_noise_keeps_the_variance_and_has_all_strengths() -> None:
    objective, _ = made("vit")
    image = torch.randn(400, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = objective.corrupted(image, Batch(image=image, position=torch.arange(400), seed=0))
    assert float(noisy.std()) == pytest.approx(1.0, abs=0.02)
    kept = (noisy * image).flatten(1).mean(1)  # cos(pi t / 2), t uniform
    assert float(kept.min()) < 0.1 and float(kept.max()) > 0.95
    assert float(kept.mean()) == pytest.approx(2 / torch.pi, abs=0.05)
    still, _ = made("vit", noise=[0.0, 0.0])
    assert torch.equal(still.corrupted(image, Batch(image=image, position=torch.arange(400), seed=0)), image)


@pytest.mark.parametrize(("family", "ndim"), [("vit", 2), ("vit3d", 3), ("convnet", 2)])
def test_the_clean_image_is_the_target_everywhere(
    family: str, ndim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, encoder = made(family, skip_air=False)
    objective.config.view = ViewConfig(flip=0.0)
    batch = small_batch(encoder, ndim)
    pooled = torch.zeros(4, encoder.embed_dim)
    target = patchify(batch.image, encoder.patch_of(ndim))
    monkeypatch.setattr(objective, "reconstruct", lambda *_: Prediction(target + 0.5, pooled))
    output = objective.step(batch, encoder)
    assert float(output.loss) == pytest.approx(0.25, abs=1e-5)
    assert float(output.terms["reconstruction"]) == pytest.approx(0.25, abs=1e-5)
    assert float(output.terms["denoising"]) == pytest.approx(0.25, abs=1e-5)
    panel = objective.panel(batch, encoder)
    assert torch.allclose(panel["reconstruction"], batch.image + 0.5, atol=1e-5)


def test_each_image_hides_another_share() -> None:
    objective, encoder = made("vit", mask_ratio=[0.01, 0.99])
    image = torch.randn(64, 1, 64, 64)
    hidden = objective.hidden(image, Batch(image=image, position=torch.arange(64), seed=0), encoder, None)
    share = hidden.double().mean(1)
    assert float(share.min()) < 0.2 and float(share.max()) > 0.8


def test_thirty_two_images_are_learnt() -> None:
    objective, encoder = made("vit", mask_ratio=[0.01, 0.5], noise=[0.0, 0.5])
    first, last, _ = overfit(objective, encoder, (32, 32), steps=80)
    assert last < 0.5 * first


def test_a_range_of_noise_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.noise"):
        MDAE.Config(noise=[0.5, 0.2])
