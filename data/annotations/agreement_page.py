"""The page of `medloom data agreement`: one HTML file, pictures inside, no script, nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .agreement_pictures import colour_of
from .icc import NAMES

MOST_PAIRS = 40  # rows of pairs shown; agreement.json has all

_NOTES = {
    "single": "nominal",
    "multi-label": "one name of several: given or not",
    "ordinal": "ordered: weighted kappas count how far two readings lie apart",
    "value": "a number: intraclass correlation, and limits of agreement (mean difference ± 1.96 SD)",
}


def page(
    title: str, reports: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray], note: str
) -> str:
    """HTML of some datasets' reports (see agreement_report.py).

    Args:
        pictures: key of a case -> [H, W, 3] uint8.
        note: where the figures are from, in one sentence.
    """
    style = Path(__file__).with_name("agreement.css").read_text(encoding="utf-8")
    body = "".join(_dataset(report, pictures) for report in reports)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style><main><h1>{escape(title)}</h1><p>{escape(note)}</p>{body}"
        "<footer>1 is perfect agreement, 0 that of chance. Intervals: 95 %, by drawing images with "
        "replacement (1,000 draws), of ICC by the F distribution. A dash: not defined, because all readings "
        "are the same or too few. Annotators and images are named by letters and salted keys."
        "</footer></main></html>\n"
    )


def _dataset(report: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    who = "".join(
        f'<li><span style="background:{colour_of(number)}"></span>{escape(one["name"])} '
        f"<small>{one['cases']} images · {escape(one['key'][:8])}</small></li>"
        for number, one in enumerate(report["annotators"])
    )
    head = (
        f"<section><h2>{escape(report['dataset'])}</h2><p>{report['cases']:,} of {report['images']:,} images "
        f"were read by several annotators.</p><ul class=who>{who}</ul>"
    )
    parts = [_label(entry) for entry in report["labels"]]
    parts += [_masks(report["masks"]), _marks(report["marks"]), _worst(report["worst"], pictures)]
    return head + "".join(parts) + _faults(report) + "</section>"


def _label(entry: Mapping[str, Any]) -> str:
    said = "" if entry["declared"] else " (not declared: taken as single)"
    unit = f", {entry['unit']}" if entry["unit"] else ""
    values = f" Values: {', '.join(map(str, entry['values'][:12]))}." if entry["values"] else ""
    rows = [
        [one["name"] + (f" <small>{NAMES[one['name']]}</small>" if one["name"] in NAMES else ""),
         _number(one["value"], shade=True), _range(one["low"], one["high"]), str(one["cases"])]
        for one in entry["coefficients"]
    ]  # fmt: skip
    names = [
        name for name in (entry["pairs"][0] if entry["pairs"] else {}) if name not in ("a", "b", "cases")
    ]
    shaded = entry["kind"] != "value"
    pairs = [
        [f"{row['a']} – {row['b']}", *(_number(row[name], shade=shaded) for name in names), str(row["cases"])]
        for row in entry["pairs"]
    ]
    note = f"{entry['kind']}{unit}{said}: {_NOTES[entry['kind']]}.{values}"
    return (
        f"<h3>{escape(entry['label'])}</h3><p class=note>{escape(note)}</p>"
        + _table(["coefficient", "value", "95 %", "images"], rows)
        + _long(["pair", *names, "images"], pairs)
    )  # fmt: skip


def _masks(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    metrics = [name for name in ("nsd", "hd95", "assd") if any(name in row for row in rows)]
    titles = {"nsd": "NSD", "hd95": "HD95", "assd": "ASSD"}

    def line(row: Mapping[str, Any], first: str) -> list[str]:
        cells = [_number(row.get(name), shade=name == "nsd") + (f" {row['unit']}" if name != "nsd" and
                 row.get(name) is not None else "") for name in metrics]  # fmt: skip
        return [first, _number(row.get("dice"), shade=True), _range(row["low"], row["high"]), *cells,
                str(row["cases"])]  # fmt: skip

    head = ["structure", "Dice", "95 %", *(titles[name] for name in metrics), "images"]
    overall = [line(row, escape(row["structure"])) for row in rows if row["pair"] is None]
    pairs = [
        line(row, f"{escape(row['structure'])}: {' – '.join(row['pair'])}") for row in rows if row["pair"]
    ]
    return (
        "<h3>Masks</h3><p class=note>Means of Dice and NSD over images and pairs of annotators; where one of "
        "the two left a structure out both are 0. Medians of the distances where both marked it.</p>"
        + _table(head, overall) + _long(head, pairs)
    )  # fmt: skip


def _marks(rows: Sequence[Mapping[str, Any]]) -> str:
    points = [
        [
            escape(r["label"]),
            *(f"{_number(r[name])} {r['unit']}" for name in ("mean", "median", "p95")),
            str(r["pairs"]),
        ]
        for r in rows
        if r["kind"] == "point"
    ]
    boxes = [
        [escape(r["label"]), _number(r["f1"], shade=True), _number(r["iou"], shade=True), str(r["pairs"])]
        for r in rows
        if r["kind"] == "box"
    ]
    text = ""
    if points:
        text += "<h3>Landmarks</h3>" + _table(
            ["landmark", "mean distance", "median", "95th percentile", "pairs"], points
        )
    if boxes:
        text += (
            "<h3>Boxes</h3><p class=note>F1: boxes that another annotator set too, with an IoU of at least "
            "0.5; IoU of those.</p>" + _table(["label", "F1", "IoU", "pairs"], boxes)
        )
    return text


def _worst(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        text = f"{escape(row['what'])}: {_number(row['value'])} <small>{escape(row['key'])}</small>"
        image = f'<img alt="" src="{_data_uri(pictures[row["key"]])}">' if row["key"] in pictures else ""
        cells.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return (
        "<h3>Where they differ most</h3><p class=note>By the least Dice of two annotators (boxes: F1). "
        "Colours as above; of volumes the slice with the largest difference.</p><div class=worst>"
        + "".join(cells)
        + "</div>"
    )


def _faults(report: Mapping[str, Any]) -> str:
    if not report["checked"]:
        return ""
    checked = f"Images with masks or shapes that were read: {report['checked']:,}"
    if not report["faults"]:
        return f"<h3>Fit</h3><p>{checked}. Every annotation fits its image.</p>"
    rows = [[f"<code>{escape(one['key'])}</code>", escape(one["reason"])] for one in report["faults"]]
    return (
        f"<h3>Annotations that do not fit their image</h3><p>{checked}; that do not fit: {len(rows):,}.</p>"
        + _table(["image", "why"], rows)
    )  # fmt: skip


def _long(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    more = (
        f" (first {MOST_PAIRS} of {len(rows):,}; all are in agreement.json)" if len(rows) > MOST_PAIRS else ""
    )
    opened = " open" if len(rows) <= 6 else ""
    return f"<details{opened}><summary>by pair{more}</summary>{_table(head, rows[:MOST_PAIRS])}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"


def _number(value: float | None, *, shade: bool = False) -> str:
    """A figure; `shade` draws a bar from 0 to 1 behind it."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if not shade else f"{value:.2f}"
    return f'<span class=bar style="--share:{max(0.0, min(1.0, value)):.3f}">{text}</span>' if shade else text


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _data_uri(pixels: np.ndarray) -> str:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
