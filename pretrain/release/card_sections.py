"""The sections of a model card that hold tables: input, data, licences, scores; a string of Markdown each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..artefact import generations
from ..contract import crops_of

MISSING = "Not on record."


def input_contract(record: Mapping[str, Any]) -> str:
    """Normalisation, sizes and modalities."""
    contract = record.get("input") or {}
    if not contract:
        return MISSING + " Without an input contract the scale of intensities is a guess."
    crops = crops_of(contract)
    sizes = " and ".join("×".join(map(str, crop)) for crop in crops)
    said = (
        f"{f'Crops of {sizes} pixels' if crops else 'No size of crops on record'}, "
        f"{_channels(contract.get('channels'))}, intensities by rule "
        f"`{contract.get('rule')}`: `(clip(x, low, high) - mean) / std` with statistics of the whole image."
    )
    if any(len(crop) == 3 for crop in crops):
        said += " Volumes are D×H×W, at the spacings of the table."
    rows = []
    for name, facts in (contract.get("modalities") or {}).items():
        spacing = facts.get("spacing_mm")
        seen = f"{_by(spacing['p5'])} … {_by(spacing['p95'])}" if spacing else ""
        rules = ", ".join(f"{rule} {100 * share:.0f} %" for rule, share in facts.get("rules", {}).items())
        rows.append([name, _number(facts.get("images")), rules, seen])
    return said + "\n\n" + table(["modality", "images", "normalised as", "spacing in mm, 5 to 95 %"], rows)


def data(record: Mapping[str, Any]) -> str:
    """Where the weights come from, ancestors included."""
    if not record.get("training"):
        return MISSING
    said = []
    every = [one.get("training") for one in generations(record)]
    for depth, one in enumerate(training for training in every if training):
        lead = "Trained on" if depth == 0 else "Before that, the weights it started from were trained on"
        name = f"collection `{one.get('collection')}`" if one.get("collection") else "data"
        rows = [
            [s["dataset"], _number(s.get("count")), ", ".join(s.get("modalities") or {}),
             s.get("licence") or "unknown"]
            for s in one.get("sources") or []
        ]  # fmt: skip
        manifest = f", manifest `{str(one['manifest'])[:16]}`" if one.get("manifest") else ""
        length = [f"{_number(one.get(key))} {key}" for key in ("steps", "samples") if one.get(key)]
        length += [f"seed {n} ({what})" for what, n in sorted((one.get("seeds") or {}).items())]
        said.append(
            f"{lead} {name}{manifest}{': ' if length else ''}{', '.join(length)}."
            + (" These data sets are known, others are not." if one.get("complete") is False else "")
            + ("\n\n" + table(["dataset", "images", "modalities", "licence"], rows) if rows else "")
        )
        if one.get("init_from") and not one.get("ancestor"):
            said.append(f"It started from {one['init_from']}, whose training data are not on record.")
    return "\n\n".join(said)


def licences(record: Mapping[str, Any]) -> str:
    """Terms of the mixture, and of the weights."""
    found, release = record.get("licences") or {}, record.get("release") or {}
    said = [f"The weights are published under: {release.get('licence') or 'no licence was stated'}."]
    if not found:
        return f"{said[0]}\n\nLicences of the data: {MISSING.lower()}"
    rows = [
        [part["dataset"], part["licence"], part["catalogued"] or "", part["restricts"], part["forbids"]]
        for part in found["parts"]
    ]
    if rows:
        said.append(f"Restrictions of the mixture: {found['together']}.")
        head = ["dataset", "licence", "in the catalogue", "restricts to", "stands against sharing"]
        said.append(table(head, rows))
    elsewhere = [sentence for part in found["parts"] for sentence in part["elsewhere"]]
    if elsewhere:
        said.append("The same cases under other terms elsewhere:\n\n" + _list(elsewhere))
    if found["share_alike"]:
        said.append(f"Share-alike: {', '.join(found['share_alike'])}; adapted copies carry the same licence.")
    if found["forbids"]:
        said.append(
            "**Released in spite of** "
            + "; ".join(found["forbids"])
            + f". The publisher's reason: {found['override'] or 'none was given'}."
        )
    said.append("Facts for planning, not legal advice.")
    return "\n\n".join(said)


def held_out(record: Mapping[str, Any]) -> str:
    """What it has not seen, and what is known of the overlap with the tasks it is scored on."""
    found = record.get("held_out")
    if found is None:
        return MISSING + " Scores on public data may be on training data."
    rules = [
        f"{rule.get('dataset')}" + (f" ({', '.join(rule['splits'])})" if rule.get("splits") else " (all)")
        for rule in found.get("rules") or []
    ]
    said = [f"Held out of training: {', '.join(rules)}." if rules else "Nothing was held out of training."]
    if rules:
        said.append(f"Compared by pixel content: {found.get('checked', 0):,} held-out images.")
    excluded = {k: v for k, v in (found.get("excluded") or {}).items() if v}
    if excluded:
        said.append(
            "Left out: " + ", ".join(f"{n:,} ({reason})" for reason, n in sorted(excluded.items())) + "."
        )
    unknown = found.get("not_checked") or []
    if unknown:
        more = f", and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        said.append(f"Could not be compared: {', '.join(map(str, unknown[:5]))}{more}.")
    statements = {
        row["task"]: f"{row['task']}: **{row['leakage']}**. {row['statement']}"
        for row in record.get("scores") or []
    }
    return " ".join(said) + ("\n\n" + _list(statements.values()) if statements else "")


def scores(record: Mapping[str, Any]) -> str:
    """Scores on held-out tasks with their baselines, then the probes of the run."""
    said = []
    rows = [
        [
            row["task"], row["protocol"], f"{100 * row['fraction']:g} %", row["metric"],
            interval(row["mean"], row["low"], row["high"]),
            *(interval(*(row[arm][k] for k in ("mean", "low", "high"))) if row.get(arm) else ""
              for arm in ("scratch", "random")),
            f"{row['cases']} / {row['subjects']}", row["leakage"],
        ]
        for row in record.get("scores") or []
    ]  # fmt: skip
    if rows:
        head = ["task", "protocol", "labels", "metric", "this encoder", "from scratch", "random features",
                "cases / patients", "leakage"]  # fmt: skip
        said.append(
            "Mean and 95 % interval (bootstrap over patients) on the test split:\n\n" + table(head, rows)
        )
    probes = record.get("probes") or {}
    rows = [
        [name.removeprefix("probe/"), f"{score['recorded']:.3f}",
         interval(score["recomputed"], score.get("low"), score.get("high")), _count(score)]
        for name, score in (probes.get("scores") or {}).items()
    ]  # fmt: skip
    if rows:
        said.append(
            f"Probes of frozen features on validation images after step {probes['step']:,} (`knn`, `linear`: "
            "balanced accuracy; `dense`: Dice), as the run recorded them and as the gate found them again "
            "from these files:\n\n" + table(["probe", "recorded", "again", "images / patients"], rows)
        )
    elif probes.get("not_checked"):
        said.append(f"Probe scores of the run were not computed again: {probes['not_checked']}.")
    if not record.get("scores"):
        said.append("No evaluation on held-out tasks is on record: how good it is elsewhere is not known.")
    return "\n\n".join(said)


def compute(record: Mapping[str, Any]) -> str:
    """Steps, hours, devices."""
    found, training = record.get("compute") or {}, record.get("training") or {}
    if not found:
        return MISSING
    hours = f"{found['hours']:.2f} hours" if found.get("hours") is not None else "hours not on record"
    devices = ", ".join(found.get("devices") or []) or "devices not on record"
    versions = ", ".join(f"{name} {version}" for name, version in (found.get("packages") or {}).items())
    ranks = f" on {found['ranks']} ranks" if (found.get("ranks") or 1) > 1 else ""
    return (
        f"{training.get('steps') or 0:,} optimiser steps, batch {training.get('batch_size')}{ranks}, {hours}"
        f", {devices}. {versions}."
    )


def limits(record: Mapping[str, Any]) -> str:
    """What it is not for."""
    contract = record.get("input") or {}
    seen = ", ".join(contract.get("modalities") or {}) or "unknown modalities"
    axes = "pictures and slices, not whole volumes" if record["ndim"] == 2 else "volumes, not single pictures"
    said = [
        "Research only. Not a medical device; nothing here was validated for decisions on patients.",
        f"It has seen {seen}. Other modalities, scanners, spacings and populations are extrapolation.",
        f"It takes {axes}." if not contract.get("crops") else "It takes the sizes of its input contract.",
        "How it serves groups of patients (age, sex, origin, hospital) was not examined.",
    ]
    small = sum(s.get("count") or 0 for s in (record.get("training") or {}).get("sources") or [])
    if 0 < small < 100_000:
        said.append(f"{small:,} training images are few: expect less than from encoders trained on millions.")
    return _list(said)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; columns that are empty in every row are left out."""
    if not rows:
        return ""
    kept = [i for i in range(len(head)) if any(str(row[i]) for row in rows)]
    lines = [[head[i] for i in kept], ["---"] * len(kept)]
    lines += [[str(row[i]).replace("|", "\\|").replace("\n", " ") for i in kept] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """`0.912 (0.880 to 0.940)`; without an interval the value alone."""
    if mean is None:
        return ""
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _count(score: Mapping[str, Any]) -> str:
    return f"{score['images']} / {score['subjects']}" if score.get("images") else ""


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)


def _by(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:.3g}" for number in numbers)


def _channels(count: int | None) -> str:
    return "channels not on record" if count is None else f"{count} channel{'s' * (count != 1)}"
