"""The probe scores of a run, computed again from the artefact: is what is released what scored?

The run probed the network that was being trained; the gate probes what a stranger would load. Between the two
lie the checkpoint, the teacher, the file and often another device and precision, so that a score may move: by
`TOLERANCE`, or by two validation images of the smallest class where that is more (bf16 against float32 moves
neighbours of a few images). Neighbours and the linear classifier also get a 95 % interval by bootstrap over
patients, which the run itself does not compute; label maps have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.config import structured
from ...data.errors import ConfigError, MedloomError
from ...data.shards.manifest import Manifest
from ..config import PretrainConfig
from ..contract import crops_of
from ..encoders import Encoder
from ..folder import CONFIG
from ..tracking import METRICS, read_rows

TOLERANCE = 0.02
DRAWS = 1000
PREFIX = "probe/"
SCORES = ("knn", "linear", "dense")


def recorded(run: Path, steps: int | None) -> dict[str, float]:
    """`probe/<score>_<dataset>` -> score after the last step of a run; empty where it was not probed."""
    rows = [row for row in read_rows(Path(run) / METRICS) if row["step"] == steps]
    kinds = tuple(f"{PREFIX}{score}_" for score in SCORES)
    return {k: float(v) for row in rows for k, v in row.items() if k.startswith(kinds) and v is not None}


def recompute(run: Path, encoder: Encoder, record: dict[str, Any]) -> dict[str, Any]:
    """The probes of a run on an encoder that was loaded from an artefact.

    Returns:
        {"step", "tolerance", "scores": {name: {recorded, recomputed, allowed, low, high, images, subjects}},
        "not_checked": why there are no scores, or ""}.
    """
    steps = (record.get("training") or {}).get("steps")
    before = recorded(run, steps)
    found: dict[str, Any] = {"step": steps, "tolerance": TOLERANCE, "scores": {}, "not_checked": ""}
    if not before:
        return found | {"not_checked": "the run has no probe scores at its last step"}
    try:
        config = structured(PretrainConfig, Path(run) / CONFIG)
        reason = _absent(config, record)
        again = {} if reason else _again(config, encoder, record)
    except (MedloomError, OSError) as error:
        return found | {"not_checked": f"the shards cannot be probed ({error})"}
    if reason:
        return found | {"not_checked": reason}
    nothing: dict[str, Any] = {"recomputed": None, "allowed": TOLERANCE}
    found["scores"] = {name: {"recorded": v} | again.get(name, nothing) for name, v in before.items()}
    return found


def wrong(found: dict[str, Any]) -> list[str]:
    """Sentences on scores that were not found again."""
    said = []
    for name, score in found["scores"].items():
        again = score["recomputed"]
        if again is None:
            said.append(f"{name} was {score['recorded']:.4f}, and cannot be computed again")
        elif not abs(again - score["recorded"]) <= score["allowed"]:
            said.append(
                f"{name} was {score['recorded']:.4f}, the artefact gives {again:.4f} "
                f"(at most {score['allowed']:.3f} apart)"
            )
    return said


def _absent(config: PretrainConfig, record: dict[str, Any]) -> str:
    """Why the probed shards are not those of the run; empty: they are."""
    place = config.probe.shards or config.data.shards
    if not place or not (Path(place) / "manifest.json").is_file():
        return "the probed shards are not at hand"
    if not config.probe.shards and Manifest.load(place).hash != record["training"].get("manifest"):
        return "the shards have another manifest than the run was trained on"
    return ""


def _again(config: PretrainConfig, encoder: Encoder, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from ..probe_scores import mean_dice
    from ..probes import Probe

    sizes = crops_of(record.get("input") or {}) or [part.crop for part in config.data.each()]
    if len(sizes) != len(config.data.each()):
        raise ConfigError("input.crops of encoder.json has other classes than data.classes of the run")
    probe = Probe(config.probe, config.data, sizes)
    device = next(encoder.parameters()).device
    encoder.eval()
    found: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for chosen in probe.sets["class"]:
            query, answers = probe.answers(chosen, *probe.encode(chosen, encoder, device))
            asked = np.flatnonzero(query.numpy())
            subjects = [str(probe.shards.meta(chosen.refs[i])["subject"]) for i in asked]
            for score, given in answers.items():
                correct = given.numpy() == chosen.labels[asked]
                found[f"{PREFIX}{score}_{chosen.name}"] = summary(correct, chosen.labels[asked], subjects)
        for chosen in probe.sets["mask"]:
            table = probe.dense(chosen, encoder, device)
            found[f"{PREFIX}dense_{chosen.name}"] = {"recomputed": mean_dice(table), "allowed": TOLERANCE}
    return found


def summary(correct: np.ndarray, labels: np.ndarray, subjects: list[str]) -> dict[str, Any]:
    """Balanced accuracy with its interval over patients.

    Args:
        correct: bool [n]; labels: int [n], the true classes; subjects: patient of each image.

    Returns:
        recomputed, allowed (difference from what was recorded), low, high (None with one patient), images,
        subjects.
    """
    classes, column = np.unique(labels, return_inverse=True)
    names, row = np.unique(subjects, return_inverse=True)
    hits = np.zeros((len(names), len(classes)))
    counts = np.zeros_like(hits)
    np.add.at(hits, (row, column), correct)
    np.add.at(counts, (row, column), 1)
    score = float((hits.sum(0) / counts.sum(0)).mean())
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    with np.errstate(invalid="ignore"):  # a draw without a class counts the others
        recalls = (drawn @ hits) / (drawn @ counts)
    low, high = np.nanpercentile(np.nanmean(recalls, axis=1), [2.5, 97.5]) if len(names) > 1 else (None,) * 2
    return {
        "recomputed": score,
        "allowed": max(TOLERANCE, 2 / (len(classes) * float(counts.sum(0).min()))),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "images": len(labels),
        "subjects": len(names),
    }
