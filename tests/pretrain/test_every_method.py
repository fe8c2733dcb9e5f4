"""The cross table: every objective with every encoder in 2D and 3D steps as promised, or is refused."""

from __future__ import annotations

import re

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import ENCODERS, Encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Objective

from .no_sync import NoSync
from .small import SMALL_ENCODERS, pairs, small_batch, small_encoder, small_objective

PAIRS = pairs()


def stepped(name: str, family: str, ndim: int) -> tuple[Objective, Encoder, Batch]:
    """The pair and a batch for it; skips what the table refuses."""
    encoder = small_encoder(family)
    if ndim not in OBJECTIVES[name].ndims or OBJECTIVES[name].refuses(encoder) is not None:
        pytest.skip("refused, see test_refusals_say_why")
    return small_objective(name, encoder), encoder, small_batch(encoder, ndim)


def test_every_family_has_a_small_encoder() -> None:
    assert set(SMALL_ENCODERS) == set(ENCODERS)


@pytest.mark.parametrize(("name", "family", "ndim"), PAIRS)
def test_a_step_gives_a_loss_and_every_parameter_a_gradient(name: str, family: str, ndim: int) -> None:
    objective, encoder, batch = stepped(name, family, ndim)
    for size in objective.sizes(batch.image.shape[2:]):
        encoder.grid(size)
    stems = {id(p) for p in unused_of_other_axes(encoder, ndim)}
    output = objective.step(batch, encoder)
    assert output.loss.shape == () and torch.isfinite(output.loss)
    assert output.features.shape == (len(batch.image), encoder.embed_dim)
    assert not output.features.requires_grad
    assert all(v.numel() == 1 and not v.requires_grad for v in output.terms.values())
    if output.views is not None:
        assert output.views.shape[1:] == output.features.shape and len(output.views) >= 2
    output.loss.backward()
    frozen = {id(p) for p in encoder.parameters() if not p.requires_grad}
    for module in (encoder, objective):
        for key, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in stems:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert len(frozen) < len(list(encoder.parameters()))
    objective.before_update(batch.step, batch.steps, encoder)
    objective.after_update(batch.step, batch.steps, encoder)
    assert not any(module is encoder for module in objective.modules())


def unused_of_other_axes(encoder: Encoder, ndim: int) -> list[torch.nn.Parameter]:
    """Parameters that an image of `ndim` axes does not touch, in an encoder of several."""
    if len(encoder.axes) == 1:
        return []
    encoder.zero_grad()
    encoder(small_batch(encoder, ndim).image).tokens.sum().backward()
    unused = [p for p in encoder.parameters() if p.grad is None]
    encoder.zero_grad()
    return unused


@pytest.mark.parametrize(("name", "family", "ndim"), PAIRS)
def test_a_step_never_makes_the_host_wait(name: str, family: str, ndim: int) -> None:
    objective, encoder, batch = stepped(name, family, ndim)
    objective.step(batch, encoder)  # tables that are made once
    with NoSync():
        objective.step(batch, encoder).loss.backward()
        objective.after_update(batch.step, batch.steps, encoder)


@pytest.mark.parametrize(("name", "family", "ndim"), PAIRS)
def test_the_same_keys_give_the_same_loss(name: str, family: str, ndim: int) -> None:
    losses = []
    for seed in (5, 5, 6):
        objective, encoder, batch = stepped(name, family, ndim)
        batch.seed = seed
        torch.manual_seed(11)
        losses.append(float(objective.step(batch, encoder).loss.detach()))
    assert losses[0] == losses[1] and losses[0] != losses[2]


@pytest.mark.parametrize(
    ("name", "family", "ndim"), [p for p in PAIRS if p[1] in ("vit", "convnet", "vit3d")]
)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(name: str, family: str, ndim: int) -> None:
    losses = []
    for bf16 in (False, True):
        objective, encoder, batch = stepped(name, family, ndim)
        torch.manual_seed(11)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = objective.step(batch, encoder).loss
        loss.backward()
        assert loss.dtype == torch.float32
        grads = [p.grad for m in (encoder, objective) for p in m.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in grads)
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.05)


@pytest.mark.parametrize(("name", "family", "ndim"), PAIRS)
def test_refusals_say_why(name: str, family: str, ndim: int) -> None:
    encoder = small_encoder(family)
    reason = OBJECTIVES[name].refuses(encoder)
    if reason is None:
        return
    assert len(reason.split()) > 5 and re.search(r"choose|use|take|set", reason), reason
    with pytest.raises(ConfigError, match=re.escape(f"objective {name} with encoder {family}: {reason}")):
        small_objective(name, encoder)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_facts_are_complete(name: str) -> None:
    facts = OBJECTIVES[name].facts
    assert re.match(r"arXiv \d{4}\.\d{4,5}", facts.paper) or facts.paper, facts
    assert all(len(text) > 3 for text in (facts.title, facts.predicts, facts.good_for, facts.cost))
    assert OBJECTIVES[name].Config().name == name
