"""The goals that the data engine was designed for, each beside what this run measured."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Target:
    """One line: what, goal, measured (empty: not measured) and by how much it was met or missed."""

    what: str
    goal: str
    measured: str = ""
    verdict: str = "not measured"


def at_most(what: str, value: float | None, goal: float, unit: str) -> Target:
    """A value that should be small."""
    words = f"<= {goal:g} {unit}"
    if value is None:
        return Target(what, words)
    return Target(what, words, f"{value:.3g} {unit}", _verdict(value <= goal, value / goal))


def at_least(what: str, value: float | None, goal: float, unit: str) -> Target:
    """A value that should be large."""
    words = f">= {goal:g} {unit}"
    if value is None:
        return Target(what, words)
    return Target(what, words, f"{value:.4g} {unit}", _verdict(value >= goal, value / goal))


def holds(what: str, goal: str, found: str | None, *, met: bool) -> Target:
    """Something that is either so or not."""
    return Target(what, goal) if found is None else Target(what, goal, found, "met" if met else "missed")


def _verdict(met: bool, ratio: float) -> str:
    return f"{'met' if met else 'missed'}: {ratio:.2f} of the goal"


def targets(result: dict[str, Any]) -> list[Target]:
    """All lines, also those that this run did not measure."""
    return [*_crops(result), *_stored(result), *_pictures(result), *_order(result.get("properties", {}))]


def _crops(result: dict[str, Any]) -> list[Target]:
    ours = _cpu(result, "ct", "medloom")
    found = [
        at_most("CPU of a 96^3 CT crop, 2 workers, zstd", ours, 2.5, "ms"),
        at_most("the same, lz4", _cpu(result, "ct", "medloom-fast"), 2.0, "ms"),
    ]
    peers = (("nnssl", "nnssl style", 5.5), ("webdataset", "WebDataset whole", 25), ("nifti", ".nii.gz", 150))
    for name, words, goal in peers:
        theirs = _cpu(result, "ct", name)
        ratio = theirs / ours if ours and theirs else None
        found.append(at_least(f"times less CPU than {words}", ratio, goal, "x"))
    cold = result["cases"].get("ct", {}).get("peers", {}).get("medloom", {}).get("cold_bytes")
    found.append(at_most("disk bytes of a cold crop", None if cold is None else cold / 1e6, 2.0, "MB"))
    growth = result.get("properties", {}).get("growth", {})
    found.append(at_most("crop cost when the volume grows 8x", growth.get("medloom"), 1.05, "x"))
    return found


def _stored(result: dict[str, Any]) -> list[Target]:
    sizes = result.get("properties", {}).get("stored_real")
    share = 100 * (1 - sizes["shards"] / sizes["nifti"]) if sizes else None
    return [at_least("stored size below .nii.gz, real volumes", share, 20, "%")]


def _pictures(result: dict[str, Any]) -> list[Target]:
    deep = result.get("properties", {}).get("deep", {})
    share = deep["medloom_bytes"] / deep["png_bytes"] if deep else None
    start = result["cases"].get("pictures", {}).get("peers", {}).get("medloom", {})
    large = result.get("properties", {}).get("start_large", {})
    mixing = start.get("mixing") or {}
    count = large.get("samples", 10_000_000)
    full = mixing.get("distinct", 0) >= mixing.get("shards", 12) - 0.2
    return [
        at_least("224 crops of a 16-bit 2048^2 picture, a core", deep.get("medloom_per_s"), 3000, "/s"),
        at_most("its size against PNG", share, 1.0, "x"),
        at_most("overhead of a 2D sample, decode removed", _cpu(result, "overhead", "medloom"), 0.05, "ms"),
        holds(
            "distinct shards in a batch of 64 over 12 shards", "all",
            f"{mixing['distinct']:.1f} of {mixing['shards']:.0f}" if mixing else None, met=full,
        ),
        at_most("start to the first batch, small pictures", start.get("start_s"), 0.15, "s"),
        at_most(f"start to the first batch, {count:,} samples", large.get("seconds"), 2.0, "s"),
    ]  # fmt: skip


def _order(found: dict[str, Any]) -> list[Target]:
    resume, elastic, damage = found.get("resume"), found.get("elastic"), found.get("corruption")
    return [
        holds(
            "resume", "same ids and pixels",
            resume and f"{resume['equal']} of {resume['batches']} batches equal",
            met=bool(resume) and resume["equal"] == resume["batches"],
        ),
        at_most("state of the order in a checkpoint", resume and resume["state_bytes"], 200, "B"),
        at_most("start at step 10^7 against step 0", resume and resume["far_over_near"], 1.5, "x"),
        holds(
            "elastic resume: 8, 3 and 16 ranks", "identical global batches",
            elastic and f"{elastic['equal']} of {elastic['steps']} steps equal",
            met=bool(elastic) and elastic["equal"] == elastic["steps"],
        ),
        holds(
            "corruption", "every flip and truncation found",
            damage and f"{damage['found']} of {damage['injected']}, batches {damage['batches']}",
            met=bool(damage) and damage["found"] == damage["injected"] and damage["batches"] == "unchanged",
        ),
        Target("uneven shards x ranks: equal steps, no hang", "1,000 layouts", "", "left to the tests"),
    ]  # fmt: skip


def _cpu(result: dict[str, Any], case: str, peer: str) -> float | None:
    rounds = result["cases"].get(case, {}).get("peers", {}).get(peer, {}).get("rounds")
    return median(row["cpu_ms"] for row in rounds) if rounds else None
