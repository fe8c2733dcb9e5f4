"""A method of one's own is one class and one line: config, run, checks and table come by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.methods import cross_table
from medloom.pretrain.objectives import OBJECTIVES, Batch, Facts, Objective, Output
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder
from torch import nn


class MeanGrey(Objective):
    """Predict the mean of an image from its features."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "mean_grey"
        weight: float = 1.0

    facts = Facts(title="a toy", paper="none", predicts="the mean grey value", good_for="this test", cost="1")

    def __init__(self, config: MeanGrey.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = nn.Linear(encoder.embed_dim, 1)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """Mean squared error."""
        pooled = encoder(batch.image).pooled
        error = (self.head(pooled).squeeze(1) - batch.image.flatten(1).mean(1)).square().mean()
        return Output(self.config.weight * error, {"error": error.detach()}, pooled.detach())


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_class_and_one_line_are_a_method(
    tiny_config: Callable[..., Any],
    rows_of: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ndim: int,
) -> None:
    monkeypatch.setitem(OBJECTIVES, "mean_grey", MeanGrey)
    config = tiny_config(tmp_path / "run", "trainer.steps=6", ndim=ndim)
    config.objective = {"name": "mean_grey", "weight": 2.0}
    folder = pretrain(config)
    rows = rows_of(folder)
    assert rows[-1]["step"] == 6 and rows[-1]["loss"] == pytest.approx(2 * rows[-1]["error"])
    assert load_encoder(folder)[1].record["training"]["objective"] == {"name": "mean_grey", "weight": 2.0}
    config.objective = {"name": "mean_grey", "wieght": 2.0}
    with pytest.raises(ConfigError, match="did you mean weight"):
        pretrain(config)


def test_it_is_in_the_cross_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "mean_grey", MeanGrey)
    row = next(row for row in cross_table() if row.name == "mean_grey")
    assert row.runs["vit"] == "2D" and row.runs["vit3d"] == "3D" and row.runs["vit_any"] == "2D 3D"
    assert not row.refused and row.recipes == []
