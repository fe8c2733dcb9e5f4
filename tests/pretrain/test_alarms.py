"""Alarms: what a collapsing run trips, what a healthy one does not, and that they survive a restart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.pretrain.alarms import HISTORY, HOLD, Watch
from medloom.pretrain.diagnostics import describe
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Objective, Output
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.tracking import METRICS, read_rows
from medloom.pretrain.views import ViewConfig

from .overfit import blobs


class Alike(Objective):
    """Wants the features of all images to be the same, and gets it."""

    @dataclass(kw_only=True)
    class Config:
        name: str = "alike"

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        found = encoder(batch.image)
        loss = (found.pooled - found.pooled.mean(dim=0)).square().mean() + 0.0 * found.tokens.sum()
        return Output(loss, {}, found.pooled.detach())


def healthy(step: int, **more: float) -> dict[str, Any]:
    """A row of a run in which all is well."""
    return {"step": step, "feature_std": 0.6, "rankme": 30.0, "rank_centred": 25.0, "grad_norm": 1.0, **more}


def names(watch: Watch, rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[alarm.name for alarm in fired] for fired in watch.replay(rows)]


@pytest.mark.parametrize("every", [1, 20, 100])
def test_a_constant_encoder_trips_within_200_steps_even_in_the_warm_up(every: int) -> None:
    constant = describe(torch.ones(32, 1) * torch.randn(1, 16, generator=torch.Generator().manual_seed(0)))
    watch = Watch(warmup=5000)
    fired = names(watch, [{"step": step, **constant} for step in [1, *range(every, 201, every)][: HOLD + 1]])
    assert ["constant"] in fired


def test_a_run_that_collapses_raises_the_alarm_and_keeps_it(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.pretrain.run import pretrain

    monkeypatch.setitem(OBJECTIVES, "alike", Alike)
    config = tiny_config(tmp_path / "a", "trainer.steps=200", "trainer.log_every=20", "data.batch_size=16")
    config.objective = {"name": "alike"}
    rows = read_rows(pretrain(config) / METRICS)
    assert "alarm" not in rows[0]
    assert rows[-1]["step"] == 200 and "feature_std" in rows[-1]["alarm"]


@pytest.mark.slow
def test_a_healthy_run_raises_none_over_2000_steps() -> None:
    encoder = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8,
                             "embed_dim": 24, "depth": 1, "num_heads": 2, "in_channels": 1})  # fmt: skip
    still = ViewConfig(flip=0.0)  # no transform: this is about 2,000 steps, not about views
    objective = MAE(MAE.Config(decoder_dim=12, decoder_depth=1, decoder_heads=2, view=still), encoder)
    images = blobs(64, (16, 16))
    optimiser = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=1e-3)
    watch, fired = Watch(warmup=100), []
    for step in range(1, 2001):
        chosen = (torch.arange(16) + 16 * step) % 64
        batch = Batch(image=images[chosen], position=chosen + 64 * step, seed=0, step=step, steps=2000)
        output = objective.step(batch, encoder)
        optimiser.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            fired += watch.see({"step": step, "grad_norm": float(norm), **describe(output.features)})
    assert not fired


def test_one_bad_row_is_no_alarm_and_an_alarm_ends() -> None:
    bad = {"rank_centred": 1.2}
    rows = [healthy(n, **(bad if n in (5, 10, 11, 12, 13) else {})) for n in range(20)]
    fired = names(Watch(), rows)
    assert [n for n, found in enumerate(fired) if found] == [12, 13]


def test_soft_rules_wait_for_the_end_of_the_warm_up() -> None:
    rows = [healthy(n, feature_std=0.005) for n in range(1, 20)]
    assert [n for n, found in enumerate(names(Watch(warmup=10), rows), 1) if found] == list(range(13, 20))


@pytest.mark.parametrize("level", [0.0005, 0.999])
def test_a_teacher_that_says_the_same_of_all_images_is_named(level: float) -> None:
    same = [healthy(n, teacher_entropy=level, marginal_entropy=level + 1e-4) for n in range(5)]
    apart = [healthy(n, teacher_entropy=0.4, marginal_entropy=0.7) for n in range(5)]
    assert names(Watch(), same)[-1] == ["teacher"]
    assert not any(names(Watch(), apart))


def test_a_gradient_that_blows_up_is_named_and_noise_is_not() -> None:
    calm = [healthy(n, grad_norm=1.0 + 0.5 * math.sin(n)) for n in range(HISTORY + 10)]
    wild = [healthy(HISTORY + 10 + n, grad_norm=100.0) for n in range(30)]
    fired = names(Watch(), calm + wild)
    assert not any(fired[: len(calm)])
    assert fired[-1] == ["gradient"], "a spike that stays does not become what is usual"


def test_features_that_are_not_finite_are_an_alarm_at_once() -> None:
    assert names(Watch(), [healthy(1, rankme=math.nan, feature_std=math.nan)]) == [["finite"]]
    assert names(Watch(), [{"step": 1, "rankme": None, "feature_std": None}]) == [["finite"]]
    assert names(Watch(), [{"step": 1, "loss": 1.0}]) == [[]]


def test_watching_goes_on_where_the_rows_of_a_stopped_run_end() -> None:
    rows = [healthy(1 + n, rank_centred=1.0) for n in range(HOLD)]
    again = Watch()
    again.replay(rows[:-1])
    assert [alarm.name for alarm in again.see(rows[-1])] == ["rank"]
