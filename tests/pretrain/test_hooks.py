"""When a run calls an objective: each micro-batch, each update once, and whose encoder is released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Facts, Objective, Output
from medloom.pretrain.run import pretrain
from medloom.pretrain.teacher import Teacher
from medloom.pretrain.weights import load_encoder

Make = Callable[..., Any]


class Slow(Objective):
    """Features near those of a teacher; tells what it was asked for."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "slow"

    facts = Facts(title="a toy", paper="none", predicts="a teacher", good_for="this test", cost="1.3")
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, config: Slow.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.teacher = Teacher(encoder=encoder)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """Squared distance to the teacher's features of the mirrored image."""
        self.calls.append(("step", batch.step, batch.steps, len(batch.image)))
        pooled = encoder(batch.image).pooled
        with torch.no_grad():
            target = self.teacher.get_submodule("encoder")(batch.image.flip(-1)).pooled
        loss = (pooled - target).square().mean()
        return Output(loss, {}, pooled.detach())

    def before_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Remember the call; the gradients are there."""
        given = all(p.grad is not None for p in encoder.parameters())
        self.calls.append(("before", step, steps, given))

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move the teacher."""
        self.calls.append(("after", step, steps))
        self.teacher.update(0.5, encoder=encoder)

    def released(self, encoder: Encoder) -> Encoder:
        """The teacher's encoder."""
        return self.teacher.get_submodule("encoder")  # type: ignore[return-value]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tiny_config: Make) -> Make:
    monkeypatch.setitem(OBJECTIVES, "slow", Slow)
    Slow.calls.clear()

    def make(out: Path, *overrides: str) -> Any:
        config = tiny_config(out, "trainer.checkpoint_every_steps=2", *overrides)
        config.objective = {"name": "slow"}
        return config

    return make


def test_hooks_come_once_an_update_whatever_the_micro_batches(slow: Make, tmp_path: Path) -> None:
    pretrain(slow(tmp_path / "run", "trainer.steps=3", "trainer.accumulate=2"))
    expected: list[tuple[Any, ...]] = []
    for step in range(3):
        expected += [("step", step, 3, 2)] * 2 + [("before", step, 3, True), ("after", step, 3)]
    assert Slow.calls == expected


@torch.no_grad()
def test_the_teacher_is_what_is_released_from_the_artefact_and_the_checkpoint(
    slow: Make, tmp_path: Path
) -> None:
    run = pretrain(slow(tmp_path / "run", "trainer.steps=2", "optim.base_lr=10"))
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    name = "model.blocks.0.attn.qkv.weight"
    student, teacher = state[f"encoder.{name}"], state[f"objective.teacher.encoder.{name}"]
    assert not torch.allclose(student, teacher)
    for source in (run, run / "last.ckpt"):
        assert torch.equal(load_encoder(source)[0].get_parameter(name), teacher)


def test_a_teacher_resumes_where_it_was(
    slow: Make, tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    undisturbed = pretrain(slow(tmp_path / "one", "trainer.steps=6", "trainer.log_every=1"))
    config = slow(tmp_path / "two", "trainer.steps=6", "trainer.log_every=1")
    after_update = Slow.after_update

    def killed(self: Slow, step: int, steps: int, encoder: Encoder) -> None:
        after_update(self, step, steps, encoder)
        if step == 4:
            raise KeyboardInterrupt

    Slow.after_update = killed  # type: ignore[method-assign]
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            pretrain(config)
    finally:
        Slow.after_update = after_update  # type: ignore[method-assign]
    again = slow(tmp_path / "two", "trainer.steps=6", "trainer.log_every=1", "resume=true")
    assert rows_of(pretrain(again)) == rows_of(undisturbed)


def test_two_micro_batches_are_one_batch(
    tiny_config: Make, tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    options = ("trainer.steps=2", "trainer.log_every=1")
    whole = rows_of(pretrain(tiny_config(tmp_path / "one", *options)))
    halves = rows_of(pretrain(tiny_config(tmp_path / "two", *options, "trainer.accumulate=2")))
    assert halves[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert halves[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-4)
    assert halves[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-3)
