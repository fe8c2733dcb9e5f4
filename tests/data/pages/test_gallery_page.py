"""The gallery in a browser: matrix, thumbnails, scrolling, overlays, keys, narrow screens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from medloom.data import open_shards
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.inspect.thumbnails import OUTLINES
from medloom.data.pages.gallery import write_gallery
from PIL import Image

SLICES = 24
DRAWN = "document.getElementById('canvas').dataset.drawn"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that grows brighter to the head, with a box of class 1 in it; and pictures of two kinds."""
    root = tmp_path_factory.mktemp("gallery")
    levels = np.linspace(10, 200, SLICES).astype(np.uint8)
    volume = np.broadcast_to(levels, (20, 30, SLICES)).copy()
    mask = np.zeros_like(volume)
    mask[5:15, 10:20, 8:16] = 1
    (root / "mr").mkdir()
    for name, array in (("a", volume), ("a_mask", mask)):
        nibabel.save(
            nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), root / "mr" / f"{name}.nii.gz"
        )
    (root / "mr" / "table.csv").write_text("path,mask\na.nii.gz,a_mask.nii.gz\n")
    sources: list[dict[str, Any]] = [
        {"dataset": "mr", "layout": "table", "root": "mr", "modality": "mri", "organ": "liver",
         "licence": "CC0-1.0", "mask_classes": {1: "lesion"},
         "options": {"file": "table.csv", "path": "path", "mask": "mask"}},
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    for modality, organ, count in (("dermoscopy", "skin", 3), ("fundus", "eye", 2)):
        folder = root / modality / "seen"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
        sources.append(
            {"dataset": modality, "layout": "image_folder", "root": modality, "modality": modality,
             "organ": organ, "licence": "CC0-1.0"}
        )  # fmt: skip
    (root / "c.yaml").write_text(yaml.safe_dump({"name": "tiny", "salt": "of tests", "sources": sources}))
    build(Collection.load(root / "c.yaml"), root / "shards")
    return write_gallery(open_shards(root / "shards"), root / "out").path


def canvas(browser: Any) -> np.ndarray:
    """What the canvas shows, [H, W, 3], from a screenshot."""
    browser.wait(DRAWN)
    browser.settle()
    box = browser.run(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        " return {x: b.x, y: b.y, width: b.width, height: b.height, scale: 1}; })()"
    )
    return np.asarray(browser.screenshot(box)).astype(float)


def brightness(browser: Any) -> float:
    """Of the left edge of the picture, where there is no label."""
    shown = canvas(browser)
    height, width = shown.shape[:2]
    return float(shown[height // 3 : height // 2, : width // 12].mean())


def slide(browser: Any, slider: str, value: int) -> None:
    found = f"document.getElementById('{slider}')"
    browser.run(f"{found}.value = {value}; {found}.dispatchEvent(new Event('input')); 0")


def open_volume(browser: Any, gallery: Path) -> None:
    browser.open(gallery, "#/?modality=mri")
    browser.run("document.querySelector('.tiles a').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('viewer').open")
    browser.wait(DRAWN)


def test_it_opens_from_disk_with_its_own_pictures_only(browser: Any, gallery: Path) -> None:
    browser.open(gallery)
    browser.wait("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert browser.complaints == []
    folder = gallery.parent.as_uri() + "/"
    assert all(url.startswith((folder, "data:")) for url in browser.requests)
    assert "6 samples of 3 datasets" in browser.text("header")


def test_the_matrix_counts_and_chooses(browser: Any, gallery: Path) -> None:
    browser.open(gallery)
    cells = browser.run(
        "[...document.querySelectorAll('#matrix td button')]"
        ".map(b => [b.dataset.modality, b.dataset.organ, b.textContent])"
    )
    assert sorted(cells) == [["dermoscopy", "skin", "3"], ["fundus", "eye", "2"], ["mri", "liver", "1"]]
    tiles = "document.querySelectorAll('.tiles a').length"
    assert browser.run(tiles) == 6
    browser.click('#matrix td [data-modality="dermoscopy"]')
    browser.wait(f"{tiles} === 3")
    assert browser.run("document.querySelector('#matrix td [aria-pressed=true]').dataset.organ") == "skin"
    browser.click("#everything")
    browser.wait(f"{tiles} === 6")
    browser.click('#matrix thead [data-organ="eye"]')
    browser.wait(f"{tiles} === 2")
    browser.run("history.back()")
    browser.wait(f"{tiles} === 6")


def test_slices_scroll_with_keys_wheel_and_slider(browser: Any, gallery: Path) -> None:
    open_volume(browser, gallery)
    browser.press("m")
    seen = {browser.text("#place"): brightness(browser)}
    for _ in range(6):
        browser.press("ArrowUp")
        seen[browser.text("#place")] = brightness(browser)
    assert len(seen) == 7
    assert list(seen.values()) == sorted(seen.values())  # brighter to the head
    assert max(seen.values()) - min(seen.values()) > 20
    place = browser.text("#place")
    middle = browser.run(
        "(() => { const b = document.getElementById('screen').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseWheel", x=middle[0], y=middle[1], deltaX=0, deltaY=80)
    browser.wait(f"document.getElementById('place').textContent !== {json.dumps(place)}")
    slide(browser, "slice", 0)
    assert browser.text("#place") == f"slice 1 of {SLICES}"
    browser.press("ArrowDown")
    assert browser.text("#place") == f"slice 1 of {SLICES}"


def test_planes_are_the_right_way_round_and_say_so(browser: Any, gallery: Path) -> None:
    open_volume(browser, gallery)
    browser.press("m")
    browser.press("2")
    assert browser.run("document.querySelector('#planes [aria-pressed=true]').textContent") == "coronal"
    shown = canvas(browser)
    assert shown[: len(shown) // 8].mean() > shown[-len(shown) // 8 :].mean() + 100  # the head is on top
    sides = browser.run("[...document.querySelectorAll('#screen .side')].map(s => s.textContent)")
    assert sides == ["R", "L", "S", "I"]
    height, width = shown.shape[:2]
    assert width / height == pytest.approx(20 / 24, rel=0.05)  # 20 mm to the right, 24 mm up
    browser.press("3")
    assert browser.text("#place").endswith("of 20")


def test_labels_are_drawn_over_the_image_and_can_be_taken_off(browser: Any, gallery: Path) -> None:
    open_volume(browser, gallery)
    slide(browser, "alpha", 100)
    shown = canvas(browser)
    centre = shown[shown.shape[0] // 2, shown.shape[1] // 2]
    assert np.abs(centre - OUTLINES[0]).max() < 12
    yellow = np.abs(shown - OUTLINES[0]).max(axis=2) < 24
    assert yellow.mean() == pytest.approx(10 * 10 / (20 * 30), rel=0.15)
    browser.press("m")
    bare = canvas(browser)
    assert np.ptp(bare[bare.shape[0] // 2, bare.shape[1] // 2]) < 6  # grey
    assert browser.text("#classes").strip() == "lesion"


def test_the_histogram_and_facts_are_those_of_the_sample(browser: Any, gallery: Path) -> None:
    open_volume(browser, gallery)
    told = browser.text("#told")
    assert "24 × 30 × 20" in told and "1 × 1 × 1 mm" in told and "CC0-1.0" in told
    assert browser.run("document.querySelectorAll('#histogram .curve').length") == 1
    label = browser.run("document.querySelector('#histogram svg').getAttribute('aria-label')")
    assert label.startswith("Histogram from 10 to 200")
    browser.open(gallery, "#/?modality=fundus")
    browser.click(".tiles a")
    browser.wait(DRAWN)
    assert browser.run("document.querySelectorAll('#histogram .curve').length") == 3
    assert browser.run(
        "document.getElementById('scroll').hidden && document.getElementById('overlay').hidden"
    )


def test_one_walks_through_the_samples_and_comes_back_to_the_tile(browser: Any, gallery: Path) -> None:
    browser.open(gallery, "#/?modality=dermoscopy")
    keys = browser.run("[...document.querySelectorAll('.tiles a')].map(a => a.hash)")
    browser.run("document.querySelector('.tiles a').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('viewer').open")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    browser.press("ArrowRight")  # past the end
    browser.wait(f"location.hash === {json.dumps(keys[2])}")
    browser.press("ArrowLeft")
    browser.wait(f"location.hash === {json.dumps(keys[1])}")
    browser.press("Escape")
    browser.wait("!document.getElementById('viewer').open")
    assert browser.run("location.hash") == "#/?modality=dermoscopy"
    assert browser.run("document.activeElement.hash") == keys[1]
    assert browser.complaints == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_scrolls_only_downwards(browser: Any, gallery: Path, width: int) -> None:
    browser.size(width, 740)
    browser.open(gallery)
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not browser.run(wide)
    open_volume(browser, gallery)
    inside = (
        "(() => { const v = document.getElementById('viewer'); return v.scrollWidth <= v.clientWidth; })()"
    )
    assert browser.run(inside) and not browser.run(wide)
    assert canvas(browser).shape[1] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(
    browser: Any, gallery: Path, low_contrast: str, scheme: str
) -> None:
    browser.prefer(scheme)
    browser.open(gallery)
    assert browser.run(low_contrast) == []
    open_volume(browser, gallery)
    assert browser.run(low_contrast.replace("document.body", "document.getElementById('viewer')")) == []


def test_the_sources_are_described_by_distributions(browser: Any, gallery: Path) -> None:
    browser.open(gallery)
    rows = browser.run("[...document.querySelectorAll('#sources tbody tr')].map(r => r.innerText)")
    assert len(rows) == 3
    assert any("mr-3d" in row and "24" in row for row in rows)
    assert browser.run("document.querySelectorAll('#sources svg').length") >= 3 * 4


def test_shapes_of_annotators_are_drawn(browser: Any, gallery: Path, tmp_path: Path) -> None:
    text = gallery.read_text()
    start = text.index('id="data">') + len('id="data">')
    end = text.index("</script>", start)
    data = json.loads(text[start:end])
    sample = next(sample for sample in data["samples"] if sample["modality"] == "fundus")
    sample["shapes"] = [{"kind": "box", "label": "disc", "points": [[0.25, 0.25], [0.75, 0.75]]}]
    for view in sample["views"]:
        view["image"] = (gallery.parent / view["image"]).as_uri()
    page = tmp_path / "index.html"
    page.write_text(text[:start] + json.dumps(data).replace("<", "\\u003c") + text[end:])
    browser.open(page, f"#/sample/{sample['key']}")
    with_box = canvas(browser)
    browser.press("m")
    without = canvas(browser)
    changed = np.abs(with_box - without).max(axis=2) > 40
    height, width = changed.shape
    assert changed[height // 4 - 3 : height // 4 + 4].any(axis=0).sum() > width * 0.4
    assert (
        not changed[: height // 5].any()
        and not changed[height * 2 // 5 : height * 3 // 5, width // 3 : width // 2].any()
    )
