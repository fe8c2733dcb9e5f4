"""finetune/robustness: corruptions are pure functions, keep shape and dtype, and harm more as they grow."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import ConfigError
from medloom.data.ingest.preprocess import describe
from medloom.data.phantoms import head, pictures, tissue, torso
from medloom.data.sample import Modality
from medloom.finetune.robustness.corruptions import BY_MODALITY, CORRUPTIONS, SEVERITIES, corrupt, fits, usual
from medloom.finetune.robustness.sheet import strips, write_sheet
from PIL import Image

Scan = tuple[np.ndarray, dict[str, Any]]


def meta_of(image: np.ndarray, modality: str, spacing: tuple[float, ...] | None = None) -> dict[str, Any]:
    """A `key.json` with what corruptions read."""
    return {
        "key": "phantom-1", "modality": modality, "ndim": image.ndim - 1, "shape": list(image.shape),
        "dtype": image.dtype.name, "spacing": spacing, "facts": {}, "organ": "other",
        "stats": describe(image, modality),
    }  # fmt: skip


@pytest.fixture(scope="module")
def scans() -> dict[str, Scan]:
    """One phantom of each kind of image."""
    rng = np.random.default_rng(0)
    body = torso.torso(rng, 48, opacity=False)
    person = head.head(rng, (12, 64, 64), (150.0, 220.0, 220.0), grade=None)
    brain = head.image(rng, person, "t2")[None]
    eye = np.moveaxis(pictures.fundus(rng, 160, 0, left=True), -1, 0)
    slide = np.moveaxis(tissue.tile(rng, 160, "benign", tissue.slide(rng)), -1, 0)
    breast, _ = pictures.ultrasound(rng, 160, "benign")
    chest = torso.radiograph(rng, body, 300)[None]
    found = {
        "mri": (brain, person.spacing), "ct": (body.hounsfield[None], body.spacing), "x-ray": (chest, None),
        "pet": (brain, person.spacing), "fundus": (eye, None), "histopathology": (slide, None),
        "ultrasound": (breast[None], None), "oct": (breast[None], None),
    }  # fmt: skip
    return {name: (image, meta_of(image, name, spacing)) for name, (image, spacing) in found.items()}


def psnr(clean: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((clean.astype(float) - other.astype(float)) ** 2)
    return 10 * math.log10(float(np.ptp(clean.astype(float))) ** 2 / error) if error else math.inf


CASES = [
    (modality, name)
    for modality, names in BY_MODALITY.items()
    for name in names
    if modality in ("mri", "ct", "x-ray", "pet", "fundus", "histopathology", "ultrasound", "oct")
]


@pytest.mark.parametrize(("modality", "name"), CASES)
def test_harm_grows_with_severity_and_nothing_else_changes(
    scans: dict[str, Scan], modality: str, name: str
) -> None:
    image, meta = scans[modality]
    if not fits(CORRUPTIONS[name], meta):
        assert name not in usual(meta)
        return
    before, fidelity = image.copy(), [math.inf]
    for severity in SEVERITIES:
        found = corrupt(image, meta, name, severity)
        assert (found.shape, found.dtype) == (image.shape, image.dtype)
        assert np.isfinite(found.astype(float)).all()
        fidelity.append(psnr(image, found))
        assert fidelity[-1] < fidelity[-2], f"severity {severity} harms no more than {severity - 1}"
    assert np.array_equal(image, before)
    assert np.array_equal(corrupt(image, meta, name, 0), image)
    assert 3 < fidelity[-1] < 40


def test_every_modality_has_its_list_and_every_corruption_its_modality(scans: dict[str, Scan]) -> None:
    assert set(BY_MODALITY) == set(Modality)
    assert set().union(*BY_MODALITY.values()) == set(CORRUPTIONS)
    for names in BY_MODALITY.values():
        assert len(names) == len(set(names)) >= 5
    assert "slice_thickness" in usual(scans["mri"][1])
    assert "jpeg" not in usual(scans["ct"][1])
    assert "contrast" in usual(scans["fundus"][1])


def test_a_corruption_is_a_function_of_case_name_and_severity(scans: dict[str, Scan]) -> None:
    image, meta = scans["mri"]
    for name in usual(meta):
        assert np.array_equal(corrupt(image, meta, name, 3), corrupt(image, meta, name, 3))
    first, other = (corrupt(image, {**meta, "key": key}, "motion", 3) for key in ("a-1", "a-2"))
    assert not np.array_equal(first, other)
    # Another severity is the same draw, stronger: the noise fields are proportional.
    chest, facts = scans["x-ray"]
    wide = chest.astype(np.float32)
    facts = {**facts, "dtype": "float32"}
    mild, severe = (corrupt(wide, facts, "noise", s) - wide for s in (1, 5))
    assert np.corrcoef(mild.ravel(), severe.ravel())[0, 1] > 0.999


def test_another_process_draws_the_same(scans: dict[str, Scan], tmp_path: Path) -> None:
    image, meta = scans["oct"]
    np.save(tmp_path / "image.npy", image)
    code = (
        "import json, sys, zlib, numpy as np\n"
        "from medloom.finetune.robustness.corruptions import corrupt\n"
        "image, meta = np.load(sys.argv[1]), json.loads(sys.argv[2])\n"
        "print(zlib.crc32(corrupt(image, meta, 'speckle', 4).tobytes()))"
    )
    import json
    import zlib

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "image.npy"), json.dumps(meta)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert int(done.stdout) == zlib.crc32(corrupt(image, meta, "speckle", 4).tobytes())


def test_jpeg_loses_what_libjpeg_loses(scans: dict[str, Scan]) -> None:
    for modality in ("fundus", "ultrasound"):
        image, meta = scans[modality]
        for severity in SEVERITIES:
            quality = int(CORRUPTIONS["jpeg"].amounts[severity - 1])
            picture = Image.fromarray(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0])
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
            theirs = np.asarray(Image.open(file)).reshape(*image.shape[1:], -1)
            ours = corrupt(image, meta, "jpeg", severity)
            own = psnr(image, ours)
            assert abs(own - psnr(image, np.moveaxis(theirs, -1, 0))) < 0.5
            assert psnr(np.moveaxis(theirs, -1, 0), ours) > own + 6


def test_doses_have_the_noise_that_they_say(scans: dict[str, Scan]) -> None:
    body, meta = scans["ct"]
    for severity, dose in enumerate(CORRUPTIONS["low_dose"].amounts, start=1):
        added = corrupt(body, meta, "low_dose", severity).astype(float) - body
        assert added.std() == pytest.approx(12 * math.sqrt(1 / dose - 1), rel=0.03)
        assert abs(added.mean()) < 0.1  # the ramp has no constant part
    flat = np.full((1, 12, 64, 64), 1000, np.uint16)
    flat[:, :, :, :32] = 0
    noisy = corrupt(flat, meta_of(flat, "mri"), "rician_noise", 4)
    sd = 0.11 * 1000
    assert noisy[..., :32].mean() == pytest.approx(sd * math.sqrt(math.pi / 2), rel=0.02)  # Rayleigh's mean
    assert noisy[..., 32:].std() == pytest.approx(sd, rel=0.03)


def test_anatomy_stays_where_its_label_map_is(scans: dict[str, Scan]) -> None:
    image, meta = scans["mri"]
    middle = image[0, 6].astype(float)
    for name in ("motion", "ghosting", "bias_field", "resolution", "blur"):
        found = corrupt(image, meta, name, 3)[0, 6].astype(float)
        spectrum = np.fft.ifft2(np.fft.fft2(middle) * np.fft.fft2(found).conj()).real
        shift = np.unravel_index(spectrum.argmax(), spectrum.shape)
        assert all(min(s, n - s) <= 1 for s, n in zip(shift, middle.shape, strict=True)), name


def test_the_field_of_view_shrinks_inwards(scans: dict[str, Scan]) -> None:
    image, meta = scans["fundus"]
    bright = np.maximum(image, 1)
    kept = [corrupt(bright, meta, "cropping", s).any(axis=0) for s in SEVERITIES]
    shares = [float(mask.mean()) for mask in kept]
    assert shares == pytest.approx([a**2 for a in CORRUPTIONS["cropping"].amounts], abs=0.02)
    for inner, outer in zip(kept[1:], kept[:-1], strict=True):
        assert (inner <= outer).all()


def test_grey_pictures_in_three_channels_stay_grey(scans: dict[str, Scan]) -> None:
    grey = np.repeat(scans["ultrasound"][0], 3, axis=0)
    meta = meta_of(grey, "dermoscopy")
    assert {"colour_shift", "contrast", "stain"}.isdisjoint(usual(meta))
    for name in usual(meta):
        found = corrupt(grey, meta, name, 4)
        assert (found == found[:1]).all()
    with pytest.raises(ConfigError, match="stain needs a colour image"):
        corrupt(grey, meta, "stain", 1)


def test_odd_images_are_taken() -> None:
    rng = np.random.default_rng(3)
    odd = {
        "thumbnail": (rng.integers(0, 255, (3, 28, 28)).astype(np.uint8), "histopathology", None),
        "constant": (np.full((1, 40, 30), 7, np.uint16), "x-ray", None),
        "signed": (rng.normal(0, 1, (2, 5, 17, 23)).astype(np.float32), "mri", (5.0, 0.5, 0.5)),
        "thin": (rng.integers(0, 900, (1, 1, 20, 20)).astype(np.int16), "mri", (6.0, 1.0, 1.0)),
    }
    for image, modality, spacing in odd.values():
        meta = meta_of(image, modality, spacing)
        for name in usual(meta):
            for severity in (1, 5):
                found = corrupt(image, meta, name, severity)
                assert (found.shape, found.dtype) == (image.shape, image.dtype)
                assert np.isfinite(found.astype(float)).all()
    assert "slice_thickness" not in usual(meta_of(odd["thin"][0], "mri", (6.0, 1.0, 1.0)))


def test_wrong_names_and_severities_are_refused(scans: dict[str, Scan]) -> None:
    image, meta = scans["ct"]
    with pytest.raises(ConfigError, match="did you mean blur"):
        corrupt(image, meta, "blurr", 1)
    with pytest.raises(ConfigError, match="from 0"):
        corrupt(image, meta, "blur", 6)
    with pytest.raises(ConfigError, match="jpeg needs a picture image"):
        corrupt(image, meta, "jpeg", 1)


def test_the_sheet_shows_a_row_a_corruption(scans: dict[str, Scan], tmp_path: Path) -> None:
    image, meta = scans["mri"]
    rows = strips(image, meta)
    picture = np.asarray(Image.open(write_sheet(tmp_path / "sheet.png", rows, [1, 5])))
    short = np.asarray(Image.open(write_sheet(tmp_path / "one.png", rows[:1], [1, 5])))
    assert picture.shape[1] == short.shape[1]
    height = (picture.shape[0] - short.shape[0]) // (len(rows) - 1)
    assert height * (len(rows) - 1) == picture.shape[0] - short.shape[0]
    for row in range(len(rows)):  # clean and severe tiles of a row differ
        part = picture[short.shape[0] - height + row * height :][: height - 4].astype(int)
        width = (part.shape[1] - 128) // 3
        clean, severe = part[:, 128 : 128 + width - 4], part[:, 128 + 2 * width : 128 + 3 * width - 4]
        assert np.abs(clean - severe).mean() > 1
