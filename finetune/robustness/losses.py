"""From scores on clean and on corrupted images to losses with intervals, by corruption and over all.

A loss is what is lost, so it is positive when the corrupted score is worse, whichever way the metric points;
the relative loss is its share of the clean score. Means are over severities, then over corruptions, so that
each corruption counts alike. All come from the same draws of patients (a paired bootstrap): the interval of a
loss is much narrower than those of the two scores, and the arms' losses can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import info
from ..statistics import interval_of

Pairs = Mapping[tuple[str, int], Mapping[tuple[str, str], "Pair"]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A score on the same cases, clean and corrupted: [1 + R], the value first, then its bootstrap draws."""

    clean: np.ndarray
    found: np.ndarray

    def absolute(self, metric: str) -> np.ndarray:
        """Loss [1 + R], positive where it got worse."""
        worse = self.clean.astype(float) - self.found
        return worse if info(metric).higher_is_better else -worse

    def relative(self, metric: str) -> np.ndarray:
        """Share of the clean score that is lost, [1 + R]; nan where that is not positive."""
        clean = self.clean.astype(float)
        return np.divide(self.absolute(metric), clean, out=np.full_like(clean, np.nan), where=clean > 0)


def losses(pairs: Pairs, arms: Sequence[str], metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows `scores` (a pair of corruption and severity), `by_corruption`, `overall` and `comparisons`.

    Args:
        pairs: (corruption, severity) -> (arm, metric) -> Pair.

    Every row holds `loss` and `relative` with `_low` and `_high`; nan where there is no interval.
    `comparisons` say how much less the pretrained arm loses than each baseline, over all corruptions.
    """
    found: dict[str, list[dict[str, Any]]] = {
        "scores": [],
        "by_corruption": [],
        "overall": [],
        "comparisons": [],
    }
    names = list(dict.fromkeys(name for name, _ in pairs))
    for metric in metrics:
        whole: dict[str, np.ndarray] = {}
        for arm in arms:
            means: list[tuple[np.ndarray, np.ndarray]] = []
            for name in names:
                mine = {severity: pairs[name, severity][arm, metric] for n, severity in pairs if n == name}
                both = {s: (pair.absolute(metric), pair.relative(metric)) for s, pair in mine.items()}
                place = {"arm": arm, "metric": metric, "corruption": name}
                for severity, pair in mine.items():
                    own = interval_of(pair.found[0], pair.found[1:])
                    found["scores"].append({**place, "severity": severity, "clean": float(pair.clean[0]),
                                            "score": own.mean, "low": own.low, "high": own.high,
                                            **_row(*both[severity])})  # fmt: skip
                means.append(_mean(list(both.values())))
                found["by_corruption"].append({**place, **_row(*means[-1])})
            total = _mean(means)
            whole[arm] = total[0]
            found["overall"].append({"arm": arm, "metric": metric, **_row(*total)})
        found["comparisons"] += _compared(whole, metric)
    return found


def _compared(whole: Mapping[str, np.ndarray], metric: str) -> list[dict[str, Any]]:
    """Loss of each baseline minus that of the pretrained arm."""
    rows = []
    for baseline in (arm for arm in whole if arm != "pretrained" and "pretrained" in whole):
        gap = whole[baseline] - whole["pretrained"]
        found = interval_of(gap[0], gap[1:])
        rows.append({"metric": metric, "a": "pretrained", "b": baseline, "spared": found.mean,
                     "low": found.low, "high": found.high})  # fmt: skip
    return rows


def _row(absolute: np.ndarray, relative: np.ndarray) -> dict[str, float]:
    a, b = (interval_of(values[0], values[1:]) for values in (absolute, relative))
    return {"loss": a.mean, "loss_low": a.low, "loss_high": a.high,
            "relative": b.mean, "relative_low": b.low, "relative_high": b.high}  # fmt: skip


def _mean(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of (absolute, relative) losses draw by draw."""
    return np.mean([a for a, _ in rows], axis=0), np.mean([r for _, r in rows], axis=0)
