"""The table of features: a parquet file, and the parts that a killed run goes on from.

Rows are kept in parts of a few hundred images beside the table while it is made; then the table replaces
them. What they depend on (weights, sizes, options) stands in the metadata, and other features are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.atomic import replacing, sweep
from ...data.errors import ConfigError

KEY = b"medloom"  # of the file's metadata: JSON


@dataclass(frozen=True, slots=True)
class Row:
    """One image."""

    file: str
    image: int  # number within the file; 0 where it holds one
    group: str
    modality: str
    dims: int  # spatial axes: 2 or 3
    views: int  # whose features were averaged
    stamp: str
    feature: np.ndarray  # float32 [E]


class Table:
    """Rows that are on disk, by file.

    Args:
        path: of the table.
        identity: what the features depend on; `encoder`, its name, may change.
        width: E.

    Raises:
        ConfigError: there is a table of other features, or something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], width: int) -> None:
        self.path = path
        self.parts = path.with_name(f".{path.name}.parts")
        said = json.dumps(dict(identity), sort_keys=True)
        self.schema = pa.schema(
            [("file", pa.string()), ("image", pa.int32()), ("group", pa.string()), ("modality", pa.string()),
             ("dims", pa.int8()), ("views", pa.int32()), ("stamp", pa.string()),
             ("feature", pa.list_(pa.float32(), width))],
            metadata={KEY: said.encode(), b"encoder_sha256": str(identity.get("encoder_sha256")).encode()},
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, list[Row]] = {}
        if path.is_file():
            self._take(path, strict=True)
        if self.parts.is_dir():
            sweep(self.parts)
            for part in sorted(self.parts.glob("part-*.parquet")):
                self._take(part, strict=False)

    def done(self, file: str, stamp: str) -> bool:
        """Whether a file has its rows, as it is now."""
        return file in self.rows and self.rows[file][0].stamp == stamp

    def add(self, rows: Sequence[Row]) -> None:
        """Keep the rows of whole files, on disk."""
        if not rows:
            return
        self.parts.mkdir(exist_ok=True)
        number = 1 + max((int(p.stem.split("-")[1]) for p in self.parts.glob("part-*.parquet")), default=0)
        self._write(self.parts / f"part-{number:06d}.parquet", rows)
        self._keep(rows)

    def finish(self, files: Sequence[str]) -> list[Row]:
        """Write the table of these files, in this order; returns its rows."""
        rows = [row for file in files for row in self.rows.get(file, [])]
        self._write(self.path, rows)
        shutil.rmtree(self.parts, ignore_errors=True)
        return rows

    def _keep(self, rows: Sequence[Row]) -> None:
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row.file, []).append(row)
        self.rows |= found

    def _write(self, path: Path, rows: Sequence[Row]) -> None:
        columns = {name: [getattr(row, name) for row in rows] for name in self.schema.names[:-1]}
        width = self.schema.field("feature").type.list_size
        flat = np.concatenate([row.feature for row in rows]) if rows else np.empty(0, np.float32)
        arrays = [pa.array(columns[name], self.schema.field(name).type) for name in self.schema.names[:-1]]
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width))
        with replacing(path) as temporary:
            pq.write_table(pa.Table.from_arrays(arrays, schema=self.schema), temporary)

    def _take(self, path: Path, strict: bool) -> None:
        """Rows of a table or a part; a part of other features is left aside."""
        try:
            found = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"{path}: not a readable table ({type(error).__name__}): choose another --out"
            ) from error
        if _compared(found.schema) != _compared(self.schema):
            if strict:
                raise ConfigError(
                    f"{path}: holds features of another encoder or with other options: choose another --out"
                )
            return
        self._keep(rows_of(found))


def _compared(schema: pa.Schema) -> dict[str, Any] | None:
    """What the features of a table depend on; the same weights may have another name. None: not said."""
    try:
        said = json.loads((schema.metadata or {})[KEY])
        return {key: value for key, value in said.items() if key != "encoder"}
    except (KeyError, ValueError, AttributeError):
        return None


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a table."""
    features = table["feature"].combine_chunks()
    flat = np.asarray(features.values if len(features) else [], np.float32)
    stacked = flat.reshape(len(table), -1) if len(table) else np.empty((0, 0), np.float32)
    plain = table.drop_columns(["feature"]).to_pylist()
    return [Row(**values, feature=feature) for values, feature in zip(plain, stacked, strict=True)]
