"""Losses of self-distillation: the papers' formulas in float64, lightly's losses, two ranks and one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from medloom.pretrain.losses.dino import Centre, Piece, dino_loss, entropy_share, soft_cross_entropy
from medloom.pretrain.losses.gram import gram_loss, resample_tokens
from medloom.pretrain.losses.ibot import ibot_loss
from medloom.pretrain.losses.jepa import jepa_loss
from medloom.pretrain.losses.koleo import kde_loss, koleo_loss
from medloom.pretrain.losses.sinkhorn import sinkhorn_knopp
from torch import Tensor

from .ranks_harness import on_two_ranks, one_process


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    """Value and gradients of the inputs, to 1e-5."""
    assert torch.allclose(found[0].double(), expected[0].double(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found[1], expected[1], strict=False):
        assert torch.allclose(
            mine.double(), theirs.double(), rtol=1e-5, atol=1e-5 * float(theirs.abs().max())
        )


def exactly(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a formula in float64."""
    return one_process(loss, *(x.double() if x.is_floating_point() else x for x in inputs), **options)


# ---- DINO ------------------------------------------------------------------------------------------------


def dino_by_pairs(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Equation 3 of arXiv 2104.14294, pair by pair."""
    total, pairs = student.new_zeros(()), 0
    for g in range(len(teacher)):
        for v in range(len(student)):
            if v != g:
                log_share = (student[v] / temperature).log_softmax(dim=-1)
                total = total - (teacher[g].detach() * log_share).sum(dim=-1).mean()
                pairs += 1
    return total / pairs


def dino_by_logits(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """The loss as a step computes it: targets by Sinkhorn-Knopp over all rows of all ranks."""
    with torch.no_grad():
        targets = sinkhorn_knopp(teacher.flatten(0, 1), 0.05).unflatten(0, teacher.shape[:2])
    return dino_loss(student, targets, temperature)


@pytest.mark.parametrize(("views", "seen"), [(2, 2), (5, 2), (4, 1), (6, 3)])
def test_dino_is_the_mean_over_pairs_of_different_views(views: int, seen: int) -> None:
    student = randn(views, 4, 33)
    teacher = (randn(seen, 4, 33, seed=1) / 0.3).softmax(dim=-1)
    same(one_process(dino_loss, student, teacher), exactly(dino_by_pairs, student, teacher))


def test_dino_on_two_ranks_is_dino_on_the_whole_batch() -> None:
    student, teacher = randn(5, 6, 17), randn(2, 6, 17, seed=1, scale=0.3)
    whole = one_process(dino_by_logits, student, teacher)
    same(on_two_ranks(dino_by_logits, student, teacher, dims=(1, 1)), whole)


def test_dino_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").DINOLoss(output_dim=33, student_temp=0.1, center_momentum=0.8)
    student, teacher = randn(5, 4, 33), randn(2, 4, 33, seed=1)
    centre = Centre(33, momentum=0.8)
    for _ in range(2):  # the second time with a centre that has moved
        ours = one_process(lambda s, t: dino_loss(s, centre(t, 0.05)), student, teacher)
        theirs = one_process(lambda s, t: loss(list(t), list(s), teacher_temp=0.05), student, teacher)
        centre.observe(teacher)
        centre.update()
        same((ours[0], ours[1][:1]), (theirs[0], theirs[1][:1]))
        assert not ours[1][1].any()  # no gradient into the teacher
    assert torch.allclose(centre.value, loss.center.flatten(), atol=1e-6)


def test_the_soft_cross_entropy_is_torchs_in_pieces_and_with_bfloat16() -> None:
    logits, target = randn(2500, 7), randn(2500, 7, seed=1).softmax(dim=-1)
    expected = exactly(lambda x, t: torch.nn.functional.cross_entropy(x / 0.2, t.detach()), logits, target)
    same(one_process(lambda x, t: soft_cross_entropy(x, t, 0.2).mean(), logits, target), expected)
    value = soft_cross_entropy(logits.bfloat16(), target, 0.2)
    assert value.dtype == torch.float32 and float(value.mean()) == pytest.approx(float(expected[0]), rel=1e-2)
    # rows of logits may share targets, and targets need not sum to 1
    pieces = [Piece(0, 3, 3), Piece(3, 6, 0), Piece(6, 9, 3)]
    mine = soft_cross_entropy(logits[:9], 2 * target[:6], 0.2, pieces)
    order = torch.tensor([3, 4, 5, 0, 1, 2, 3, 4, 5])
    each = torch.nn.functional.cross_entropy(logits[:9] / 0.2, target[order], reduction="none")
    assert torch.allclose(mine, 2 * each, rtol=1e-5)


def test_the_centre_moves_once_an_update_whatever_the_accumulation() -> None:
    rows, weight = randn(6, 5), torch.tensor([1.0, 1, 0, 1, 0.2, 1])
    once, twice = Centre(5), Centre(5)
    once.observe(rows, weight)
    twice.observe(rows[:2], weight[:2])
    twice.observe(rows[2:], weight[2:])
    assert not once.value.any()
    for centre in (once, twice):
        centre.update()
        centre.update()  # nothing was observed since
        assert torch.allclose(centre.value, 0.1 * rows[weight > 0].mean(dim=0), atol=1e-6)


def centre_after(rows: Tensor) -> Tensor:
    centre = Centre(rows.shape[1])
    centre.observe(rows)
    centre.update()
    return (centre.value * torch.arange(rows.shape[1])).sum() + 0.0 * rows.sum()


def test_the_centre_counts_the_rows_of_all_ranks() -> None:
    rows = randn(8, 5)
    assert torch.allclose(on_two_ranks(centre_after, rows)[0], centre_after(rows), atol=1e-6)


def test_entropy_is_a_share_of_log_k() -> None:
    assert float(entropy_share(torch.full((3, 16), 1 / 16))) == pytest.approx(1.0)
    assert float(entropy_share(torch.eye(16)[:3])) == 0.0
    half = torch.zeros(2, 16)
    half[:, :4] = 0.25
    assert float(entropy_share(half)) == pytest.approx(math.log(4) / math.log(16))


# ---- iBOT ------------------------------------------------------------------------------------------------


def ibot_by_images(student: Tensor, teacher: Tensor, image: Tensor, images: int) -> Tensor:
    """Equation 2 of arXiv 2111.07832 image by image; images without hidden tokens are 0."""
    total = student.new_zeros(())
    for i in range(images):
        rows = image == i
        if rows.any():
            log_share = (student[rows] / 0.1).log_softmax(dim=-1)
            total = total - (teacher[rows].detach() * log_share).sum(dim=-1).mean()
    return total / images


def test_ibot_counts_each_masked_image_once() -> None:
    image = torch.tensor([0, 0, 0, 2, 3, 3])
    weight = 1 / torch.tensor([3.0, 3, 3, 1, 2, 2])
    student, teacher = randn(6, 21), randn(6, 21, seed=1).softmax(dim=-1)
    ours = one_process(lambda s, t: ibot_loss(s, t, weight, 4), student, teacher)
    same(ours, exactly(lambda s, t: ibot_by_images(s, t, image, 4), student, teacher))
    # a row that only fills up changes nothing
    padded = [torch.cat([x, x[:1] + 1]) for x in (student, teacher)]
    filled = ibot_loss(*padded, torch.cat([weight, torch.zeros(1)]), 4)
    assert torch.allclose(filled, ours[0])


def test_ibot_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").IBOTPatchLoss(output_dim=21, teacher_temp=0.05)
    mask = torch.zeros(3, 2, 4, dtype=torch.bool)
    mask[0, 0, :3], mask[2, 1, 1:3] = True, True
    weight = torch.tensor([1 / 3] * 3 + [1 / 2] * 2)
    student, teacher = randn(5, 21), randn(5, 21, seed=1)
    centre = Centre(21)
    ours = one_process(lambda s, t: ibot_loss(s, centre(t, 0.05), weight, 3), student, teacher)
    theirs = one_process(lambda s, t: loss(t, s, mask), student, teacher)
    same((ours[0], ours[1][:1]), (theirs[0], theirs[1][:1]))


# ---- Sinkhorn-Knopp --------------------------------------------------------------------------------------


def sinkhorn_by_matrix(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Appendix A.1 of SwAV (arXiv 2006.09882), the whole matrix in each iteration."""
    q = (logits.double() / temperature).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_the_papers(iterations: int) -> None:
    logits = randn(12, 9, scale=0.3)
    found = sinkhorn_knopp(logits, 0.05, iterations)
    assert torch.allclose(found.double(), sinkhorn_by_matrix(logits, 0.05, iterations), rtol=2e-5, atol=1e-7)
    assert torch.allclose(found.sum(dim=1), torch.ones(12), atol=1e-5)


def test_sinkhorn_uses_all_prototypes_alike_in_the_limit() -> None:
    found = sinkhorn_knopp(randn(40, 8, scale=0.2), 0.1, 200)
    assert torch.allclose(found.mean(dim=0), torch.full((8,), 1 / 8), atol=1e-4)


def test_sinkhorn_neither_overflows_nor_divides_by_nothing() -> None:
    cosines = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]])
    for temperature in (0.04, 0.002):
        found = sinkhorn_knopp(cosines + 7, temperature)
        assert found.isfinite().all() and found.requires_grad is False
    assert torch.allclose(sinkhorn_knopp(cosines + 7, 0.04), sinkhorn_knopp(cosines, 0.04), atol=1e-6)


def test_rows_that_do_not_count_change_nothing() -> None:
    logits = randn(7, 5, scale=0.3)
    valid = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    found = sinkhorn_knopp(logits, 0.05, valid=valid)
    assert torch.allclose(found[valid], sinkhorn_knopp(logits[valid], 0.05), atol=1e-6)
    assert not found[~valid].any()
    assert sinkhorn_knopp(logits, 0.05, valid=torch.zeros(7, dtype=torch.bool)).isfinite().all()


def sinkhorn_scalar(logits: Tensor, which: Tensor) -> Tensor:
    """A scalar that tells assignments apart."""
    rows = sinkhorn_knopp(logits, 0.05)
    return (rows * which).sum(dim=1).mean() + 0.0 * logits.sum()


def test_sinkhorn_counts_the_rows_of_all_ranks() -> None:
    logits, which = randn(8, 5, scale=0.3), randn(8, 5, seed=1)
    whole = sinkhorn_scalar(logits, which)
    assert torch.allclose(on_two_ranks(sinkhorn_scalar, logits, which)[0], whole, atol=1e-6)
    alone = torch.stack([sinkhorn_scalar(logits[i : i + 4], which[i : i + 4]) for i in (0, 4)]).mean()
    assert not torch.allclose(alone, whole, atol=1e-3)


# ---- spread ----------------------------------------------------------------------------------------------


def koleo_by_rows(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Equation 2 of arXiv 1806.03198 with DINOv2's epsilons."""
    x = x / x.norm(dim=1, keepdim=True)
    distance = (x[:, None] - x[None] + eps).norm(dim=2) + torch.eye(len(x)) * 10
    return -(distance.amin(dim=1) + eps).log().mean()


def kde_by_rows(x: Tensor, kappa: float = 5.0) -> Tensor:
    x = x / x.norm(dim=1, keepdim=True)
    return (kappa * (x @ x.T)).exp().mean(dim=1).log().mean()


@pytest.mark.parametrize(("ours", "formula"), [(koleo_loss, koleo_by_rows), (kde_loss, kde_by_rows)])
def test_spread_is_the_formula_on_one_and_on_two_ranks(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor]
) -> None:
    x = randn(8, 6)
    x[5] = x[1] + 0.05 * x[2]  # nearest neighbours on different ranks
    expected = exactly(formula, x)
    same(one_process(ours, x), expected)
    same(on_two_ranks(ours, x), expected)


def test_koleo_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").KoLeoLoss()
    same(one_process(koleo_loss, randn(7, 5)), one_process(loss, randn(7, 5)))


def test_crowded_rows_cost_more_and_equal_ones_stay_finite() -> None:
    crowded = randn(1, 16) + 0.05 * randn(10, 16, seed=1)
    for loss in (koleo_loss, kde_loss):
        assert float(loss(crowded)) > float(loss(randn(10, 16))) + 0.5
        value, (gradient,) = one_process(loss, torch.ones(3, 4))
        assert value.isfinite() and gradient.isfinite().all()
    assert float(kde_loss(torch.ones(3, 4))) == pytest.approx(5.0)  # its bound, kappa


# ---- Gram and JEPA ---------------------------------------------------------------------------------------


def gram_by_pairs(student: Tensor, anchor: Tensor) -> Tensor:
    """Equation 2 of arXiv 2508.10104 over all pairs of tokens, as a mean."""
    terms = []
    for s, a in zip(student, anchor, strict=True):
        for i in range(len(s)):
            for j in range(len(s)):
                mine = torch.cosine_similarity(s[i], s[j], dim=0)
                theirs = torch.cosine_similarity(a[i], a[j], dim=0).detach()
                terms.append((mine - theirs) ** 2)
    return torch.stack(terms).mean()


def test_gram_is_the_papers() -> None:
    student, anchor = randn(2, 5, 4), randn(2, 5, 3, seed=1)
    same(one_process(gram_loss, student, anchor), exactly(gram_by_pairs, student, anchor))


def test_gram_holds_similarities_and_not_features() -> None:
    tokens = randn(2, 6, 4)
    turn = torch.linalg.qr(randn(4, 4, seed=1))[0]
    length = randn(2, 6, 1, seed=2).abs() + 0.5
    assert float(gram_loss(length * (tokens @ turn), tokens)) == pytest.approx(0.0, abs=1e-10)
    assert float(gram_loss(tokens.flip(1), tokens)) > 0.01


@pytest.mark.parametrize(("grid", "to"), [((4, 6), (2, 3)), ((4, 2, 6), (2, 1, 3))])
def test_tokens_of_a_finer_grid_come_to_the_coarser_in_place(
    grid: tuple[int, ...], to: tuple[int, ...]
) -> None:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    ramp = torch.stack([a.flatten() for a in axes], dim=1)[None]  # [1, N, n]: a token says where it is
    found = resample_tokens(ramp, grid, to).unflatten(1, to)[0]
    assert found.shape == (*to, len(grid))
    for axis, n in enumerate(grid):
        step = n // to[axis]
        along = found[..., axis].movedim(axis, 0).flatten(1).mean(dim=1)
        middle = torch.arange(to[axis]) * step + (step - 1) / 2
        assert torch.allclose(along, middle, atol=0.15)
    assert resample_tokens(ramp, grid, grid) is ramp


def jepa_by_formula(predicted: Tensor, target: Tensor) -> Tensor:
    target = target.detach()
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, unbiased=False, keepdim=True)
    off = (predicted - (target - mean) / (variance + 1e-5).sqrt()).abs()
    return torch.where(off < 1, 0.5 * off**2, off - 0.5).mean()


def test_jepa_is_smooth_l1_to_normalised_features() -> None:
    predicted, target = randn(3, 4, 5, 8), randn(3, 4, 5, 8, seed=1, scale=7.0) + 3
    expected = exactly(jepa_by_formula, predicted, target)
    same(one_process(jepa_loss, predicted, target), expected)
    same(
        on_two_ranks(jepa_loss, predicted[:2], target[:2]),
        exactly(jepa_by_formula, predicted[:2], target[:2]),
    )


def test_targets_get_no_gradient() -> None:
    for loss, shape in ((gram_loss, (2, 5, 4)), (jepa_loss, (2, 5, 4)), (dino_loss, (2, 3, 4))):
        assert not one_process(loss, randn(*shape), randn(*shape, seed=1).softmax(-1))[1][1].any()
