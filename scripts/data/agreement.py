"""`medloom data agreement`: how far the annotators of a collection, or of shards, agree: a page and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...data.annotations.survey import Survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "collection", help="YAML of a collection (or the name of a shipped one), or a folder of shards"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and agreement.json")
    parser.add_argument(
        "--root", type=Path, help="folder that holds the datasets (overrides `root` in the YAML)"
    )
    parser.add_argument(
        "--every-mask", action="store_true", help="check masks and shapes of images of one annotator too"
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N", help="compare masks of at most N images of each dataset"
    )
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        default=1.0,
        help="tolerance of NSD (default: 1; pixels without spacing)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Survey, write the page and the JSON, print the main figures; 1 when annotations do not fit."""
    from ...data.annotations.agreement_page import page
    from ...data.annotations.agreement_report import report
    from ...data.atomic import write_json, write_text
    from ...data.errors import CollectionError
    from ...data.shards.manifest import MANIFEST
    from ..console import print_table, say

    of_shards = (Path(arguments.collection) / MANIFEST).is_file()
    surveys, draw, name = (_shards if of_shards else _collection)(arguments)
    if not surveys:
        raise CollectionError(
            f"{arguments.collection}: no image has two annotators; give the table's column of annotators "
            "(see docs/annotations.md), or --every-mask to check masks alone"
        )
    reports = [report(survey) for survey in surveys]
    pictures = draw(reports)
    note = (
        "From the metadata of shards: Dice of masks as measured when they were built."
        if of_shards
        else f"From the collection itself; NSD at {arguments.tolerance_mm:g} mm (pixels without spacing)."
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "agreement.json", {"collection": name, "datasets": reports})
    write_text(
        arguments.out / "index.html", page(f"Agreement of annotators: {name}", reports, pictures, note)
    )
    print_table(_rows(reports))
    faults = sum(len(one["faults"]) for one in reports)
    if faults:
        say(f"{faults} images have annotations that do not fit; reasons above and on the page")
    say(f"written: {arguments.out / 'index.html'}, agreement.json")
    return 1 if faults else 0


def compare(
    a: np.ndarray,
    b: np.ndarray,
    spacing: Sequence[float] | None,
    structures: dict[int, str],
    *,
    tolerance_mm: float,
) -> dict[str, dict[str, float]]:
    """Dice, NSD, HD95 and ASSD of two label maps by structure; what neither marked is left out."""
    from ...finetune.metrics.cases import DISTANCES, segmentation_case

    rows = segmentation_case(a, b, spacing, structures, tolerance_mm, metrics=("dice", "nsd", "hd95", "assd"))
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.status == "ok" or (row.status == "replaced" and row.metric not in DISTANCES):
            found.setdefault(row.structure, {})[row.metric] = row.value
    return found


def _collection(arguments: argparse.Namespace) -> tuple[list[Survey], Any, str]:
    """Surveys of a collection, what draws its cases, and its name."""
    from ...data.annotations.survey import survey_collection
    from ...data.collection import Collection
    from ...data.config import find_config
    from ..console import progress_bar

    collection = Collection.load(find_config("collections", arguments.collection), root=arguments.root)
    with progress_bar() as progress:
        surveys, records = survey_collection(
            collection, partial(compare, tolerance_mm=arguments.tolerance_mm), limit=arguments.images,
            every_mask=arguments.every_mask, workers=arguments.workers, progress=progress,
        )  # fmt: skip

    def draw(reports: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        from ...data.annotations.agreement_pictures import picture

        found = {}
        for report in reports:
            numbers = {one["key"]: number for number, one in enumerate(report["annotators"])}
            for row in report["worst"]:
                source, record = records[row["key"]]
                found[row["key"]] = picture(source, record, collection.salt, numbers, row["what"])
        return found

    return surveys, draw, collection.name


def _shards(arguments: argparse.Namespace) -> tuple[list[Survey], Any, str]:
    """As `_collection`, of shards, which hold no annotator's own mask to draw."""
    from ...data.annotations.survey import survey_shards
    from ...data.shards.reader import Shards
    from ..console import progress_bar

    shards = Shards.open(arguments.collection)
    with progress_bar() as progress:
        return survey_shards(shards, progress), lambda reports: {}, shards.manifest.name


def _rows(reports: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """One row a label, a structure and a kind of mark."""
    rows: list[dict[str, object]] = []

    def add(dataset: str, what: str, figure: str, value: object, low: Any, high: Any, cases: int) -> None:
        interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        rows.append({"dataset": dataset, "what": what, "figure": figure, "value": value, "95 %": interval,
                     "images": cases})  # fmt: skip

    for report in reports:
        name = report["dataset"]
        for entry in report["labels"]:
            for one in entry["coefficients"]:
                if one["name"].startswith("Kripp") or one["name"] == "ICC(2,1)":
                    add(
                        name, entry["label"], one["name"], one["value"], one["low"], one["high"], one["cases"]
                    )
        for row in report["masks"]:
            if row["pair"] is None:
                add(name, row["structure"], "Dice", row["dice"], row["low"], row["high"], row["cases"])
        for row in report["marks"]:
            figure, value = (
                ("F1", row["f1"]) if row["kind"] == "box" else (f"distance, {row['unit']}", row["mean"])
            )
            add(name, row["label"], figure, value, None, None, row["pairs"])
        if not any(row["dataset"] == name for row in rows):
            add(
                name,
                "(masks checked)",
                "fit",
                report["checked"] - len(report["faults"]),
                None,
                None,
                report["checked"],
            )
    return rows
