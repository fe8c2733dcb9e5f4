"""Label-efficiency curves: pooled over draws, paired by draw, run and resumed end to end, and shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import ConfigError
from medloom.finetune.curves import Size, beside, curves, parse_size, run_curve
from medloom.finetune.hierarchy import pooled, pooled_difference
from medloom.finetune.report import render
from medloom.finetune.report_curves import label_curves
from medloom.finetune.report_inputs import Evaluation, Inputs, Score, read_inputs


def test_sizes() -> None:
    assert [parse_size(text).name for text in ("1%", "12.5 %", "5", "5-shot", "100%")] == [
        "1%", "12.5%", "5-shot", "5-shot", "100%",
    ]  # fmt: skip
    assert parse_size("10%").overrides == ["fraction=0.1"] and parse_size("3").overrides == ["shots=3"]
    for text in ("0%", "101%", "0", "ten", "-5", ""):
        with pytest.raises(ConfigError, match="size"):
            parse_size(text)


def evaluated(size: Size, draw: int, gain: float, *, encoder: str = "mae", metric: str = "auc") -> Evaluation:
    rng = np.random.default_rng([draw, round(100 * size.fraction)])
    level = 0.6 + 0.1 * size.fraction + 0.03 * rng.standard_normal()
    patients = 0.02 * np.random.default_rng(7).standard_normal(300)
    means = {"pretrained": level + gain, "scratch": level}
    return Evaluation(
        "busi", "classification", "full",
        arms={arm: [Score(metric, "", mean, 0, 1, 50)] for arm, mean in means.items()},
        draws={f"{arm}|{metric}": (mean + patients).astype(np.float32) for arm, mean in means.items()},
        leakage={"status": "clean", "statement": "clean"},
        summary={"encoder": encoder, "fraction": size.fraction, "draw": draw, "seed": draw, "steps": 9,
                 "n": {"train": {"subjects": round(100 * size.fraction)}}},
    )  # fmt: skip


SIZES = [Size(0.1), Size(0.5), Size(1.0)]


def test_a_curve_pools_its_runs_and_pairs_them() -> None:
    rows = [evaluated(size, draw, 0.05) for size in SIZES[::-1] for draw in range(5)]
    (curve,) = curves(rows)
    assert [p.size.name for p in curve.points if p.arm == "pretrained"] == ["10%", "50%", "100%"]
    assert [(p.subjects, p.runs) for p in curve.points if p.arm == "scratch"] == [(10, 5), (50, 5), (100, 5)]
    ten = [row for row in rows if row.summary["fraction"] == 0.1]
    stacked = {
        arm: (np.array([r.arms[arm][0].mean for r in ten]), np.stack([r.draws[f"{arm}|auc"] for r in ten]))
        for arm in ("pretrained", "scratch")
    }
    point = next(p for p in curve.points if (p.size.fraction, p.arm) == (0.1, "pretrained"))
    assert point.value == pooled(*stacked["pretrained"])
    gap = curve.gaps[0]
    first, second = stacked["pretrained"], stacked["scratch"]
    assert gap.value == pooled_difference(first[0], second[0], first[1], second[1])
    # What both arms share, the subset and the patients, is not in the interval of their difference.
    assert (gap.value.low, gap.value.high) == pytest.approx((0.05, 0.05), abs=1e-6)
    assert point.value.high - point.value.low > 0.02


def test_one_size_is_no_curve_and_encoders_are_kept_apart() -> None:
    assert curves([evaluated(SIZES[0], draw, 0.1) for draw in range(3)]) == []
    rows = [evaluated(size, 0, 0.1, encoder=name) for size in SIZES[:2] for name in ("mae", "dino")]
    assert sorted(curve.encoder for curve in curves(rows)) == ["dino", "mae"]


def test_only_the_run_with_the_most_labels_is_told_one_by_one() -> None:
    rows = [evaluated(size, draw, 0.05) for size in SIZES for draw in range(2)]
    other = evaluated(SIZES[0], 0, 0.0, encoder="other")
    kept = beside(curves(rows), [*rows, other])
    assert [(e.summary["encoder"], e.summary["fraction"]) for e in kept] == [("mae", 1.0), ("other", 0.1)]


def test_the_page_has_the_curve_and_says_when_draws_are_few() -> None:
    rows = [evaluated(size, draw, 0.05) for size in SIZES for draw in range(5)]
    page = render(Inputs(rows, [], []), "x")
    assert "How many labels does it take?" in page and "10%" in page
    assert page.count('class="line"') > 6
    assert "Fewer than" not in page
    few = [evaluated(size, draw, 0.05) for size in SIZES for draw in range(3)]
    assert "Fewer than 5 draws: 10%, 50%, 100%" in label_curves(curves(few))
    assert label_curves([]) == ""


def test_a_curve_from_end_to_end(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    dotlist = [
        f"encoder={workshop.root / 'encoder2d'}", f"root={workshop.root}", f"cache={workshop.cache}",
        "protocol=logistic", "steps=2", "validations=1", "batch_size=8", "device=cpu",
    ]  # fmt: skip
    sizes = [parse_size("1"), parse_size("3"), parse_size("100%")]
    folders = run_curve(pictures, dotlist, tmp_path / "curve", sizes=sizes, draws=2)
    assert folders is not None and len(folders) == 6
    used = []
    for folder in folders:
        with (folder.parent / "split.csv").open() as file:
            used.append(
                {r["subject"] for r in csv.DictReader(file) if r["split"] == "train" and r["used"] == "1"}
            )
    assert [len(subjects) for subjects in used] == [2, 2, 6, 6, 12, 12]
    assert used[0] < used[2] < used[4] and used[1] < used[3] < used[5]
    assert used[0] != used[1] or used[2] != used[3]
    said = json.loads((folders[1] / "summary.json").read_text())
    assert (said["shots"], said["draw"], said["seed"], said["encoder"]) == (1, 1, 1, "encoder2d")
    (curve,) = curves(read_inputs(folders, []).evaluations)
    assert curve.arms == ["pretrained", "random", "scratch"]
    assert all(point.runs == 2 for point in curve.points) and len(curve.points) == 9
    stamps = [(folder / "summary.json").stat().st_mtime_ns for folder in folders]
    again = run_curve(pictures, dotlist, tmp_path / "curve", sizes=sizes, draws=2)
    assert again == folders
    assert [(folder / "summary.json").stat().st_mtime_ns for folder in folders] == stamps


def test_what_a_curve_sets_itself_is_refused(pictures: Path, tmp_path: Path) -> None:
    for item in ("fraction=0.5", "seed=3", "out=x"):
        with pytest.raises(ConfigError, match="a curve sets it"):
            run_curve(pictures, [item], tmp_path, sizes=[Size(0.1)])
    with pytest.raises(ConfigError, match="each size once"):
        run_curve(pictures, [], tmp_path, sizes=[Size(0.1), Size(0.1)])
