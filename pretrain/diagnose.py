"""What the curves of a run mean, and what usually mends them: `medloom diagnose RUN`.

Reads metrics.jsonl and config.yaml alone, so that it works on a run that is still going, was killed, or came
from another machine. Each check is one function of the rows that returns what it found; alarms are the rules
of `alarms`, replayed. A check stays silent where its rows are too few to tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.config import read_yaml
from ..data.errors import ConfigError
from .alarms import Watch, number
from .folder import CONFIG
from .readings import MOVING, READINGS, chance
from .tracking import METRICS, read_rows

ALARM, LOOK, GOOD, FACT = "alarm", "look", "good", "fact"
LEAST = 4  # values of a curve below which it says nothing
PROBED = 6  # values of a probe below which a fall says nothing
WAIT = 0.05  # share of the time for data above which the loader holds training up
OVERHEAD = 0.02  # share of the time for diagnostics and probes above which they are too frequent
FALL = 0.9  # share of its best below which a probe has fallen

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that the curves say."""

    level: str  # alarm, look (something to mend or to know), good, or fact
    about: str  # the curve
    says: str
    mend: str = ""


@dataclass(frozen=True)
class Run:
    """The rows and the configuration of a run folder."""

    name: str
    rows: list[Row]
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises ConfigError where there are no rows."""
        rows = read_rows(folder / METRICS)
        if not rows:
            raise ConfigError(
                f"{folder / METRICS} has no rows: name the folder that `medloom pretrain` wrote"
            )
        config = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        return cls(folder.name, rows, config)

    @property
    def steps(self) -> int:
        """Of the whole run; the last one seen where the configuration does not say."""
        return int(self.get("trainer.steps") or self.rows[-1]["step"])

    @property
    def warmup(self) -> float:
        """Steps of the warm-up."""
        return float(self.get("optim.warmup_fraction") or 0.0) * self.steps

    @property
    def method(self) -> str:
        """Name of the objective."""
        return str(self.get("objective.name") or "")

    def get(self, key: str) -> Any:
        """A dotted key of the configuration; None without it."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def curve(self, key: str, *, warm: bool = False) -> list[float]:
        """Finite values of a key in order; `warm`: only after the warm-up."""
        rows = [row for row in self.rows if not warm or row["step"] > self.warmup]
        return [value for value in (number(row, key) for row in rows) if math.isfinite(value)]

    def keys(self, prefix: str) -> list[str]:
        """Keys of any row that start with `prefix`, sorted."""
        return sorted({key for row in self.rows for key in row if key.startswith(prefix)})


def diagnose(folder: Path) -> list[Finding]:
    """All findings on a run, alarms first, then what to look at.

    Raises:
        ConfigError: not a run folder, or one without rows.
    """
    run = Run.read(folder)
    found = [finding for check in CHECKS for finding in check(run)]
    order = (ALARM, LOOK, FACT, GOOD)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _alarms(run: Run) -> Iterator[Finding]:
    seen = Watch(run.warmup).replay(run.rows)
    standing = {alarm.name: alarm for alarm in seen[-1]}
    for alarm in standing.values():
        yield Finding(ALARM, f"step {alarm.step}", alarm.means, alarm.mend)
    past = {alarm.name: alarm for fired in seen for alarm in fired if alarm.name not in standing}
    for alarm in past.values():
        yield Finding(LOOK, f"step {alarm.step}", f"{alarm.means}; it is over", alarm.mend)


def _progress(run: Run) -> Iterator[Finding]:
    last = run.rows[-1]["step"]
    samples = int(number(run.rows[-1], "samples")) if "samples" in run.rows[-1] else 0
    yield Finding(FACT, "progress", f"step {last:,} of {run.steps:,}, {samples:,} samples")
    if last <= run.warmup:
        yield Finding(
            LOOK, "progress", f"still in the warm-up of {run.warmup:.0f} steps: most curves say little"
        )


def _loss(run: Run) -> Iterator[Finding]:
    reading = READINGS.get(run.method)
    if reading:
        yield Finding(FACT, "loss", reading)
    curve = run.curve("loss", warm=True)
    if len(curve) < LEAST or run.method in MOVING:
        return
    quarter = max(1, len(curve) // 4)
    first, before, last = (
        statistics.median(part)
        for part in (curve[:quarter], curve[-2 * quarter : -quarter], curve[-quarter:])
    )
    noise = max(3 * statistics.pstdev(curve[-2 * quarter :]) / math.sqrt(quarter), 0.01 * abs(first))
    if last > max(first, before) + noise:
        yield Finding(
            LOOK,
            "loss",
            f"rises: {first:.4g} after the warm-up, {last:.4g} now",
            "a steeper weight decay can raise it; with falling probes lower optim.base_lr",
        )
    elif last < first - noise:
        yield Finding(GOOD, "loss", f"falls: {first:.4g} after the warm-up, {last:.4g} now")
    else:
        yield Finding(
            LOOK,
            "loss",
            f"does not fall: {first:.4g} after the warm-up, {last:.4g} now",
            "raise optim.base_lr, and look at the panels: are the views what they should be?",
        )
    level = chance(run.config)
    if level is not None and last > 0.98 * level[0]:
        yield Finding(
            LOOK,
            "loss",
            f"{last:.4g} is no better than {level[1]} ({level[0]:.4g})",
            "raise optim.base_lr or lengthen the run; make the task easier (weaker views)",
        )


def _rank(run: Run) -> Iterator[Finding]:
    for key, meaning in (
        ("probe/rankme", "of the probes' images"),
        ("rankme", "of one batch"),
        ("lidar", "of what tells images apart"),
    ):
        curve = run.curve(key, warm=True)
        if len(curve) < LEAST:
            continue
        best, last = max(_smooth(curve)), _smooth(curve)[-1]
        if last < 0.5 * best and last < best - 2:
            yield Finding(
                LOOK,
                key,
                f"effective rank {meaning} fell from {best:.1f} to {last:.1f}",
                "a slow collapse: lower optim.base_lr, raise the weight of the term that spreads "
                "features (KoLeo, SIGReg), and trust the probes before the loss",
            )
        else:
            yield Finding(GOOD, key, f"effective rank {meaning} is {last:.1f}, its best {best:.1f}")


def _probes(run: Run) -> Iterator[Finding]:
    fallen: dict[str, list[str]] = {}  # kind -> probes that fell
    counts: dict[str, int] = {}
    for key in run.keys("probe/"):
        curve = run.curve(key)
        if key == "probe/rankme" or not curve:
            continue
        kind = key.removeprefix("probe/").split("_")[0]
        counts[kind] = counts.get(kind, 0) + 1
        smooth = _smooth(curve)
        if len(curve) >= PROBED and smooth[-1] < FALL * max(smooth):
            fallen.setdefault(kind, []).append(key)
        text = f"{curve[-1]:.3f}"
        yield Finding(
            FACT, key, text + (f", first {curve[0]:.3f}, best {max(curve):.3f}" if len(curve) > 1 else "")
        )
    # Sets are small and jump: a kind of probe has fallen when more than half of its sets have.
    bad = [kind for kind, keys in fallen.items() if 2 * len(keys) > counts[kind]]
    if bad == ["dense"] and len(counts) > 1:
        yield Finding(
            LOOK,
            fallen["dense"][0],
            "dense features degrade while features of whole images do not",
            "known of long self-distillation: add gram anchoring (objective dinov2), stop earlier, or "
            "take an "
            "earlier checkpoint for segmentation",
        )
    for kind in bad if bad != ["dense"] or len(counts) == 1 else []:
        yield Finding(
            LOOK,
            fallen[kind][0],
            f"{len(fallen[kind])} of {counts[kind]} {kind} probes fell below 90 % of their best",
            "lower optim.base_lr or stop earlier, and take the checkpoint of the best",
        )


def _gradients(run: Run) -> Iterator[Finding]:
    clip, norms = run.get("optim.clip"), run.curve("grad_norm", warm=True)
    if len(norms) < LEAST:
        return
    middle = statistics.median(norms)
    if isinstance(clip, int | float) and middle > 3 * clip:
        yield Finding(
            LOOK,
            "grad_norm",
            f"its median {middle:.3g} is far above optim.clip={clip:g}: every step is clipped",
            f"harmless for AdamW, but the clip protects from nothing: set it to {2 * middle:.2g}",
        )
    for key in run.keys("grad_norm/"):
        curve = run.curve(key, warm=True)
        if len(curve) >= LEAST and statistics.median(curve[-LEAST:]) < 1e-4 * middle:
            yield Finding(
                LOOK,
                key,
                f"{statistics.median(curve[-LEAST:]):.1e}, a ten-thousandth of the whole: "
                "this part does not learn",
                "intended where it is frozen; otherwise look for a detached or unused path",
            )


def _time(run: Run) -> Iterator[Finding]:
    rows = run.rows[1:] or run.rows  # the first row holds compilation and the start of the workers
    recent = rows[-50:]

    def share(key: str) -> float:
        values = [v for v in (number(row, key) for row in recent) if math.isfinite(v)]
        return statistics.fmean(values) if values else math.nan

    if share("data_wait") > WAIT:
        yield Finding(
            LOOK,
            "data_wait",
            f"{share('data_wait'):.0%} of the time training waits for data",
            "raise data.workers, or data.crops_per_sample; put shards on a local disk",
        )
    if share("overhead") > OVERHEAD:
        yield Finding(
            LOOK,
            "overhead",
            f"{share('overhead'):.0%} of the time goes into diagnostics and probes",
            "raise probe.every_steps, panels.every_steps or trainer.log_every",
        )
    mfu = share("mfu")
    if math.isfinite(mfu):
        text = f"{mfu:.0%} of the device's measured peak, {share('tokens_per_s'):,.0f} tokens/s"
        low = mfu < 0.2 and not share("data_wait") > WAIT
        yield Finding(
            LOOK if low else FACT,
            "mfu",
            text,
            "a larger data.batch_size a GPU, trainer.compile=true, bf16; tiny networks stay low"
            if low
            else "",
        )


def _smooth(curve: Sequence[float]) -> list[float]:
    """Medians of three neighbours: one odd row is no trend."""
    return [statistics.median(curve[max(0, i - 1) : i + 2]) for i in range(len(curve))]


CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _alarms,
    _progress,
    _loss,
    _rank,
    _probes,
    _gradients,
    _time,
)
