"""What a folder of shards holds, as a page to look through: modality x organ, volumes by slice, label maps.

`index.html` and a folder of pictures; opens from disk, asks no server. The size is bounded: samples are drawn
in turns, one of every cell of modality and organ and then the next, until the next one would pass the bound.

What goes in is what the shards hold: salted keys, no file name, no path, no subject. Values of labels are
shown where they are short; text that is burnt into pixels is not seen by any of this, and the page says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import TEMPORARY
from ..errors import ConfigError
from ..inspect.statistics import QUANTITIES, statistics
from ..shards.reader import SampleRef, Shards
from .bundle import bundle, to_json, write_page
from .frames import Look, View, histogram, picture_views, thumbnail_of, volume_views
from .survey import Cell, in_turn, survey

STYLES = ("base.css", "gallery.css")
SCRIPTS = ("base.js", "gallery-charts.js", "gallery-viewer.js", "gallery.js")
PICTURES = "pictures"
MARK = "made-by-medloom-gallery"  # a folder with this file may be replaced
READ = 2000  # samples of a source whose metadata makes its histograms
LONGEST = 40  # letters of a label's value
CANONICAL = "SAR"  # axes D, H, W to the head, the front and the right

Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Gallery:
    """What was made."""

    path: Path
    shown: int = 0
    cells: int = 0
    bytes: int = 0
    left_out: int = 0  # candidates that did not fit the bound


@dataclass(slots=True)
class _Sheet:
    """Pictures written so far, and their entries of the page."""

    folder: Path
    room: float  # bytes left
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: dict[str, Any], files: Mapping[str, bytes]) -> bool:
        """Write one sample, or nothing when it does not fit."""
        cost = sum(map(len, files.values())) + len(to_json(entry).encode()) + 1
        if cost > self.room:
            return False
        for name, data in files.items():
            (self.folder / name).write_bytes(data)  # the folder appears as a whole
        self.entries.append(entry)
        self.room -= cost
        return True


def write_gallery(
    shards: Shards,
    out: Path,
    *,
    per_cell: int = 12,
    size_mb: float = 64,
    look: Look | None = None,
    progress: Progress | None = None,
) -> Gallery:
    """Write the page and its pictures into the folder `out`, which appears whole or not at all.

    Args:
        per_cell: samples of one modality and organ, at most.
        size_mb: megabytes (1e6) of everything in `out`, at most.

    Raises:
        ConfigError: a bound that leaves no room, or an `out` that holds something else.
        ShardError: metadata or pictures cannot be read.
    """
    look = look or Look()
    out = Path(out)
    _check(out, per_cell, size_mb, look)
    cells = survey(shards, per_cell)
    report = statistics(shards.root, sample=READ)
    facts = _facts(shards, cells, report)
    room = size_mb * 1e6 - len(_page(facts | {"samples": []}).encode())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=out.parent) as temporary:
            sheet = _Sheet(Path(temporary) / "gallery" / PICTURES, room)
            sheet.folder.mkdir(parents=True)
            wanted = sum(len(cell.refs) for cell in cells)
            for number, (cell, ref) in enumerate(in_turn(cells)):
                if progress is not None:
                    progress(number, wanted, f"pictures | {cell.modality} {cell.organ}")
                if not sheet.add(*_sample(shards, ref, look)):
                    break
            if progress is not None:
                progress(wanted, wanted, "pictures | done")
            if not sheet.entries and wanted:
                raise ConfigError(f"--size-mb {size_mb:g}: too small for one sample; give more")
            return _finish(out, sheet, facts | {"samples": sheet.entries}, wanted)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def _check(out: Path, per_cell: int, size_mb: float, look: Look) -> None:
    """Refuse what cannot be meant."""
    if per_cell < 1:
        raise ConfigError(f"--per-cell {per_cell}: show at least one sample of each modality and organ")
    if not 1 <= look.slices <= 1000:
        raise ConfigError(f"--slices {look.slices}: from 1 to 1000 slices of a volume can be shown")
    if size_mb <= 0:
        raise ConfigError(f"--size-mb {size_mb:g}: give a number of megabytes above 0")
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} holds something else than a gallery; choose another --out or empty it")


def _finish(out: Path, sheet: _Sheet, data: dict[str, Any], wanted: int) -> Gallery:
    """Write the page beside its pictures and put the folder in the place of an older gallery."""
    made = sheet.folder.parent
    write_page(made, _page(data))
    (made / MARK).touch()
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    if out.exists():
        shutil.rmtree(out)
    made.rename(out)
    shown = len(sheet.entries)
    filled = {(entry["modality"], entry["organ"]) for entry in sheet.entries}
    return Gallery(out / "index.html", shown, len(filled), size, wanted - shown)


def _page(data: dict[str, Any]) -> str:
    words = {"title": data["name"], "kicker": "medloom gallery", "summary": data["summary"]}
    return bundle(
        f"{data['name']} · gallery",
        styles=STYLES,
        scripts=SCRIPTS,
        body="gallery.html",
        words=words,
        data=data,
    )


def _facts(shards: Shards, cells: list[Cell], report: dict[str, Any]) -> dict[str, Any]:
    """What the page says of all samples. Nothing of the folder's path."""
    manifest = shards.manifest
    datasets = len({source.dataset for source in manifest.sources})
    summary = f"{manifest.count:,} samples of {datasets:,} dataset{'' if datasets == 1 else 's'}"
    licences = {source.id: source.licence for source in manifest.sources}
    sources = [
        {"id": name, "licence": licences[name], "quantities": _curves(source["quantities"])}
        | {key: source[key] for key in ("samples", "read", "ndim", "subjects", "masks", "modality", "organ")}
        for name, source in report["sources"].items()
    ]
    return {
        "name": manifest.name,
        "summary": summary,
        "cells": [
            {"modality": cell.modality, "organ": cell.organ, "count": cell.count, "estimated": cell.estimated}
            for cell in cells
        ],
        "sources": sources,
        "quantities": {
            name: {"label": text, "axis": QUANTITIES[name][1], "edges": report["quantities"][name]["edges"]}
            for name, (text, _) in QUANTITIES.items()
        },
    }


def _curves(quantities: Mapping[str, Any]) -> dict[str, Any]:
    """Histogram, median and range of each quantity."""
    return {
        name: {
            "histogram": found["histogram"],
            "middle": found["p50"],
            "low": found["min"],
            "high": found["max"],
        }
        for name, found in quantities.items()
    }


def _sample(shards: Shards, ref: SampleRef, look: Look) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The entry of the page, and the files that it names."""
    meta = shards.meta(ref)
    key = str(meta["key"])
    draw = volume_views if int(meta["ndim"]) == 3 else picture_views
    files = {f"{key}.webp": thumbnail_of(shards, ref, meta, look)}
    views = []
    for view in draw(shards, ref, meta, look):
        image, mask = f"{key}-{view.plane}.webp", f"{key}-{view.plane}-mask.png"
        files[image] = view.image
        if view.mask is not None:
            files[mask] = view.mask
        views.append(_view(view, f"{PICTURES}/{image}", f"{PICTURES}/{mask}" if view.mask else None))
    entry = {
        "key": key,
        "thumbnail": f"{PICTURES}/{key}.webp",
        **{
            name: meta[name] for name in ("dataset", "modality", "organ", "licence", "ndim", "split", "dtype")
        },
        "shape": [int(n) for n in meta["shape"]],
        "spacing": [float(f"{mm:.4g}") for mm in meta["spacing"] or ()],
        "labels": _labels(meta["labels"]),
        "oriented": meta["orientation"] == CANONICAL,
        "classes": _classes(meta["mask"]),
        "shapes": _shapes(meta),
        "histogram": histogram(shards, ref, meta),
        "views": views,
    }
    return entry, files


def _view(view: View, image: str, mask: str | None) -> dict[str, Any]:
    return {
        "plane": view.plane, "image": image, "mask": mask, "size": list(view.size), "columns": view.columns,
        "places": view.places, "of": view.of, "best": view.best,
    }  # fmt: skip


def _labels(labels: Mapping[str, Any] | None) -> dict[str, str]:
    """Labels that are short; a long one may be a report."""
    texts = {name: _text(value) for name, value in sorted((labels or {}).items()) if value is not None}
    return {name: text for name, text in texts.items() if len(text) <= LONGEST}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _classes(mask: Mapping[str, Any] | None) -> list[list[Any]]:
    """[value, name] of the classes that are present."""
    if mask is None:
        return []
    names = mask.get("classes") or {}
    return [[int(value), str(names.get(str(value), value))[:LONGEST]] for value in mask["present"]]


def _shapes(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Boxes, landmarks and outlines of a picture, as shares of its height and width."""
    if int(meta["ndim"]) != 2:
        return []
    height, width = meta["shape"][1:]
    return [
        {"kind": shape["kind"], "label": str(shape["label"])[:LONGEST],
         "points": [[round(y / height, 5), round(x / width, 5)] for y, x in shape["points"]]}
        for shape in meta.get("shapes") or ()
    ]  # fmt: skip
