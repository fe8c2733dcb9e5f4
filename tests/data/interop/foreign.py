"""Writers of other people's shards: tars with awkward members, LitData chunks, nnU-Net cases."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from medloom.data.ingest.build import BuildResult, build
from medloom.data.interop.imports import collection_of
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow

PATIENT = "Mustermann"


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of these members, in this order; names as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def picture(seed: int, kind: str = "PNG", shape: tuple[int, ...] = (24, 20, 3)) -> bytes:
    """Bytes of a random picture."""
    buffer = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    import gzip

    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes(), mtime=0)


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def run_import(*sources: Path | str, out: Path, workers: int = 1, **options: Any) -> BuildResult:
    """Import with a salt of the tests."""
    options = {"kind": None, "modality": "dermoscopy", **options}
    collection = collection_of([str(source) for source in sources], **options)
    object.__setattr__(collection, "salt_text", "a-salt-for-tests")
    return build(collection, out, workers=workers)


def samples(out: Path) -> list[Any]:
    """All samples of a folder of shards."""
    shards = Shards.open(out)
    return [shards.sample(ref) for ref in shards.refs()]


LITDATA_NUMPY = {
    name: code for code, name in enumerate(("int8", "int16", "int32", "int64", "uint8", "uint16"))
}


def litdata_leaf(kind: str, value: Any) -> bytes:
    """A leaf as the format defines it."""
    if kind == "numpy":
        return (
            struct.pack(f"<{2 + value.ndim}I", LITDATA_NUMPY[value.dtype.name], value.ndim, *value.shape)
            + value.tobytes()
        )
    if kind == "pil":
        return struct.pack("<3I", *value.size, len(value.mode)) + value.mode.encode() + value.tobytes()
    if kind in ("int", "float"):
        return struct.pack("<q" if kind == "int" else "<d", value)
    return value.encode() if kind == "str" else value


def litdata_chunk(items: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> bytes:
    """A chunk from its definition: items, offsets, then sizes and leaves of each item."""
    encoded = []
    for item in items:
        leaves = [litdata_leaf(kind, item[name]) for name, kind in formats.items()]
        encoded.append(struct.pack(f"<{len(leaves)}I", *map(len, leaves)) + b"".join(leaves))
    offsets = np.cumsum([4 * (len(items) + 2), *map(len, encoded)]).astype("<u4")
    return struct.pack("<I", len(items)) + offsets.tobytes() + b"".join(encoded)


def write_litdata(
    folder: Path, chunks: Sequence[Sequence[Mapping[str, Any]]], formats: Mapping[str, str], **config: Any
) -> Path:
    """An optimised folder without compression."""
    folder.mkdir(parents=True)
    rows = []
    for number, items in enumerate(chunks):
        name = f"chunk-0-{number}.bin"
        data = litdata_chunk(items, formats)
        (folder / name).write_bytes(data)
        rows.append({"filename": name, "chunk_size": len(items), "chunk_bytes": len(data), "dim": None})
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {
        "type": "builtins.dict",
        "context": json.dumps(list(formats)),
        "children_spec": [leaf] * len(formats),
    }
    known = {"data_format": list(formats.values()), "data_spec": json.dumps([1, tree]), "compression": None}
    (folder / "index.json").write_text(json.dumps({"chunks": rows, "config": known | config}))
    return folder


def contents(folder: Path) -> bytes:
    """All bytes below a folder, names included."""
    return b"".join(p.name.encode() + p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
