"""finetune/embedding: what a folder or shards become, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.embedding import draw_map, embed
from medloom.finetune.embedding.map import project
from medloom.finetune.embedding.run import _Work
from medloom.finetune.embedding.table import Row
from medloom.finetune.embedding.thumbnails import spread_out
from medloom.finetune.embedding.views import _places
from medloom.pretrain.weights import load_encoder
from medloom.scripts import cli
from PIL import Image


def write_picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 60, (40, 56)) + level
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures in two folders, and a file that is none."""
    for number in range(6):
        write_picture(tmp_path / "images" / ("a", "b")[number % 2] / f"{number}.png", 30 * number)
    (tmp_path / "images" / "b" / "broken.png").write_bytes(b"\x89PNG, and nothing else")
    return tmp_path / "images"


def columns(path: Path) -> dict[str, list[Any]]:
    return pq.read_table(path).to_pydict()


def test_pictures_get_the_features_that_fine_tuning_sees(
    workshop: Any, task_of: Any, pictures: Path, tmp_path: Path
) -> None:
    from medloom.data.ingest.ingest import content_hash
    from medloom.data.readers import read

    encoder, report = load_encoder(workshop.root / "encoder2d")
    task = task_of(pictures)
    with torch.no_grad():
        wanted = {
            case.meta["content_hash"]: encoder.eval()(task.whole(case)[None]).pooled[0].numpy()
            for case in task.data.cases[:6]
        }
    out = tmp_path / "features.parquet"
    done = embed(str(workshop.root / "encoder2d"), workshop.root / "pictures", out)
    assert (done.files, done.failed, len(done.rows)) == (48, 0, 48)
    found = columns(out)
    compared = 0
    for file, feature in zip(found["file"], found["feature"], strict=True):
        known = wanted.get(content_hash(read([workshop.root / "pictures" / file])[0].array))
        if known is not None:
            compared += 1
            assert np.abs(known - np.array(feature)).max() < 1e-5
    assert compared == 6
    assert set(found["dims"]) == {2} and set(found["views"]) == {1}
    metadata = pq.read_schema(out).metadata
    assert metadata[b"encoder_sha256"].decode() == report.record["sha256"]
    said = json.loads(metadata[b"medloom"])
    assert said["sizes"] == {"2": [32, 32]} and str(workshop.root) not in str(metadata)


def test_a_bad_file_is_listed_and_ends_nothing(folder: Path, workshop: Any, tmp_path: Path) -> None:
    out, name = tmp_path / "f.parquet", str(workshop.root / "encoder2d")
    assert cli.main(["embed", name, str(folder), "--out", str(out)]) == 1
    found = columns(out)
    assert found["file"] == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
    assert found["group"] == ["a"] * 3 + ["b"] * 3
    with (tmp_path / "f.failures.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["b/broken.png"]
    (folder / "b" / "broken.png").unlink()
    assert cli.main(["embed", name, str(folder), "--out", str(out)]) == 0
    assert not (tmp_path / "f.failures.csv").exists()


def test_only_what_is_new_or_changed_is_embedded_again(folder: Path, workshop: Any, tmp_path: Path) -> None:
    out, name = tmp_path / "f.parquet", str(workshop.root / "encoder2d")
    embed(name, folder, out)
    before = columns(out)
    write_picture(folder / "a" / "0.png", 200)
    write_picture(folder / "c" / "9.png", 90)
    (folder / "a" / "2.png").unlink()
    done = embed(name, folder, out)
    assert done.before == 4
    after = columns(out)
    assert after["file"] == ["a/0.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png", "c/9.png"]
    changed = [after["feature"][after["file"].index(f)] != before["feature"][before["file"].index(f)]
               for f in ("a/0.png", "a/4.png", "b/5.png")]  # fmt: skip
    assert changed == [True, False, False]


def test_a_killed_run_goes_on(
    folder: Path, workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, name = tmp_path / "f.parquet", str(workshop.root / "encoder2d")
    whole = embed(name, folder, tmp_path / "whole.parquet", batch=2).rows
    monkeypatch.setattr("medloom.finetune.embedding.run.PART", 2)
    encode, calls = _Work.encode, [0]

    def killed(self: _Work) -> None:
        calls[0] += bool(self.waiting)
        if calls[0] == 3:
            raise KeyboardInterrupt
        encode(self)

    monkeypatch.setattr(_Work, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(name, folder, out, batch=2)
    assert not out.exists()
    monkeypatch.setattr(_Work, "encode", encode)
    done = embed(name, folder, out, batch=2)
    assert done.before == 4
    assert [row.file for row in done.rows] == [row.file for row in whole]
    assert all(np.array_equal(a.feature, b.feature) for a, b in zip(done.rows, whole, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir() if "parts" in path.name) == []


def test_other_features_are_refused(folder: Path, workshop: Any, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    embed(str(workshop.root / "encoder2d"), folder, out)
    with pytest.raises(ConfigError, match="another encoder"):
        embed(f"random:{workshop.root / 'encoder2d'}", folder, out)
    with pytest.raises(ConfigError, match=r"\.parquet"):
        embed(str(workshop.root / "encoder2d"), folder, tmp_path / "f.csv")
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(ConfigError, match="not a readable table"):
        embed(str(workshop.root / "encoder2d"), folder, tmp_path / "bad.parquet")


def test_the_same_weights_under_another_name_go_on(folder: Path, workshop: Any, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    embed(str(workshop.root / "encoder2d"), folder, out)
    shutil.copytree(workshop.root / "encoder2d", tmp_path / "moved")
    assert embed(str(tmp_path / "moved"), folder, out).before == 6


@pytest.mark.parametrize("batch", [2, 32])
def test_a_fault_of_the_encoder_is_not_one_of_a_file(
    folder: Path, workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    def full(self: Any, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(type(load_encoder(workshop.root / "encoder2d")[0]), "embed", full)
    with pytest.raises(ConfigError, match=f"encode {batch} views at once: lower --batch-size"):
        embed(str(workshop.root / "encoder2d"), folder, tmp_path / "f.parquet", batch=batch)
    assert not (tmp_path / "f.failures.csv").exists()


def test_volumes_are_the_mean_over_windows(workshop: Any, tmp_path: Path) -> None:
    files = workshop.root / "volumes" / "patient-00-image.nii.gz"
    done = embed(str(workshop.root / "encoder3d"), files, tmp_path / "f.parquet", modality="mri")
    (row,) = done.rows
    assert (row.dims, row.views, row.file, row.modality) == (3, 1, files.name, "mri")
    slices = embed(str(workshop.root / "encoder2d"), files, tmp_path / "s.parquet", views=3, modality="mri")
    assert slices.rows[0].views == 3
    flat = tmp_path / "flat.png"
    write_picture(flat, 50)
    refused = embed(str(workshop.root / "encoder3d"), flat, tmp_path / "p.parquet")
    assert refused.failed == 1 and refused.failures is not None
    assert "takes volumes" in refused.failures.read_text()


def test_windows_cover_a_volume_as_far_as_they_may() -> None:
    assert _places([64, 70, 20], [32, 32, 32], 27) == [[0, 32], [0, 19, 38], [0]]
    few = _places([320, 320, 320], [32, 32, 32], 27)
    assert [len(axis) for axis in few] == [3, 3, 3] and few[0] == [0, 144, 288]
    assert _places([320, 32, 32], [32, 32, 32], 1) == [[144], [0], [0]]


def test_shards_are_embedded_by_key_and_dataset(
    workshop: Any, task_of: Any, pictures: Path, tmp_path: Path
) -> None:
    shards = task_of(pictures).data.shards
    name = str(workshop.root / "encoder2d")
    done = embed(name, shards.root, tmp_path / "s.parquet")
    files = embed(name, workshop.root / "pictures", tmp_path / "f.parquet")
    assert {row.group for row in done.rows} == {"pictures"}
    assert {row.file for row in done.rows} == {shards.meta(ref)["key"] for ref in shards.refs()}
    ours = np.sort(np.stack([row.feature for row in done.rows])[:, 0])
    assert np.allclose(ours, np.sort(np.stack([row.feature for row in files.rows])[:, 0]), atol=1e-5)
    with pytest.raises(ConfigError, match="state their modality"):
        embed(name, shards.root, tmp_path / "m.parquet", modality="ct")


def rows_around(middles: list[list[float]], count: int = 10) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        Row(f"{g}-{n}.png", 0, f"folder-{g}", "ct", 2, 1, "",
            (np.array(middle) + rng.normal(0, 0.1, len(middle))).astype(np.float32))
        for g, middle in enumerate(middles) for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_keeps_groups_apart(method: str) -> None:
    rows = rows_around([[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0]])
    places, names = project(rows, method)
    again, _ = project(rows, method)
    assert np.array_equal(places, again) and len(names) == 2
    middles = np.stack([places[10 * g : 10 * g + 10].mean(axis=0) for g in range(3)])
    away = np.linalg.norm(places[:, None] - middles[None], axis=2)
    assert (away.argmin(axis=1) == np.repeat(np.arange(3), 10)).all()


def test_the_map_is_a_picture(folder: Path, workshop: Any, tmp_path: Path) -> None:
    done = embed(str(workshop.root / "encoder2d"), folder, tmp_path / "f.parquet")
    sizes = {}
    for name, items in (("plain", []), ("with", done.items)):
        path = draw_map(tmp_path / f"{name}.png", done.rows, items=items)
        sizes[name] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert sizes["plain"].shape == sizes["with"].shape
    assert np.abs(sizes["plain"] - sizes["with"]).sum() > 0, "thumbnails must show"
    with pytest.raises(ConfigError, match="3 or more"):
        draw_map(tmp_path / "no.png", done.rows[:2])
    with pytest.raises(ConfigError, match="did you mean pca"):
        draw_map(tmp_path / "no.png", done.rows, method="pcaa")


def test_thumbnails_are_spread_over_the_map() -> None:
    places = np.array([[x, y] for x in np.linspace(0, 1, 40) for y in (0.0, 1.0)])
    chosen = spread_out(places)
    assert len(chosen) == 16 and len({tuple(places[i]) for i in chosen}) == 16
