"""A run measured in epochs, a run of several crop sizes: both are steps to everything after the start."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import structured
from medloom.data.errors import ConfigError
from medloom.pretrain.artefact import WEIGHTS
from medloom.pretrain.config import PretrainConfig, complete, load_config, per_rank_batch
from medloom.pretrain.folder import CONFIG
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, read_rows

Make = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, Any]]]

STRICT = ("trainer.steps=null", "data.epoch=strict", "data.alpha=1")
CROPS = "data.classes=[{share: 2, crop: [16, 16]}, {crop: [24, 16], batch_size: 6}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.epochs=2"], r"trainer\.steps=\d+ and trainer\.epochs=2 both .* trainer\.steps=null"),
        (
            ["trainer.epochs=2", "trainer.steps=null"],
            r"trainer\.epochs=2 needs an epoch: set data\.epoch=strict",
        ),
        (["trainer.epochs=0", *STRICT], r"trainer\.epochs is 0.0; it must be above 0"),
        (["data.epoch=stric"], "did you mean strict"),
        (["data.crops_per_sample=0"], r"data\.crops_per_sample is 0"),
        (["data.classes=[{share: 0}]"], r"data\.classes\[0\]\.share is 0"),
    ],
)
def test_mistakes_are_one_line_with_a_mend(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("phantom-mae-2d", overrides)
    assert "\n" not in str(caught.value)


def test_neither_steps_nor_epochs_is_the_default_number_of_steps() -> None:
    assert load_config("phantom-mae-2d", ["trainer.steps=null"]).steps == 100_000
    waiting = load_config("phantom-mae-2d", ["trainer.epochs=3", *STRICT])
    assert waiting.trainer.steps is None
    with pytest.raises(ConfigError, match="not resolved"):
        _ = waiting.steps


def test_epochs_are_resolved_once_and_logged(
    tmp_path: Path, tiny_config: Make, rows_of: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    epochs = ("trainer.epochs=0.5", *STRICT)  # 48 pictures, 4 a step: 6 steps
    run = pretrain(tiny_config(tmp_path / "a", *epochs))
    assert [row["step"] for row in read_rows(run / METRICS)] == [1, 3, 6]
    messages = " | ".join(record.getMessage() for record in caplog.records)
    assert "0.5 epochs (strict) = 6 steps" in messages
    assert "24 samples are 0.50 epochs (strict) of 48" in messages
    same = pretrain(tiny_config(tmp_path / "b", "trainer.steps=6", *STRICT[1:]))
    assert rows_of(same) == rows_of(run)
    assert "epochs: null" in (run / CONFIG).read_text() and "steps: 6" in (run / CONFIG).read_text()
    assert pretrain(tiny_config(tmp_path / "a", *epochs, "resume=true")) == run
    with pytest.raises(ConfigError, match=r"trainer\.steps: 6 -> 12"):
        pretrain(tiny_config(tmp_path / "a", "trainer.epochs=1", *STRICT, "resume=true"))


def test_small_sources_that_repeat_are_said(
    tmp_path: Path, tiny_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cover = ("trainer.steps=null", "trainer.epochs=1", "data.epoch=cover", "data.weights={tiny_colour: 3}")
    pretrain(tiny_config(tmp_path / "a", *cover, "trainer.log_every=100"))
    messages = [record.getMessage() for record in caplog.records]
    assert any("1 epochs (cover) = 24 steps" in message for message in messages)
    assert any("tiny_colour-2d" in message and "repeats it 3 times" in message for message in messages)


def test_a_run_of_two_crop_sizes_resumes_exactly(tmp_path: Path, tiny_config: Make, rows_of: Rows) -> None:
    config = tiny_config(tmp_path / "whole", CROPS)
    assert per_rank_batch(config, 2) == [2, 3]
    whole = pretrain(config)
    assert [row["samples"] for row in read_rows(whole / METRICS)][-1] == 8 * 4 + 4 * 6
    record = json.loads((whole / WEIGHTS).with_suffix(".json").read_text())
    assert record["input"]["crops"] == [[16, 16], [24, 16]] and record["training"]["batch_size"] == [4, 6]
    assert record["training"]["samples"] == 56

    class Killed(BaseException):
        pass

    def progress(done: int, total: int, what: str) -> None:
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        pretrain(tiny_config(tmp_path / "cut", CROPS), progress=progress)
    assert rows_of(pretrain(tiny_config(tmp_path / "cut", CROPS, "resume=true"))) == rows_of(whole)


def test_a_class_that_the_encoder_cannot_take_is_refused(tmp_path: Path, tiny_config: Make) -> None:
    mixed = "data.classes=[{crop: [16, 16], channels: 1}, {ndim: 3, crop: [16, 16, 16]}]"
    with pytest.raises(ConfigError, match=r"encoder is 2D, data\.classes have a class with ndim 3"):
        pretrain(tiny_config(tmp_path / "a", mixed, "encoder.in_channels=1"))
    with pytest.raises(ConfigError, match="mix 2D and 3D: name an encoder"):
        complete(structured(PretrainConfig, [mixed]))
    assert not (tmp_path / "a").exists()
