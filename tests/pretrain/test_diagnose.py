"""What `medloom diagnose` reads from curves: made ones whose trouble is known, and a real run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.pretrain.diagnose import ALARM, GOOD, LOOK, Finding, diagnose
from medloom.pretrain.objectives import OBJECTIVES
from medloom.pretrain.readings import READINGS, chance
from medloom.scripts.cli import main

CONFIG = {
    "objective": {"name": "mae", "norm_pixels": True},
    "optim": {"warmup_fraction": 0.1, "clip": 1.0},
    "trainer": {"steps": 1000},
    "data": {"batch_size": 64},
}


def write(folder: Path, config: dict[str, Any] | None = None, **curves: Callable[[float], float]) -> Path:
    """A run of 50 rows; each curve is a function of the share of the run that is done."""
    healthy: dict[str, Callable[[float], float]] = {
        "loss": lambda t: 0.5 + 0.4 * math.exp(-4 * t), "grad_norm": lambda t: 0.5,
        "data_wait": lambda t: 0.01,
        "feature_std": lambda t: 0.5, "rankme": lambda t: 20 + t, "rank_centred": lambda t: 20.0,
        "overhead": lambda t: 0.005, "mfu": lambda t: 0.4, "tokens_per_s": lambda t: 1000.0,
    }  # fmt: skip
    rows = [
        {"step": 20 * n, "samples": 1280 * n}
        | {key: value(n / 50) for key, value in (healthy | curves).items()}
        for n in range(1, 51)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "config.yaml").write_text(json.dumps(config or CONFIG))
    return folder


def looks(found: list[Finding]) -> list[str]:
    return [finding.about for finding in found if finding.level == LOOK]


def test_a_healthy_run_has_nothing_to_mend(tmp_path: Path) -> None:
    found = diagnose(write(tmp_path / "r"))
    assert {finding.level for finding in found} == {"fact", GOOD}
    assert any(finding.about == "loss" and "falls" in finding.says for finding in found)


@pytest.mark.parametrize(
    ("about", "word", "curves"),
    [
        ("loss", "rises", {"loss": lambda t: 0.4 + 0.4 * t}),
        ("loss", "does not fall", {"loss": lambda t: 0.5 + 0.01 * math.sin(999 * t)}),
        ("loss", "no better than", {"loss": lambda t: 1.01 - 0.02 * t}),
        ("rankme", "fell", {"rankme": lambda t: 30 - 20 * t}),
        ("lidar", "fell", {"lidar": lambda t: 30 - 20 * t}),
        ("data_wait", "waits", {"data_wait": lambda t: 0.3}),
        ("overhead", "diagnostics", {"overhead": lambda t: 0.05}),
        ("mfu", "peak", {"mfu": lambda t: 0.05}),
        ("grad_norm", "clipped", {"grad_norm": lambda t: 8.0}),
        ("grad_norm/blocks_2", "does not learn", {"grad_norm/blocks_2": lambda t: 1e-9}),
        ("probe/dense_a", "degrade", {"probe/dense_a": lambda t: 0.8 - t / 3, "probe/knn_a": lambda t: 0.5}),
        ("probe/knn_a", "fell", {"probe/knn_a": lambda t: 0.9 - 0.4 * t, "probe/dense_a": lambda t: 0.5}),
    ],
)  # fmt: skip
def test_each_trouble_is_named_alone_with_its_mend(
    tmp_path: Path, about: str, word: str, curves: dict[str, Callable[[float], float]]
) -> None:
    found = diagnose(write(tmp_path / "r", **curves))
    told = [finding for finding in found if finding.level == LOOK and word in finding.says]
    assert [finding.about for finding in told] == [about] and told[0].mend
    assert set(looks(found)) == {about}


def test_an_alarm_that_stands_sets_the_exit_status_and_one_that_is_over_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stands = write(tmp_path / "a", feature_std=lambda t: 0.5 if t < 0.9 else 0.001)
    over = write(tmp_path / "b", rank_centred=lambda t: 1.1 if 0.4 < t < 0.6 else 20)
    assert main(["diagnose", str(stands)]) == 1
    assert "all images get the same features" in " ".join(capsys.readouterr().out.split())
    assert main(["diagnose", str(over)]) == 0
    assert "it is over" in " ".join(capsys.readouterr().out.split())
    assert diagnose(stands)[0].level == ALARM


def test_a_real_run_is_read_and_a_folder_without_rows_is_refused(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    from medloom.pretrain.run import pretrain

    run = pretrain(tiny_config(tmp_path / "run", "probe.every_steps=6"))
    found = diagnose(run)
    assert {"progress", "mfu", "probe/knn_tiny_pictures", "probe/linear_tiny_colour"} <= {
        f.about for f in found
    }
    with pytest.raises(ConfigError, match="has no rows"):
        diagnose(tmp_path)


def test_every_method_has_a_reading() -> None:
    assert set(READINGS) >= set(OBJECTIVES)


def test_the_level_of_knowing_nothing_follows_from_the_batch() -> None:
    simclr = {"objective": {"name": "simclr"}, "data": {"batch_size": 64}, "trainer": {"accumulate": 2}}
    level = chance(simclr)
    assert level is not None and level[0] == pytest.approx(math.log(2 * 32 - 1))
    assert chance({"objective": {"name": "dinov2"}, "data": {"batch_size": 64}}) is None
