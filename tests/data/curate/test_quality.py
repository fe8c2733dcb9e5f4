"""The numbers of one image, and the rules that compare an image with its kind."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.curate.curate import curate
from medloom.data.curate.findings import RULES, Settings, Thresholds
from medloom.data.curate.quality import measure
from medloom.data.curate.text import characters
from medloom.data.errors import ConfigError
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont


def write(array: np.ndarray, text: str, size: int = 14, fill: int = 255) -> np.ndarray:
    import matplotlib

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    picture = Pillow.fromarray(array)
    ImageDraw.Draw(picture).text((12, 20), text, fill=fill, font=font)
    return np.asarray(picture)


@pytest.mark.parametrize("size", [12, 16, 28])
def test_lettering_is_counted_by_character(image, size):
    plain = (image(1, (240, 420)) * 0.6).astype(np.uint8)
    text = "DOE JANE 12 03 1956"
    assert characters(plain[None]) == 0
    found = characters(write(plain, text, size)[None])
    assert 0.6 * 15 <= found <= 18
    assert characters(write(255 - plain, text, size, 0)[None]) >= 6


def test_three_marks_are_no_line(image):
    assert characters(write((image(1) * 0.6).astype(np.uint8), "R L")[None]) == 0


def test_numbers_with_known_answers():
    even = measure(np.full((1, 40, 50), 3, np.uint8), "x-ray", None)
    assert (even["mode"], even["entropy"], even["structure"]) == (1.0, 0.0, 0.0)
    two = np.zeros((1, 64, 128), np.uint8)
    two[..., 64:] = 200
    half = measure(two, "x-ray", (0.5, 0.25))
    assert (half["mode"], half["entropy"]) == (0.5, 1.0)
    assert half["structure"] == pytest.approx(1, abs=0.02)
    assert (half["extent_low"], half["extent_high"], half["aspect"]) == (32, 32, 0.5)
    noise = np.random.default_rng(0).integers(0, 255, (1, 512, 512)).astype(np.uint8)
    assert measure(noise, "x-ray", None)["structure"] < 0.01


def test_an_empty_end_is_measured_on_both_sides(image):
    array = image(1, (100, 100))[None].copy()
    array[:, 70:] = 0
    assert measure(array, "x-ray", None)["band"] == pytest.approx(0.3, abs=0.02)
    framed = np.pad(image(1, (60, 60)), 20)[None]
    assert measure(framed, "x-ray", None)["band"] == pytest.approx(0, abs=0.02)


def test_a_ct_that_is_cut_by_its_field_of_view():
    _, y, x = np.mgrid[-1:1:12j, -1:1:64j, -1:1:64j]
    body = np.where((x / 0.9) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000).astype(np.int16)
    assert measure(body[None], "ct", (3, 1, 1))["body_edge"] == 0
    cut = measure(body[None, :, 12:52, 20:44], "ct", (3, 1, 1))["body_edge"]
    assert 0.7 < cut < 1
    assert "body_edge" not in measure((body[None] + 1000).astype(np.uint16), "mri", (3, 1, 1))


def kind(image, count: int = 40) -> dict[str, np.ndarray]:
    """Pictures of one look: a bright disc left of the middle, each with its own texture."""
    y, x = np.mgrid[-1:1:160j, -1:1:200j]
    disc = 120 * ((x + 0.3) ** 2 + y**2 < 0.4)
    return {f"{n:02d}.png": (disc + 0.5 * image(n)).astype(np.uint8) for n in range(count)}


def test_rules_that_need_a_kind(collection, tmp_path, image):
    files = kind(image)
    files["90.png"] = 255 - files["00.png"]
    cut = files["01.png"].copy()
    cut[80:] = 0
    files["91.png"] = cut
    chart = Pillow.new("L", (200, 160), 255)
    ImageDraw.Draw(chart).rectangle((20, 60, 40, 150), fill=0)
    ImageDraw.Draw(chart).rectangle((150, 20, 170, 150), fill=0)
    files["92.png"] = np.asarray(chart)
    files["93.png"] = np.full((160, 200), 30, np.uint8)
    result = curate(collection({"pics": files}), tmp_path / "out")
    rules: dict[str, set[str]] = {}
    for finding in result.findings:
        name = result.table.record(finding.image).name[-6:]
        rules.setdefault(name, set()).add(finding.rule)
    assert "inverted" in rules.pop("90.png")
    assert "truncated" in rules.pop("91.png")
    assert "outlier" in rules.pop("92.png")
    assert "blank" in rules.pop("93.png")
    assert not rules


def test_a_volume_ten_times_the_size_of_its_dataset(collection, tmp_path, image):
    import nibabel

    made = collection({"vols": {f"{n:02d}.nii.gz": image(n, (16, 20, 24)) for n in range(32)}})
    path = tmp_path / "in" / "vols" / "Mustermann_07.nii.gz"
    volume = np.asarray(nibabel.load(path).dataobj)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([10.0, 10, 10, 1])), path)
    result = curate(made, tmp_path / "out")
    found = [(f.rule, f.numbers["factor"]) for f in result.findings if "factor" in f.numbers]
    assert found == [("spacing", 10.0)]


def test_settings():
    changed = Settings.of(["text"], ["near"], {"near_2d": "0.9"})
    assert changed.actions["text"] == "drop"
    assert changed.actions["near"] == "flag"
    assert changed.thresholds.near_2d == 0.9
    assert set(changed.actions) == set(RULES)
    for drop, flag, words, message in (
        (["texts"], [], {}, "did you mean text"),
        (["text"], ["text"], {}, "choose one"),
        ([], [], {"near2d": "1"}, "did you mean near_2d"),
        ([], [], {"near_2d": "much"}, "not a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            Settings.of(drop, flag, words)
    assert Thresholds().near_2d < 1
