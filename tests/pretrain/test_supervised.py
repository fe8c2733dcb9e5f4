"""Labels of several datasets: losses against formulas, label maps under views, runs from shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.losses.supervised import cross_entropy, dice_loss, head_logits
from medloom.pretrain.objectives import Batch
from medloom.pretrain.views import ViewConfig
from torch import Tensor

from .overfit import blobs, overfit
from .ranks_harness import on_two_ranks, one_process
from .small import small_batch, small_encoder, small_objective

HEADS = torch.tensor([0, 0, 1, 1, 1])  # two classes of one dataset, three of another
BACKGROUND = torch.tensor([True, False, True, False, False])
LABELS = torch.tensor([0, 1, 4, 2, -1, 3, -1, -1])  # rank 0 knows four of them, rank 1 one
CLASSES = {"a": ["background", "x"], "b": ["background", "y", "z"]}


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(head_logits(logits, target, HEADS), target)


def map_losses(logits: Tensor, target: Tensor) -> Tensor:
    own = head_logits(logits, target, HEADS)
    return cross_entropy(own, target) + 0.7 * dice_loss(own, target, BACKGROUND)


def maps(dims: int = 2) -> tuple[Tensor, Tensor]:
    """Logits [4, 5, ...] and label maps of both datasets, a part of them unknown, and all of the third."""
    generator = torch.Generator().manual_seed(1)
    size = (6, 5, 4)[:dims]
    logits = torch.randn(4, 5, *size, generator=generator)
    target = torch.stack([
        torch.randint(0, 2, size, generator=generator), torch.randint(2, 5, size, generator=generator),
        torch.full(size, -1), torch.randint(2, 4, size, generator=generator),
    ])  # fmt: skip
    target[torch.rand(target.shape, generator=generator) < 0.2] = -1
    return logits, target


def class_oracle(logits: Tensor, target: Tensor) -> Tensor:
    """-log of the softmax inside the head, sample by sample."""
    losses = []
    for row, t in zip(logits, target.tolist(), strict=True):
        if t >= 0:
            inside = row[torch.tensor([h == HEADS[t] for h in HEADS])]
            losses.append(inside.exp().sum().log() - row[t])
    return sum(losses, torch.zeros((), dtype=logits.dtype)) / max(len(losses), 1)


def dice_oracle(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), structure by structure."""
    losses = []
    for row, t in zip(logits.flatten(2), target.flatten(1), strict=True):
        known = t >= 0
        if not known.any():
            continue
        head = HEADS[int(t.max())]
        columns = [c for c in range(5) if HEADS[c] == head]
        p = row[columns][:, known].softmax(dim=0)
        for place, c in enumerate(columns):
            truth = (t[known] == c).to(p.dtype)
            if BACKGROUND[c] or not truth.any():
                continue
            losses.append(1 - (2 * (p[place] * truth).sum() + 1) / (p[place].sum() + truth.sum() + 1))
    return sum(losses, torch.zeros((), dtype=logits.dtype)) / len(losses)


def close(found: tuple[Tensor, list[Tensor]], value: Tensor, gradient: Tensor) -> None:
    torch.testing.assert_close(found[0].double(), value.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][0].double(), gradient.double(), atol=1e-5, rtol=1e-5)


def test_classes_are_a_softmax_inside_their_head() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    exact = logits.double().requires_grad_()
    value = class_oracle(exact, LABELS)
    value.backward()
    assert exact.grad is not None
    close(one_process(class_loss, logits, LABELS), value.detach(), exact.grad)
    close(on_two_ranks(class_loss, logits, LABELS), value.detach(), exact.grad)


@pytest.mark.parametrize("dims", [2, 3])
def test_label_maps_are_cross_entropy_and_dice_of_what_is_known(dims: int) -> None:
    logits, target = maps(dims)
    exact = logits.double().requires_grad_()
    flat = exact.flatten(2).movedim(1, 2).reshape(-1, 5)
    value = class_oracle(flat, target.flatten()) + 0.7 * dice_oracle(exact, target)
    value.backward()
    assert exact.grad is not None
    close(one_process(map_losses, logits, target), value.detach(), exact.grad)
    close(on_two_ranks(map_losses, logits, target), value.detach(), exact.grad)


def test_nothing_known_is_no_loss_and_no_gradient() -> None:
    unknown = torch.full((4, 6, 5), -1)
    value, gradients = one_process(map_losses, maps()[0], unknown)
    assert value == 0 and (gradients[0] == 0).all()
    value, gradients = on_two_ranks(class_loss, torch.randn(8, 5), torch.full((8,), -1))
    assert value == 0 and (gradients[0] == 0).all()


@pytest.mark.parametrize(
    ("family", "ndim"), [("vit", 2), ("convnet", 2), ("vit3d", 3), ("vit_any", 2), ("vit_any", 3)]
)
def test_masks_step_on_every_kind_of_encoder(family: str, ndim: int) -> None:
    encoder = small_encoder(family)
    objective = small_objective("supervised", encoder, target="masks", classes=CLASSES, decoder_width=8)
    batch = small_batch(encoder, ndim)
    output = objective.step(batch, encoder)
    assert set(output.terms) == {"cross_entropy", "dice_loss"}
    output.loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_label_maps_move_with_their_images(ndim: int, padding: str) -> None:
    """An image that shows its label map still does after flips, turns and zooms."""
    encoder = small_encoder("vit" if ndim == 2 else "vit3d")
    objective: Any = small_objective("supervised", encoder, target="masks", classes=CLASSES)
    objective.config.view = ViewConfig(
        flip_axes=list(range(ndim)), affine=0.7, scale=[0.8, 1.25], padding=padding
    )
    mask = (blobs(16, [24] * ndim)[:, 0] > 0.3).long() + 2  # of the second dataset
    batch = Batch(image=mask[:, None].float() * 2 - 5, position=torch.arange(16), seed=3, mask=mask)
    image, moved = objective.view(batch)
    shown = moved >= 0
    assert set(moved[shown].unique().tolist()) == {2, 3}
    assert bool(shown.all()) == (padding == "border")
    # Interpolation and vote agree on which of the two has the larger share of a voxel, but for a tie.
    agree = ((image[:, 0] + 5) / 2).round() == moved
    tie = image[:, 0].abs() < 1e-4
    if padding == "zeros":  # there a part of the image's value may come from beyond it
        tie |= torch.nn.functional.max_pool2d((~shown).flatten(0, -3).float(), 5, 1, 2).view_as(shown) > 0
    assert tie.float().mean() < 0.4 and (agree | tie).all()
    assert not torch.equal(moved, mask)


@pytest.mark.parametrize("target", ["classes", "masks"])
def test_it_learns_32_images_by_heart(target: str) -> None:
    encoder = small_encoder("vit")
    objective = small_objective("supervised", encoder, target=target, classes=CLASSES, decoder_width=8)
    objective.config.view = ViewConfig(flip=0.0)
    x = blobs(32, [32, 32])
    labels = torch.arange(32) % 5
    labels[::8] = -1
    mask = (x[:, 0] > 0).long() + torch.tensor([0, 2]).repeat(16).view(-1, 1, 1)
    given = Batch(image=x, position=torch.arange(32), seed=0, label=labels, mask=mask)
    first, last, _ = overfit(objective, encoder, (32, 32), steps=60, batch=given)
    assert last < (0.2 if target == "classes" else 0.6) * first


def test_what_is_missing_is_named_with_its_mend() -> None:
    encoder = small_encoder("vit")
    with pytest.raises(ConfigError, match=r"none are read: set data\.labels=class"):
        small_objective("supervised", encoder, classes={})
    with pytest.raises(ConfigError, match=r"none are read: set data\.masks=true"):
        small_objective("supervised", encoder, classes={}, target="masks")
    with pytest.raises(ConfigError, match=r"objective\.target is 'mask'; did you mean masks"):
        small_objective("supervised", encoder, target="mask")
    batch = small_batch(encoder, 2)
    batch.label = None
    with pytest.raises(ConfigError, match=r"set data\.labels"):
        small_objective("supervised", encoder).step(batch, encoder)


def test_a_run_learns_the_classes_of_its_shards(tiny_config: Any, tmp_path: Path, rows_of: Any) -> None:
    from medloom.pretrain.run import pretrain

    section = {"name": "supervised"}
    config = tiny_config(tmp_path / "run", "data.labels=class", "data.channels=1")
    config.objective = section
    run = pretrain(config)
    rows = [row for row in rows_of(run) if "loss" in row]
    assert {"cross_entropy", "accuracy"} <= rows[-1].keys()
    saved = json.loads((run / "encoder.json").read_text())["training"]["objective"]["classes"]
    assert saved == {"tiny_colour": ["blobs", "stripes"], "tiny_pictures": ["blobs", "stripes"]}
