"""`embed(encoder, images, out)`: pooled features of a folder of images, or of shards, as one parquet file.

Images are read one by one and encoded in batches of views, in float32, so that the device changes rounding
only. A file that cannot be used is listed beside the table and never ends the work; the same command goes on
where it was killed, and embeds only what is new or has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.atomic import csv_text, write_text
from ...data.errors import ConfigError
from ...data.ingest.ingest import reason_of
from ...data.normalise import RULE
from ...pretrain.contract import strangers
from ...pretrain.encoders.base import Encoder
from ...pretrain.weights import load_encoder
from ..features import weights_hash
from ..run import choose_device, public_name
from .images import Item, find_images
from .table import Row, Table
from .views import Fit

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
PART = 256  # images between two parts of the table: what a killed run loses at most


@dataclass(frozen=True, slots=True)
class Embedded:
    """What `embed` did."""

    table: Path
    rows: list[Row]
    items: list[Item]
    files: int  # in the table
    before: int  # of these, found done
    failures: Path | None  # CSV of the files that could not be used: file, reason
    failed: int


def embed(
    name: str,
    images: str | Path,
    out: Path,
    *,
    modality: str | None = None,
    exclude: Sequence[str] = (),
    views: int = 27,
    batch: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> Embedded:
    """Embed images.

    Args:
        name: of the encoder, see `load_encoder`.
        images: an image, a folder of images, or shards (path or URL).
        out: the parquet file; columns file, image, group, modality, dims, views, stamp, feature [E] float32.
            Its metadata holds encoder_sha256, and under `medloom` all that the features depend on.
        modality: of the images, where they do not say it.
        exclude: globs on paths below the folder; what matches is left out.
        views: windows or slices of a volume at most (views.py).
        batch: views that are encoded at once.

    Raises:
        CheckpointError: no such encoder.
        ConfigError: no image there; `out` holds other features, or is no .parquet file.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: the table is a .parquet file: give --out NAME.parquet")
    if views < 1 or batch < 1:
        raise ConfigError(f"views={views}, batch={batch}: give 1 or more")
    items = find_images(images, modality, exclude)
    encoder, report = load_encoder(name)
    contract = report.record.get("input") or {}
    fit = Fit.of(encoder, contract, views)
    table = Table(path, {
        "encoder": public_name(name), "encoder_sha256": report.record.get("sha256"),
        "weights": weights_hash(encoder), "rule": RULE, "views": views, "modality": modality,
        "sizes": {str(ndim): list(fit.sizes[ndim]) for ndim in sorted(fit.sizes)},
    }, encoder.embed_dim)  # fmt: skip
    todo = [item for item in items if not table.done(item.file, item.stamp)]
    work = _Work(encoder.to(choose_device(device)).eval(), fit, table, batch)
    work.run(todo, progress)
    rows = table.finish([item.file for item in items if item.file not in work.failures])
    for strange in strangers(contract, {row.modality for row in rows}, None):
        logger.warning("encoder: %s; expect less of it", strange)
    failures = _write_failures(path.with_suffix(".failures.csv"), work.failures)
    files = len({row.file for row in rows})
    return Embedded(path, rows, items, files, len(items) - len(todo), failures, len(work.failures))


@dataclass(slots=True)
class _Work:
    """The encoder, and the images on their way through it."""

    encoder: Encoder
    fit: Fit
    table: Table
    batch: int
    failures: dict[str, str] = field(default_factory=dict)  # file -> reason
    waiting: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)  # row, its views
    rows: list[Row] = field(default_factory=list)  # encoded, not yet on disk

    def run(self, todo: Sequence[Item], progress: Progress | None) -> None:
        """Read, encode and keep; rows go to disk only between files, so that a file is whole or not there."""
        for done, item in enumerate(todo, start=1):
            empty = True
            for facts, views in self._read(item):
                empty = False
                self._wait(facts, views)
            if empty and item.file not in self.failures:
                self._fail(item.file, "holds no image")
            if done == len(todo):
                self.encode()
            if not self.waiting and (done == len(todo) or len(self.rows) >= PART):
                self.table.add(self.rows)
                self.rows = []
            if progress:
                progress(done, len(todo), "embed")

    def _read(self, item: Item) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Images of an item and their views, up to one that cannot be used: its file fails.

        What is done with them raises where it is done: a fault of the encoder is not one of the file.
        """
        try:
            for count, (shards, ref) in enumerate(item.read()):
                meta = shards.meta(ref)
                views = self.fit.views(shards, ref)
                facts = {"file": item.file, "image": count, "group": item.group, "dims": int(meta["ndim"]),
                         "modality": str(meta["modality"]), "views": len(views),
                         "stamp": item.stamp}  # fmt: skip
                yield facts, views
        except Exception as error:
            self._fail(item.file, "not enough memory" if isinstance(error, MemoryError) else reason_of(error))

    def _wait(self, facts: dict[str, Any], views: Tensor) -> None:
        """Put an image in the queue; it is encoded when there are enough, or others of another shape."""
        if self.waiting and self.waiting[0][1].shape[1:] != views.shape[1:]:
            self.encode()
        self.waiting.append((facts, views))
        if sum(len(each) for _, each in self.waiting) >= self.batch:
            self.encode()

    def encode(self) -> None:
        """Encode what waits; an image's features are the mean over its views.

        Raises:
            ConfigError: not enough memory for a batch.
        """
        if not self.waiting:
            return
        group, self.waiting = self.waiting, []
        place = next(self.encoder.parameters()).device
        try:
            with torch.no_grad():
                parts = torch.cat([views for _, views in group]).split(self.batch)
                found = torch.cat([self.encoder.embed(part.to(place)).float().cpu() for part in parts])
        except (RuntimeError, MemoryError) as error:
            # torch has an error of its own for devices only
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise ConfigError(
                f"not enough memory to encode {self.batch} views at once: lower --batch-size"
            ) from error
        for (facts, _), features in zip(group, found.split([len(v) for _, v in group]), strict=True):
            feature = features.mean(dim=0).numpy()
            if not np.isfinite(feature).all():
                self._fail(facts["file"], "its features are not finite")
            elif facts["file"] not in self.failures:
                self.rows.append(Row(**facts, feature=feature))

    def _fail(self, file: str, reason: str) -> None:
        """Note that a file cannot be used, and forget its other images."""
        self.failures[file] = reason
        self.waiting = [one for one in self.waiting if one[0]["file"] != file]
        self.rows = [row for row in self.rows if row.file != file]


def _write_failures(path: Path, failures: dict[str, str]) -> Path | None:
    if not failures:
        path.unlink(missing_ok=True)
        return None
    rows = [{"file": file, "reason": reason} for file, reason in sorted(failures.items())]
    write_text(path, csv_text(rows, ["file", "reason"]))
    return path
