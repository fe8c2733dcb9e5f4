"""data/pages/gallery.py, survey.py, frames.py: what is chosen, drawn, counted; bounds; nothing personal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data import open_shards
from medloom.data.collection import Collection
from medloom.data.errors import ConfigError
from medloom.data.ingest.build import build
from medloom.data.inspect.thumbnails import OUTLINES, window_of
from medloom.data.pages import survey as surveying
from medloom.data.pages.frames import Look, histogram, picture_views, volume_views
from medloom.data.pages.gallery import MARK, write_gallery
from medloom.data.pages.survey import survey
from medloom.data.shards.reader import Shards
from PIL import Image

NAME = "Mustermann"  # in every path and subject of the collection of conftest.py


@pytest.fixture
def shards(tmp_path: Path, make_collection: Callable[..., Path]) -> Shards:
    """Six CT volumes with masks, ten pictures."""
    source = tmp_path / NAME
    source.mkdir()
    build(Collection.load(make_collection(source)), tmp_path / "shards")
    return open_shards(tmp_path / "shards")


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    return json.loads(found[1])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_everything_the_page_names_is_in_the_folder_and_nothing_else(shards: Shards, tmp_path: Path) -> None:
    made = write_gallery(shards, tmp_path / "gallery")
    data = data_of(made.path)
    assert made.shown == len(data["samples"]) == 16
    assert {(cell["modality"], cell["organ"]): cell["count"] for cell in data["cells"]} == {
        ("ct", "chest"): 6, ("dermoscopy", "skin"): 10,
    }  # fmt: skip
    named = {sample["thumbnail"] for sample in data["samples"]}
    for sample in data["samples"]:
        for view in sample["views"]:
            named |= {view["image"], *([view["mask"]] if view["mask"] else [])}
    files = {
        str(path.relative_to(made.path.parent)) for path in made.path.parent.rglob("*") if path.is_file()
    }
    assert files == named | {"index.html", MARK}
    assert made.bytes == size_of(made.path.parent)


def test_no_byte_of_it_names_a_person_or_a_place(shards: Shards, tmp_path: Path) -> None:
    made = write_gallery(shards, tmp_path / "gallery")
    subjects = {str(shards.meta(ref)["subject"]) for ref in shards.refs()}
    assert len(subjects) > 3
    for path in made.path.parent.rglob("*"):
        assert NAME.lower() not in path.name.lower()
        if path.is_file():
            data = path.read_bytes()
            assert NAME.lower().encode() not in data.lower(), path.name
            assert str(tmp_path).encode() not in data, path.name
            assert not any(subject.encode() in data for subject in subjects), path.name


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_the_size_is_kept_and_every_kind_comes_before_a_second_of_one(
    shards: Shards, tmp_path: Path, share: float
) -> None:
    whole = write_gallery(shards, tmp_path / "whole")
    small = write_gallery(shards, tmp_path / "small", size_mb=whole.bytes * share / 1e6)
    assert size_of(small.path.parent) <= whole.bytes * share
    assert 0 < small.shown < whole.shown and small.left_out == whole.shown - small.shown
    kinds = [sample["modality"] for sample in data_of(small.path)["samples"]]
    assert set(kinds[:2]) == {"ct", "dermoscopy"} or len(kinds) == 1


def test_the_same_shards_give_the_same_bytes(shards: Shards, tmp_path: Path) -> None:
    first, second = (write_gallery(shards, tmp_path / name).path.parent for name in ("a", "b"))
    files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert files == {p.relative_to(second): p.read_bytes() for p in second.rglob("*") if p.is_file()}


def test_an_older_gallery_is_replaced_and_anything_else_is_left_alone(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    write_gallery(shards, out)
    write_gallery(shards, out, per_cell=1)
    assert len(data_of(out / "index.html")["samples"]) == 2
    assert len(list((out / "pictures").glob("*"))) == 2 + 6 + 1  # thumbnails; planes and masks; a picture
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else"):
        write_gallery(shards, thesis)
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("bounds", "words"),
    [({"per_cell": 0}, "--per-cell"), ({"size_mb": 0}, "--size-mb"), ({"size_mb": 0.02}, "too small"),
     ({"look": Look(slices=0)}, "--slices")],
)  # fmt: skip
def test_bounds_that_leave_nothing_are_refused(
    shards: Shards, tmp_path: Path, bounds: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_gallery(shards, tmp_path / "gallery", **bounds)
    assert not (tmp_path / "gallery").exists()


def test_a_mixed_source_is_counted_by_its_metadata_and_estimated_when_it_is_large(
    tmp_path: Path, odd_shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = odd_shards  # their manifest says nothing of modalities: all metadata is read
    found: dict[tuple[str, str], int] = {}
    for ref in shards.refs():
        meta = shards.meta(ref)
        place = (meta["modality"], meta["organ"])
        found[place] = found.get(place, 0) + 1
    cells = survey(shards, 2)
    assert {(cell.modality, cell.organ): cell.count for cell in cells} == found
    assert not any(cell.estimated for cell in cells)
    assert all(len(cell.refs) <= 2 and len(set(cell.refs)) == len(cell.refs) for cell in cells)
    with monkeypatch.context() as patched:
        patched.setattr(surveying, "READ", 1)
        assert all(cell.estimated for cell in survey(shards, 2))
    assert write_gallery(shards, tmp_path / "gallery").shown == len(shards)


def test_frames_are_the_planes_of_the_volume_the_radiologists_way_round(odd_shards: Shards) -> None:
    ref = odd_shards.find("vol-a")
    meta, image, labels = odd_shards.meta(ref), odd_shards.read(ref)[0], odd_shards.read_mask(ref)
    assert labels is not None
    low, high = (float(values[0]) for values in window_of(meta))
    views = volume_views(odd_shards, ref, meta, Look(slices=5, side=max(image.shape)))
    assert [view.plane for view in views] == ["axial", "coronal", "sagittal"]
    for axis, view in enumerate(views):
        assert view.of == image.shape[axis] and len(view.places) == 5 and view.places == sorted(view.places)
        height, width = view.size
        sheet, masks = pixels(view.image).astype(float)[..., 0], pixels(view.mask or b"")
        for number, place in enumerate(view.places):
            top, left = number // view.columns * height, number % view.columns * width
            box = np.s_[top : top + height, left : left + width]
            plane = np.take(image, place, axis=axis)[::-1, ::-1].astype(float)
            expected = np.clip((plane - low) / (high - low), 0, 1) * 255
            assert np.abs(sheet[box] - expected).mean() < 12, (view.plane, place)  # WebP
            assert np.array_equal(masks[box], np.take(labels, place, axis=axis)[::-1, ::-1])
        best = [np.count_nonzero(np.take(labels, place, axis=axis)) for place in view.places]
        assert best[view.best] == max(best)


def test_label_maps_are_see_through_and_in_the_colours_of_the_outlines(odd_shards: Shards) -> None:
    ref = odd_shards.find("pic-c")
    (view,) = picture_views(odd_shards, ref, odd_shards.meta(ref), Look(picture=320))
    colours = np.asarray(Image.open(io.BytesIO(view.mask or b"")).convert("RGBA"))
    assert colours.shape[:2] == view.size == (250, 320)
    shown = colours[..., 3] > 0
    assert 0.05 < shown.mean() < 0.95
    assert (colours[shown][:, :3] == OUTLINES[0]).all()
    labels = odd_shards.read_mask(ref)
    assert labels is not None and shown.mean() == pytest.approx((labels > 0).mean(), abs=0.02)


@pytest.mark.parametrize("key", ["vol-a", "pic-a", "pic-c"])
def test_histograms_count_every_voxel_of_the_stored_image(odd_shards: Shards, key: str) -> None:
    ref = odd_shards.find(key)
    image = odd_shards.read(ref).astype(np.float32)
    found = histogram(odd_shards, ref, odd_shards.meta(ref))
    low, high = found["edges"]
    channels = 3 if image.shape[0] == 3 and image.ndim == 3 else 1
    assert len(found["counts"]) == channels
    for channel, counts in zip(image, found["counts"], strict=False):
        assert sum(counts) == channel.size
        expected, _ = np.histogram(np.clip(channel, low, high), np.linspace(low, high, len(counts) + 1))
        # Edges are written with five digits: a voxel on an edge may fall to either side.
        assert np.abs(np.cumsum(expected) - np.cumsum(counts)).max() <= 0.01 * channel.size
    assert found["edges"][0] < found["window"][1] and found["window"][0] < found["edges"][1]
