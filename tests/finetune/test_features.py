"""finetune/features.py: rows that are computed once, by whatever split asks, and within a bound."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.finetune.evaluation import evaluate
from medloom.finetune.features import FeatureCache, weights_hash
from medloom.finetune.run import finetune


@dataclass(frozen=True)
class Named:
    """Stands for a case: all that the cache asks for is its key."""

    key: str


class Counting:
    """Rows that say which case they are, and how often each was computed."""

    def __init__(self, width: int = 4) -> None:
        self.width = width
        self.asked: list[str] = []

    def __call__(self, cases: Sequence[Any]) -> np.ndarray:
        self.asked += [case.key for case in cases]
        return np.array([[float(case.key)] * self.width for case in cases], dtype=np.float32)


def named(*numbers: int) -> list[Any]:
    return [Named(str(number)) for number in numbers]


def test_a_row_is_computed_once_whatever_split_asks_for_it(tmp_path: Path) -> None:
    compute, cache = Counting(), FeatureCache(tmp_path, 1.0)
    assert cache.rows("a", named(3, 1, 2), compute)[:, 0].tolist() == [3, 1, 2]
    asked = len(compute.asked)
    assert cache.rows("a", named(2, 7, 3), compute)[:, 0].tolist() == [2, 7, 3]
    assert set(compute.asked[asked:]) == {"7"}
    asked = len(compute.asked)
    assert cache.rows("a", named(7, 1), compute)[:, 0].tolist() == [7, 1]
    assert compute.asked[asked:] == []
    assert cache.rows("b", named(1), compute)[:, 0].tolist() == [1]
    assert len(compute.asked) > asked, "another entry has rows of its own"


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    compute, cache = Counting(), FeatureCache(tmp_path, 1.0)
    cache.rows("a", named(1, 2), compute)
    part = next((tmp_path / "a").glob("*.npy"))
    part.write_bytes(part.read_bytes()[:40])
    assert cache.rows("a", named(1, 2), compute)[:, 0].tolist() == [1, 2]


def test_the_entry_that_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    import os

    cache = FeatureCache(tmp_path, 40_000 / 2**30)
    for number, name in enumerate(("old", "newer", "newest")):
        cache.rows(name, named(1, 2, 3), Counting(1000))  # 12 kB
        if (tmp_path / name).is_dir():
            os.utime(tmp_path / name, (number, number))
    cache.rows("more", named(1, 2, 3), Counting(1000))
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "newest").is_dir()
    compute = Counting(20_000)
    assert cache.rows("vast", named(1, 2), compute)[:, 0].tolist() == [1, 2]
    assert not list((tmp_path / "vast").glob("*.npy")), "what is larger than the bound is not kept"


def test_two_that_ask_at_once_compute_once(tmp_path: Path) -> None:
    compute, found = Counting(), []

    def ask() -> None:
        found.append(FeatureCache(tmp_path, 1.0).rows("a", named(*range(50)), compute))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(rows, found[0]) for rows in found)
    assert len(compute.asked) == 51  # the first one also tells the size of a row


@pytest.fixture
def run(workshop: Any, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *items: str) -> Path:
        return finetune(workshop.config(
            pictures, tmp_path / name, "protocol=logistic", "batch_size=8", "baseline=false", *items,
        ))  # fmt: skip

    return run


def test_scores_with_the_cache_are_those_without(run: Callable[..., Path], tmp_path: Path) -> None:
    plain, cached = run("plain"), run("cached", f"features={tmp_path / 'features'}")
    scores = [json.loads((evaluate(one) / "summary.json").read_text())["arms"] for one in (plain, cached)]
    for a, b in zip(scores[0]["pretrained"], scores[1]["pretrained"], strict=True):
        assert a["mean"] == pytest.approx(b["mean"], abs=1e-6)
    entry = next(path for path in (tmp_path / "features").iterdir() if path.is_dir())
    kept = [key for part in entry.glob("*.json") for key in json.loads(part.read_text())]
    assert len(kept) == len(set(kept)) == 48, "train, val and test, each case once"


def test_other_splits_seeds_and_protocols_find_the_features_and_another_encoder_does_not(
    run: Callable[..., Path], workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"features={tmp_path / 'features'}"
    evaluate(run("first", store))
    calls: list[int] = []
    from medloom.finetune.heads import FrozenProbe

    described = FrozenProbe.described

    def counting(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return described(self, x)

    monkeypatch.setattr(FrozenProbe, "described", counting)
    evaluate(run("second", store, "seed=1", "fraction=0.5"))
    assert calls == []
    evaluate(run("third", store, f"encoder=random:{workshop.root / 'encoder2d'}"))
    assert sum(calls) > 0


def test_the_hash_is_of_the_weights_and_the_section(workshop: Any, tmp_path: Path) -> None:
    from medloom.pretrain.weights import load_encoder

    encoder, _ = load_encoder(workshop.root / "encoder2d")
    shutil.copytree(workshop.root / "encoder2d", tmp_path / "copy")
    again, _ = load_encoder(tmp_path / "copy")
    assert weights_hash(encoder) == weights_hash(again)
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-6
    assert weights_hash(encoder) != weights_hash(again)
