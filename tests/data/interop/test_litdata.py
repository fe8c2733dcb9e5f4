"""LitData's chunks, from the definition of their format, and those that litdata itself writes."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from medloom.data.errors import CollectionError
from medloom.data.interop import litdata
from medloom.data.readers.jpeg import strip
from PIL import Image as Pillow

from .foreign import contents, picture, run_import, samples, write_litdata

FORMATS = {"image": "numpy", "mask": "numpy", "age": "int", "name": "str", "weight": "float"}


def items(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Volumes with masks and fields."""
    found = []
    for n in range(start, start + count):
        volume = np.random.default_rng(n).integers(-500, 500, (10, 20, 22)).astype(np.int16)
        mask = (volume > 0).astype(np.uint8)
        found.append({"image": volume, "mask": mask, "age": n, "name": f"Mustermann {n}", "weight": n / 2})
    return found


def check_items(out: Path, count: int) -> None:
    """What was imported is what `items(count)` holds."""
    found = sorted(samples(out), key=lambda sample: sample.meta["labels"]["age"])
    assert len(found) == count
    for sample, item in zip(found, items(count), strict=True):
        np.testing.assert_array_equal(sample.image[0], item["image"])
        np.testing.assert_array_equal(sample.mask, item["mask"])
        assert sample.meta["labels"] == {"age": item["age"], "weight": item["weight"]}
    assert b"Mustermann" not in contents(out)


KEEP = ["options.labels=[age,weight]", "options.subject=name"]


@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_are_imported(tmp_path: Path, workers: int) -> None:
    write_litdata(tmp_path / "lit", [items(3), items(2, 3)], FORMATS)
    result = run_import(
        tmp_path / "lit", out=tmp_path / "out", workers=workers, modality="mri", overrides=KEEP
    )
    assert not result.failures
    check_items(tmp_path / "out", 5)


@pytest.mark.parametrize("level", ["chunk", "batch", "sample"])
def test_compressed_chunks_are_imported(tmp_path: Path, level: str) -> None:
    folder = write_litdata(tmp_path / "lit", [items(5)], FORMATS, compression="zstd", compression_level=level)
    path = folder / "chunk-0-0.bin"
    data = path.read_bytes()
    offsets = np.frombuffer(data, "<u4", 6, 4)
    stored = [data[a:b] for a, b in itertools.pairwise(offsets)]
    if level == "chunk":
        path.unlink()
        path = path.with_name("chunk-0-0.zstd.bin")
        path.write_bytes(imagecodecs.zstd_encode(data))
        index = json.loads((folder / "index.json").read_text())
        index["chunks"][0]["filename"] = path.name
        (folder / "index.json").write_text(json.dumps(index))
    elif level == "sample":
        packed = [bytes(imagecodecs.zstd_encode(item)) for item in stored]
        places = np.cumsum([28, *map(len, packed)]).astype("<u4")
        path.write_bytes(data[:4] + places.tobytes() + b"".join(packed))
    else:  # frames of two items
        frames = [b"".join(stored[n : n + 2]) for n in (0, 2, 4)]
        packed = [bytes(imagecodecs.zstd_encode(frame)) for frame in frames]
        start = 24 + 4 * 6 + 24 * 3
        rows = b""
        for n, (frame, small) in enumerate(zip(frames, packed, strict=True)):
            at = start + sum(map(len, packed[:n]))
            rows += struct.pack("<IIQII", 2 * n, min(2, 5 - 2 * n), at, len(small), len(frame))
        head = struct.pack("<8sHHIII", b"LDFZ01\0\0", 1, 0, 5, 2, 3)
        path.write_bytes(head + (offsets - offsets[0]).astype("<u4").tobytes() + rows + b"".join(packed))
    run_import(folder, out=tmp_path / "out", modality="mri", overrides=KEEP)
    check_items(tmp_path / "out", 5)


def test_pictures_keep_their_bytes_and_pickles_stay_closed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 3), np.uint8)
    jpeg = picture(1, "JPEG")
    item = {
        "photo": jpeg,
        "raw": Pillow.fromarray(pixels),
        "png": picture(2),
        "evil": pickle.dumps(print),
    }
    formats = {"photo": "jpeg", "raw": "pil", "png": "bytes", "evil": "pickle"}
    write_litdata(tmp_path / "lit", [[item]], formats)
    result = run_import(tmp_path / "lit", out=tmp_path / "out")
    assert not result.failures
    found = samples(tmp_path / "out")
    assert len(found) == 3
    assert [sample.jpeg for sample in found if sample.jpeg] == [strip(jpeg, "")]
    assert any(np.array_equal(sample.image, pixels.transpose(2, 0, 1)) for sample in found)


@pytest.mark.parametrize("cut", [2, 30, 200, -1])
def test_a_damaged_chunk_is_listed(tmp_path: Path, cut: int) -> None:
    folder = write_litdata(tmp_path / "lit", [items(3), items(2, 3)], FORMATS)
    path = folder / "chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:cut])
    result = run_import(folder, out=tmp_path / "out", modality="mri")
    assert [failure.path for failure in result.failures] == ["chunk-0-0.bin"]
    assert "damaged, or no chunk of litdata" in result.failures[0].reason
    assert result.manifest.count == 2


def test_sizes_and_shapes_are_not_believed(tmp_path: Path) -> None:
    folder = write_litdata(tmp_path / "lit", [items(3)], FORMATS)
    path = folder / "chunk-0-0.bin"
    data = bytearray(path.read_bytes())
    first, second = np.frombuffer(bytes(data), "<u4", 2, 4)
    data[first : first + 4] = struct.pack("<I", 0xFFFFFFFF)  # size of the first item's image
    data[second + 20 + 8 : second + 20 + 12] = struct.pack("<I", 1 << 30)  # depth of the second item's
    path.write_bytes(data)
    result = run_import(folder, out=tmp_path / "out", modality="mri")
    assert result.manifest.count == 1
    assert sorted("cut short" in failure.reason for failure in result.failures) == [False, True]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"encryption": {"algorithm": "fernet"}}, "encrypted"),
        ({"item_loader": "ParquetLoader"}, "Parquet or Arrow"),
        ({"compression": "lz4"}, "compression 'lz4' is not read"),
        ({"data_format": ["numpy"]}, "not an index that litdata writes"),
    ],
)
def test_other_kinds_are_refused_as_a_whole(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = write_litdata(tmp_path / "lit", [items(1)], FORMATS, **config)
    with pytest.raises(CollectionError, match=words):
        run_import(folder, out=tmp_path / "out")


def test_a_chunk_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = write_litdata(tmp_path / "lit", [items(1)], FORMATS)
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("chunk-0-0.bin", "../chunk-0-0.bin"))
    with pytest.raises(CollectionError, match="is not in its folder"):
        run_import(folder, out=tmp_path / "out")


def test_nested_items_have_dotted_names(tmp_path: Path) -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    pair = {"type": "builtins.list", "context": None, "children_spec": [leaf, leaf]}
    spec = {"type": "builtins.dict", "context": '["a", "b"]', "children_spec": [leaf, pair]}
    assert list(litdata._names(spec, "")) == ["a", "b.0", "b.1"]


@pytest.mark.parametrize("level", ["", "chunk", "batch", "sample"])
def test_what_litdata_itself_writes(tmp_path: Path, level: str) -> None:
    pytest.importorskip("litdata", reason="litdata is not installed; tested with 0.2.76")
    from litdata.streaming import Cache

    options = {"compression": "zstd", "compression_level": level} if level else {}
    try:
        cache = Cache(str(tmp_path / "lit"), chunk_bytes=30_000, **options)
    except ValueError as error:
        pytest.skip(f"litdata: {error}")
    for number, item in enumerate(items(5)):
        cache[number] = item
    cache.done()
    cache.merge()
    run_import(tmp_path / "lit", out=tmp_path / "out", modality="mri", overrides=KEEP)
    check_items(tmp_path / "out", 5)
