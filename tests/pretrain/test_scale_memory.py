"""trainer.accumulate=auto: the search is right, and what it measures is the memory of real steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import read_yaml
from medloom.data.errors import ConfigError
from medloom.pretrain.cluster.detect import Launch
from medloom.pretrain.config import per_rank_batch
from medloom.pretrain.folder import CONFIG
from medloom.pretrain.scale.memory import GIB, divisors, search, trials

from .test_scale_runs import Job, torchrun

CHOICES = divisors(96)


@pytest.mark.parametrize("budget", [11, 12, 14.9, 26, 58, 59, 106, 1000])
@pytest.mark.parametrize("bend", [0.0, 0.02])
def test_the_fewest_micro_batches_within_the_budget(budget: float, bend: float) -> None:
    """Also where memory is no straight line."""
    asked: list[int] = []

    def memory(number: int) -> float:
        asked.append(number)
        return 10 + 96 / number + bend * (96 / number) ** 2

    right = next((n for n in CHOICES if memory(n) <= budget), None)
    asked.clear()
    if right is None:
        with pytest.raises(ConfigError, match="smallest micro-batch"):
            search(memory, CHOICES, budget, 96)
        return
    chosen, seen = search(memory, CHOICES, budget, 96)
    assert chosen == right
    assert len(asked) == len(set(asked)) == len(seen) <= (4 if bend == 0 else 6)


def test_what_does_not_run_at_all_is_too_much() -> None:
    chosen, seen = search(lambda n: None if n < 4 else 1.0, CHOICES, 2.0, 96)
    assert chosen == 4 and seen[3] is None


def test_one_choice_is_measured_once() -> None:
    assert search(lambda n: 1.0, [1], 2.0, 7) == (1, {1: 1.0})


@pytest.fixture
def heavy(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A run whose activations are most of its memory."""

    def make(*options: str) -> Any:
        sizes = ("data.batch_size=48", "data.crop=[96,96]", "encoder.img_size=96", "encoder.depth=4")
        wide = ("encoder.embed_dim=96", "objective.mask_ratio=0.1", "data.snap=8")
        return tiny_config(tmp_path / "run", *sizes, *wide, *options)

    return make


@pytest.mark.slow
def test_memory_of_real_steps_grows_with_the_micro_batch(heavy: Callable[..., Any]) -> None:
    config = heavy()
    with trials(config, [48], "cpu", world=1) as measure:
        found = [measure(number) for number in (48, 4, 2)]
    assert all(size is not None for size in found)
    small, middle, large = (float(size or 0) for size in found)
    assert small < middle < large
    # 12 and 24 samples over 1: a line within a third.
    assert (large - small) / (middle - small) == pytest.approx(23 / 11, rel=0.33)


@pytest.mark.slow
def test_split_weights_need_less(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    big = ("encoder.embed_dim=384", "encoder.depth=8", "encoder.num_heads=6")
    found = []
    for strategy in ("ddp", "fsdp2"):
        config = tiny_config(tmp_path / strategy, *big, f"trainer.strategy={strategy}")
        with trials(config, [4], "cpu", world=8) as measure:
            found.append(measure(1))
    weights = 8 * 12 * 384**2 * 4  # bytes of the blocks
    assert found[0] - found[1] > 1.5 * weights  # weights, gradients and moments, less what stays gathered


def test_a_run_takes_what_fits_and_says_so(
    heavy: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    from medloom.pretrain.run import pretrain

    with trials(heavy(), [48], "cpu", world=1) as measure:
        several, whole = (float(measure(number) or 0) for number in (4, 1))
    budget = (several + 0.5 * (whole - several)) / GIB
    config = heavy("trainer.accumulate=auto", f"trainer.memory_gb={budget:.4f}", "trainer.steps=1")
    assert per_rank_batch(config, 2) == [24]
    with caplog.at_level("INFO"):
        run = pretrain(config)
    chosen = read_yaml(run / CONFIG)["trainer"]["accumulate"]
    assert chosen in (2, 3, 4)
    assert f"trainer.accumulate=auto: {chosen}, for a budget of" in caplog.text
    assert f"× {chosen} micro-batches ×" in caplog.text


def test_a_budget_that_nothing_fits_is_one_line(heavy: Callable[..., Any]) -> None:
    from medloom.pretrain.run import make_trainer

    config = heavy("trainer.accumulate=auto", "trainer.memory_gb=0.05", "trainer.steps=1")
    with pytest.raises(ConfigError, match=r"needs [\d.]+ GiB, the budget is 0.05: use trainer.recompute"):
        make_trainer(config, Launch("plain", 1, 1))


@pytest.mark.parametrize("value", ["0", "1.5", "many"])
def test_other_values_are_refused(heavy: Callable[..., Any], value: str) -> None:
    with pytest.raises(ConfigError, match="a whole number of micro-batches, or auto"):
        heavy(f"trainer.accumulate={value}")


@pytest.mark.slow
def test_two_ranks_agree_on_what_they_measured(heavy: Callable[..., Any], tmp_path: Path) -> None:
    jobs = []
    for strategy, gib in (("ddp", 64.0), ("fsdp2", 64.0)):
        config = heavy("trainer.accumulate=auto", f"trainer.memory_gb={gib}", "trainer.steps=1",
                       f"trainer.strategy={strategy}", "data.batch_size=8")  # fmt: skip
        config.out = str(tmp_path / strategy)
        jobs.append(Job(config))
    torchrun(tmp_path, *jobs)
    for strategy in ("ddp", "fsdp2"):
        assert read_yaml(tmp_path / strategy / CONFIG)["trainer"]["accumulate"] == 1
        assert (tmp_path / strategy / "encoder.safetensors").is_file()
