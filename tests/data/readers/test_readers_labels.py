"""Label maps: exactly on the image's grid, integers, mapped as declared, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read, read_label_map
from medloom.data.sample import Image
from PIL import Image as Pillow

RNG = np.random.default_rng(0)
OBLIQUE = np.array([[-1.9, 0.2, 0.1, 40], [0.2, -1.4, 0.3, 20], [0.1, 0.2, 3.0, -9], [0, 0, 0, 1.0]])


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    dtype = array.dtype if array.dtype.kind in "iu" else None
    nib.save(nib.Nifti1Image(array, affine, dtype=dtype), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Image:
    (result,) = read([nifti(tmp_path / "image.nii.gz", RNG.integers(0, 99, (5, 6, 7)).astype(np.int16))])
    return result


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32", "float64"])
def test_a_map_of_any_dtype_lands_on_the_images_grid(tmp_path: Path, image: Image, dtype: str) -> None:
    labels = RNG.integers(0, 4, (5, 6, 7))
    mask = read_label_map(nifti(tmp_path / "m.nii.gz", labels.astype(dtype)), image)
    assert mask.dtype == np.uint8 and mask.shape == image.array.shape[1:]
    (as_image,) = read([nifti(tmp_path / "again.nii.gz", labels.astype(np.uint8))])
    assert np.array_equal(mask, as_image.array[0])


def test_a_map_stored_in_another_orientation_is_turned_to_the_image(tmp_path: Path, image: Image) -> None:
    labels = RNG.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    one = read_label_map(nifti(tmp_path / "a.nii", labels), image)
    flip = OBLIQUE.copy()
    flip[:, 3] += flip[:, 0] * 4
    flip[:, 0] *= -1
    two = read_label_map(nifti(tmp_path / "b.nii", labels[::-1], flip), image)
    swapped = OBLIQUE[:, [2, 0, 1, 3]]
    three = read_label_map(nifti(tmp_path / "c.nii", labels.transpose(2, 0, 1), swapped), image)
    assert np.array_equal(one, two) and np.array_equal(one, three)


@pytest.mark.parametrize(
    ("high", "dtype"), [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")]
)
def test_the_narrowest_unsigned_type_is_returned(tmp_path: Path, image: Image, high: int, dtype: str) -> None:
    labels = np.zeros((5, 6, 7), np.int32)
    labels[0, 0, 0] = high
    mask = read_label_map(nifti(tmp_path / "m.nii", labels), image)
    assert mask.dtype == np.dtype(dtype) and mask.max() == high


def test_values_are_mapped_as_declared(tmp_path: Path, image: Image) -> None:
    labels = RNG.choice([0, 1, 7, 255], (5, 6, 7)).astype(np.uint8)
    path = nifti(tmp_path / "m.nii", labels)
    plain = read_label_map(path, image)
    assert np.array_equal(read_label_map(path, image, "nonzero"), plain > 0)
    mapped = read_label_map(path, image, {1: 2, 7: 0, 255: 300})
    assert mapped.dtype == np.uint16
    assert np.array_equal(mapped, np.select([plain == 1, plain == 255], [2, 300], 0))
    with pytest.raises(ReadError, match=r"m\.nii: label values \[7, 255\] are not in mask_values \[0, 1\]"):
        read_label_map(path, image, {1: 1})


def test_another_shape_is_refused(tmp_path: Path, image: Image) -> None:
    with pytest.raises(ReadError, match=r"m\.nii: mask shape \(8, 6, 5\), image shape \(7, 6, 5\)"):
        read_label_map(nifti(tmp_path / "m.nii", np.zeros((5, 6, 8), np.uint8)), image)


@pytest.mark.parametrize(("shift", "accepted"), [(0.1, True), (0.2, False)])
def test_another_affine_is_refused_beyond_a_tenth_of_a_voxel(
    tmp_path: Path, image: Image, shift: float, accepted: bool
) -> None:
    affine = OBLIQUE.copy()
    affine[0, 3] += shift  # the smallest voxel edge is 1.43 mm
    path = nifti(tmp_path / "m.nii", np.ones((5, 6, 7), np.uint8), affine)
    if accepted:
        assert read_label_map(path, image).all()
    else:
        with pytest.raises(ReadError, match=r"affine puts a corner 0\.2 mm"):
            read_label_map(path, image)
    # A rotation that leaves the centre in place is found at the corners.
    affine = OBLIQUE.copy()
    affine[:3, 2] *= 1.2
    with pytest.raises(ReadError, match="affine"):
        read_label_map(nifti(tmp_path / "n.nii", np.ones((5, 6, 7), np.uint8), affine), image)


def test_fractions_negatives_nan_and_channels_are_refused(tmp_path: Path, image: Image) -> None:
    shape = (5, 6, 7)
    cases = {
        "off integers": np.full(shape, 0.4, np.float32),
        "negative label -1": np.full(shape, -1, np.int16),
        "NaN": np.where(np.arange(210).reshape(shape) > 3, np.nan, 1).astype(np.float32),
        "2 channels": np.zeros((*shape, 2), np.uint8),
    }
    for reason, array in cases.items():
        with pytest.raises(ReadError, match=reason):
            read_label_map(nifti(tmp_path / "m.nii", array), image)
    almost = np.full(shape, 2.0004, np.float32)
    assert (read_label_map(nifti(tmp_path / "m.nii", almost), image) == 2).all()


def picture(shape: tuple[int, int] = (6, 8)) -> Image:
    return Image(array=np.zeros((3, *shape), np.uint8))


def test_raster_masks_of_every_kind(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (6, 8)).astype(np.uint8)
    variants = {
        "grey": Pillow.fromarray(labels),
        "rgb": Pillow.fromarray(np.repeat(labels[..., None], 3, axis=2)),
        "alpha": Pillow.fromarray(np.dstack([labels, np.full_like(labels, 255)]), "LA"),
        "deep": Pillow.fromarray(labels.astype(np.uint16)),
    }
    palette = Pillow.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 200, 30, 10, 10, 80, 250])
    variants["palette"] = palette
    for name, mask in variants.items():
        mask.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_label_map(tmp_path / f"{name}.png", picture()), labels), name
    Pillow.fromarray(labels > 0).save(tmp_path / "bit.png")
    assert np.array_equal(read_label_map(tmp_path / "bit.png", picture()), labels > 0)


def test_colour_masks_and_broken_masks_are_refused(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Pillow.fromarray(colours).save(tmp_path / "m.png")
    with pytest.raises(ReadError, match="3 channels"):
        read_label_map(tmp_path / "m.png", picture())
    Pillow.fromarray(colours[..., 0]).save(tmp_path / "n.png")
    with pytest.raises(ReadError, match="mask shape"):
        read_label_map(tmp_path / "n.png", picture((6, 9)))
    (tmp_path / "n.png").write_bytes((tmp_path / "n.png").read_bytes()[:50])
    with pytest.raises(ReadError, match=r"n\.png"):
        read_label_map(tmp_path / "n.png", picture())
    (tmp_path / "n.png").write_bytes(b"")
    with pytest.raises(ReadError, match="0 bytes"):
        read_label_map(tmp_path / "n.png", picture())


def test_a_one_slice_volume_can_mask_a_picture(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (8, 6, 1)).astype(np.uint8)
    mask = read_label_map(nifti(tmp_path / "m.nii", labels, np.eye(4)), picture())
    assert np.array_equal(mask, labels[:, :, 0].T)


@pytest.mark.realdata
def test_the_real_collection_reads_with_its_masks(realdata: Path) -> None:
    """Everything but NRRD and boxes; every mask lies on its image's grid."""
    import csv

    read_files = masks = 0
    for folder in sorted(path for path in realdata.iterdir() if path.is_dir()):
        with (folder / "manifest.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows[:12]:
            path = folder / row["file"]
            if path.suffix in (".nrrd", ".dcm"):
                continue
            (image,) = read([path])
            assert np.isfinite(image.array).all() and image.array.dtype.itemsize <= 4
            assert (image.spacing is None) == (path.suffix != ".gz")
            read_files += 1
            for name in filter(None, [row.get("mask"), *(row.get("masks") or "").split(";")]):
                read_label_map(folder / name, image)
                masks += 1
    assert read_files > 150 and masks > 40


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("ct_chest_series", (1, 12, 512, 512), (2.0, 0.75, 0.75)),
        ("ct_small_series", (1, 17, 128, 88), (2.0, 2.0, 2.0)),
        ("mr_t1_series", (1, 16, 384, 274), (0.667, 0.667, 0.7)),
    ],
)
def test_the_real_dicom_series_become_volumes(
    realdata: Path, name: str, shape: tuple, spacing: tuple
) -> None:
    (image,) = read(sorted((realdata / "dicom_series_mixed" / name).iterdir(), reverse=True))
    assert image.array.shape == shape and image.spacing == pytest.approx(spacing, abs=1e-3)
    assert image.array.dtype == np.int16
