"""Two ranks, plain and sharded, take the step of one process: every objective, every family of encoders."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from medloom.pretrain.encoders import ENCODERS
from medloom.pretrain.objectives import OBJECTIVES

from .ranks_steps import RATE, Case, Result, Whole, on_two_ranks, train

KINDS = ("ddp", "fsdp2")
RESNET = (("model", "resnet18"),)  # batch norms
STILL = {
    # What is drawn by rank, not by sample, is off: dropout, and boxes swapped inside the rank's rows.
    "voco": (("dropout", 0.0),),
    "swinunetr": (("swap_share", 0.0),),
}
FAMILY = {"spark": ("convnet", 2), "swinunetr": ("swin3d", 3), "voco": ("vit3d", 3)}


def case_of(objective: str) -> Case:
    family, ndim = FAMILY.get(objective, ("vit", 2))
    return Case(objective, family, ndim, STILL.get(objective, ()))


def family_of(name: str) -> Case:
    ndim = 2 if name in ("vit", "swin", "convnet") else 3
    return Case("mae", name, ndim, encoder=(("drop_path", 0.0),) if name == "primus" else (), recompute=True)


OF_OBJECTIVE = {name: case_of(name) for name in OBJECTIVES}
OF_FAMILY = {name: family_of(name) for name in ENCODERS}
SPECIAL = {
    "batch norms": Case("mae", "convnet", 2, encoder=RESNET),
    "batch norms of a teacher": Case("dino", "convnet", 2, encoder=RESNET),
    "masked batch norms": Case("spark", "convnet", 2, encoder=RESNET),
    "three steps with a teacher": Case("dinov2", "vit", 2, steps=3),
    "accumulation": Case("mae", "vit", 2, micro=2),
    "bfloat16": Case("dinov2", "vit", 2, precision="bf16-mixed", recompute=True),
}
ALL = {**OF_OBJECTIVE, **OF_FAMILY, **SPECIAL}
QUICK = ("simclr", "dinov2", "swin3d", "masked batch norms", "accumulation", "bfloat16")


def several(names: tuple[str, ...], rank: int, world: int) -> dict[tuple[str, str], Result]:
    return {(name, kind): train(ALL[name], kind, rank, world) for name in names for kind in KINDS}


@cache
def quick() -> dict[tuple[str, str], Result]:
    return on_two_ranks(several, QUICK)


@cache
def slow() -> dict[tuple[str, str], Result]:
    return on_two_ranks(several, tuple(name for name in ALL if name not in QUICK))


@cache
def alone(name: str) -> Result:
    return train(ALL[name], "one")


def cases() -> list[object]:
    marked = []
    for name in ALL:
        marks = [] if name in QUICK else [pytest.mark.slow, pytest.mark.timeout(600)]
        marked += [pytest.param(name, kind, marks=marks, id=f"{name}-{kind}") for kind in KINDS]
    return marked


@pytest.mark.parametrize(("name", "kind"), cases())
def test_two_ranks_step_as_one_process(name: str, kind: str) -> None:
    case, one = ALL[name], alone(name)
    both = (quick() if name in QUICK else slow())[name, kind]
    half = case.precision.startswith("bf16")
    assert both.loss == pytest.approx(one.loss, rel=1e-3 if half else 1e-5)
    assert both.norms == pytest.approx(one.norms, rel=1e-2 if half else 2e-4)
    begin = {key: x.float().numpy() for key, x in Whole(case).state_dict().items()}
    steps = RATE * one.norms["all"] * case.steps
    for key, expected in one.state.items():
        moved = float(np.linalg.norm(expected - begin[key]))
        off = float(np.linalg.norm(expected - both.state[key]))
        # Rounding of the weights, of the gradient, and of gradients that are zero but for rounding.
        slack = 1e-6 * float(np.linalg.norm(expected)) + (1e-2 if half else 1e-3) * moved + 1e-5 * steps
        assert off <= slack, (key, off, slack)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_every_trained_weight(kind: str) -> None:
    """Else the comparison above could hold for a step that does nothing."""
    case, both = ALL["dinov2"], quick()["dinov2", kind]
    whole = Whole(case)
    for key, parameter in whole.named_parameters():
        if parameter.requires_grad:
            assert not np.array_equal(both.state[key], parameter.detach().numpy()), key
    teacher = {
        key: x for key, x in whole.state_dict().items() if key.startswith("objective.teacher.") and x.ndim > 1
    }
    assert teacher and all(not np.array_equal(both.state[key], x.numpy()) for key, x in teacher.items())


def test_sharding_leaves_half_of_the_weights_to_the_other_rank() -> None:
    for name in QUICK:
        assert quick()[name, "ddp"].sharded == 0
        assert 0.45 < quick()[name, "fsdp2"].sharded <= 0.5, name


def _own_rows(rank: int, world: int) -> float:
    from medloom.pretrain.norms import count_all_ranks

    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    norm = torch.nn.BatchNorm2d(3)
    mine = x.chunk(world)[rank]
    alone, counted = norm(mine), count_all_ranks(norm)(mine)
    expected = torch.nn.BatchNorm2d(3)(x).chunk(world)[rank]
    torch.testing.assert_close(counted, expected)
    return float((alone - expected).abs().max())


def test_batch_norms_would_otherwise_count_their_own_rows() -> None:
    assert on_two_ranks(_own_rows) > 0.01
