"""I-JEPA: the encoder sees the context alone, the teacher everything; it learns, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.losses.jepa import jepa_loss
from medloom.pretrain.objectives import Batch
from torch import Tensor

from .overfit import overfit
from .small import small_batch, small_encoder, small_objective


def make(family: str, **changes: Any) -> tuple[Any, Encoder, Batch]:
    encoder = small_encoder(family)
    return small_objective("ijepa", encoder, **changes), encoder, small_batch(encoder, encoder.ndim)


@pytest.mark.parametrize("family", ["vit", "vit3d"])
def test_the_context_is_computed_alone_and_the_teacher_sees_everything(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, encoder, batch = make(family)
    seen: list[tuple[int, Tensor | None]] = []
    for module in (encoder, objective.teacher.encoder):
        forward = module.forward

        def spy(x: Tensor, keep: Tensor | None = None, forward: Any = forward) -> Any:
            features = forward(x, keep=keep)
            seen.append((features.tokens.shape[1], keep))
            return features

        monkeypatch.setattr(module, "forward", spy)
    objective.step(batch, encoder)
    tokens = torch.Size(encoder.grid(batch.image.shape[2:])).numel()
    (whole, nothing), (part, keep) = seen
    assert whole == tokens and nothing is None
    assert part == round(objective.config.context * tokens) and keep is not None
    blocks = objective.draw(batch, encoder)
    for image, context in enumerate(blocks.context):
        assert not set(context.tolist()) & set(blocks.targets[image].flatten().tolist())


@torch.no_grad()
def test_the_prediction_depends_on_the_context_and_on_the_place_of_the_target() -> None:
    objective, encoder, batch = make("vit")
    blocks = objective.draw(batch, encoder)
    visible = torch.zeros(4, 16, dtype=torch.bool).scatter_(1, blocks.context, True)
    pixels = visible.reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def predict(image: Tensor, blocks: Any = blocks) -> Tensor:
        return objective.fill_in(encoder(image, keep=blocks.context).tokens, blocks, (4, 4))

    before = predict(batch.image)
    assert before.shape == (*blocks.targets.shape, 48)
    assert torch.equal(predict(torch.where(pixels, batch.image, 9.0)), before)
    assert not torch.allclose(predict(torch.where(pixels, 9.0, batch.image)), before)
    # a target is predicted by itself: the others do not change it, another place does
    swapped = blocks._replace(targets=blocks.targets.flip(1))
    assert torch.allclose(predict(batch.image, swapped), before.flip(1), atol=1e-5)
    moved = blocks._replace(targets=(blocks.targets + 1) % 16)
    assert not torch.allclose(predict(batch.image, moved), before, atol=1e-3)


def test_the_target_is_the_teachers_feature_of_the_place() -> None:
    objective, encoder, batch = make("vit")
    blocks = objective.draw(batch, encoder)
    with torch.no_grad():
        teacher = objective.teacher.encoder(batch.image).tokens
        predicted = objective.fill_in(encoder(batch.image, keep=blocks.context).tokens, blocks, (4, 4))
    target = torch.stack([teacher[i][blocks.targets[i]] for i in range(4)])
    output = objective.step(batch, encoder)
    assert float(output.terms["jepa"]) == pytest.approx(float(jepa_loss(predicted, target)), rel=1e-5)
    assert torch.allclose(output.features, teacher.mean(dim=1), atol=1e-6)


def test_the_panel_shows_context_and_targets_apart() -> None:
    objective, encoder, batch = make("vit3d")
    batch.image = batch.image.abs() + 1
    panel = objective.panel(batch, encoder)
    shown = {name: (picture != 0).float().mean() for name, picture in panel.items()}
    assert float(shown["input"]) == 1.0 and float(shown["context"]) == pytest.approx(0.25, abs=0.02)
    assert not ((panel["context"] != 0) & (panel["targets"] != 0)).any() and panel["targets"].any()
    assert torch.equal(panel["context"][panel["context"] != 0], batch.image[panel["context"] != 0])


def test_the_teacher_follows_with_a_momentum_that_rises_on_a_line() -> None:
    objective, encoder, _ = make("vit", momentum=[0.5, 1.0])
    released = objective.released(encoder)
    mine, theirs = next(encoder.parameters()), next(released.parameters())
    start = theirs.clone()
    with torch.no_grad():
        mine.add_(1.0)
    gap = 1.0
    for step in range(4):
        objective.after_update(step, 4, encoder)
        gap *= 0.5 + 0.5 * step / 4
        assert torch.allclose(theirs, start + 1.0 - gap, atol=1e-6)
    assert not theirs.requires_grad


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose a plain transformer"):
        make("convnet")
    with pytest.raises(ConfigError, match="predictor_dim 50"):
        make("vit", predictor_dim=50)
    objective, encoder, batch = make("vit", context=0.9)
    with pytest.raises(ConfigError, match="larger crop or smaller patches"):
        objective.step(batch, encoder)


@pytest.mark.parametrize(("family", "spatial"), [("vit", (32, 32)), ("vit3d", (16, 32, 32))])
def test_32_images_are_learnt_by_heart(family: str, spatial: tuple[int, ...]) -> None:
    encoder = small_encoder(family)
    # A teacher that hardly moves, so that there is something to learn by heart.
    objective = small_objective("ijepa", encoder, predictor_depth=2, momentum=[0.999, 1.0])
    first, last, _ = overfit(objective, encoder, spatial, steps=100, lr=5e-3)
    assert last < 0.8 * first
    tokens = objective.released(encoder)(small_batch(encoder, encoder.ndim).image).tokens
    assert float(tokens.flatten(0, 1).std(dim=0).mean()) > 0.2  # and not by saying always the same
