"""Teachers: the average is its closed form, runs in evaluation mode, and moves only where it should."""

from __future__ import annotations

import pytest
import torch
from medloom.pretrain.teacher import Teacher
from torch import nn


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_the_average_is_its_closed_form() -> None:
    torch.manual_seed(0)
    student = network()
    teacher = Teacher(body=student)
    start = [p.clone() for p in student.parameters()]
    history = []
    for _ in range(3):
        with torch.no_grad():
            for p in student.parameters():
                p += torch.randn_like(p)
        history.append([p.detach().clone() for p in student.parameters()])
        teacher.update(0.9, body=student)
    for i, average in enumerate(teacher.parameters()):
        steps = zip([0.081, 0.09, 0.1], history, strict=True)
        expected = 0.729 * start[i] + sum(w * values[i] for w, values in steps)
        torch.testing.assert_close(average, expected)


def test_a_momentum_near_one_still_moves() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.ones_(student.weight)
    teacher = Teacher(body=student)
    nn.init.constant_(student.weight, 1.001)
    for _ in range(1000):
        teacher.update(0.9996, body=student)
    expected = 1.001 - 0.001 * 0.9996**1000
    assert float(next(teacher.parameters()).detach()) == pytest.approx(expected, abs=2e-5)
    with pytest.raises(TypeError, match="float32"):
        Teacher(body=student.half()).update(0.9, body=student)


def test_it_has_no_gradients_and_no_dropout_and_its_own_batch_statistics() -> None:
    student = network().train()
    teacher = Teacher(body=student)
    holder = nn.ModuleList([teacher]).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    dropout, norm = teacher.get_submodule("body")[2], teacher.get_submodule("body")[1]
    assert not dropout.training and norm.training
    x = torch.randn(8, 3) + 5
    teacher.get_submodule("body")(x)
    moved = norm.running_mean.clone()
    assert moved.abs().sum() > 0
    teacher.update(0.5, body=student)
    assert torch.equal(norm.running_mean, moved)
    holder.eval()
    assert not norm.training
