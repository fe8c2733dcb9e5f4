"""The built-in collection: deterministic, readable as a collection, labelled, not trivial, not hopeless."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from medloom.data.collection import Collection, scan
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.phantoms import head as phantom_head
from medloom.data.phantoms import phantoms
from medloom.data.phantoms import pictures as phantom_pictures
from medloom.data.phantoms import tissue as phantom_tissue
from medloom.data.phantoms import torso as phantom_torso
from medloom.data.phantoms.fields import Space, smooth
from medloom.data.readers import dicom, read, read_label_map
from medloom.data.sample import Modality

SUBJECTS, SIZE = 6, 32


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.generate(tmp_path_factory.mktemp("phantoms"), seed=3, subjects=SUBJECTS, size=SIZE)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_collection_scans_without_failures_and_holds_out_both_tasks(collection: Path) -> None:
    result = scan(Collection.load(collection))
    assert result.failures == [] and result.excluded == []
    assert {record.dataset for _, record in result.records} == set(phantoms.DATASETS) - {"phantom_ct_seg"}
    held = {(record.dataset, record.split) for _, record in result.held_out}
    assert held == {
        ("phantom_ct_seg", "train"),
        ("phantom_ultrasound", "val"),
        ("phantom_ultrasound", "test"),
    }
    assert all(dataset.startswith("phantom_") for dataset in phantoms.DATASETS)


def test_every_file_reads_with_its_mask_and_modality(collection: Path) -> None:
    expected = {
        "phantom_ct": (Modality.CT, 3, "int16"), "phantom_ct_seg": (Modality.CT, 3, "int16"),
        "phantom_mri": (Modality.MRI, 3, "uint16"), "phantom_mri_tumour": (Modality.MRI, 3, "int16"),
        "phantom_xray": (Modality.XRAY, 2, "uint16"), "phantom_ultrasound": (Modality.ULTRASOUND, 2, "uint8"),
        "phantom_fundus": (Modality.FUNDUS, 2, "uint8"),
        "phantom_histology": (Modality.HISTOPATHOLOGY, 2, "uint8"),
    }  # fmt: skip
    result = scan(Collection.load(collection))
    masks = 0
    for source, record in result.records + result.held_out:
        (image,) = read(record.paths)
        modality, ndim, dtype = expected[record.dataset]
        assert (record.modality or image.modality) == modality, record.name
        assert (image.ndim, image.array.dtype.name) == (ndim, dtype), record.name
        assert image.array.std() > 0
        if record.mask:
            mask = read_label_map(record.mask, image, source.mask_values)
            assert set(np.unique(mask)) <= {0, *source.mask_classes}
            masks += 1
    assert masks == SUBJECTS + 6 + 3 * SUBJECTS * 2


def test_subjects_have_several_images_and_each_split_has_each_class(collection: Path) -> None:
    result = scan(Collection.load(collection))
    records = [record for _, record in result.records + result.held_out]
    for dataset, images in {
        "phantom_mri": 2,
        "phantom_ultrasound": 2,
        "phantom_fundus": 2,
        "phantom_histology": 3,
    }.items():
        subjects = [record.subject for record in records if record.dataset == dataset]
        assert len(subjects) == images * len(set(subjects)), dataset
    for dataset in ("phantom_ultrasound", "phantom_fundus", "phantom_mri_tumour", "phantom_xray"):
        pairs = {(r.split, r.labels["class"]) for r in records if r.dataset == dataset}
        classes = {label for _, label in pairs}
        assert pairs == {(split, label) for split in ("train", "val", "test") for label in classes}


def test_two_series_share_a_folder_and_are_named_phantom(collection: Path) -> None:
    import pydicom

    files = sorted((collection.parent / "phantom_mri").rglob("*.dcm"))
    headers = [dicom.header(path) for path in files]
    assert len({(header.path.parent, header.series_uid) for header in headers}) == 2 * len(
        {header.path.parent for header in headers}
    )
    dataset = pydicom.dcmread(files[0])
    assert "phantom" in dataset.SeriesDescription and "PHANTOM" in dataset.PatientID
    # Slices are numbered out of order: the reader has to sort by position.
    first = [h for h in headers if h.series_uid == headers[0].series_uid]
    positions = [h.position[2] for h in first if h.position]
    assert positions != sorted(positions)


def test_bytes_follow_the_seed_and_an_earlier_call_leaves_no_files(collection: Path, tmp_path: Path) -> None:
    expected = digests(collection.parent)
    calls: list[tuple[int, int, str]] = []
    phantoms.generate(tmp_path, seed=4, subjects=SUBJECTS + 1, size=SIZE)
    other = digests(tmp_path)
    assert len(other) > len(expected)
    same = [name for name in other.keys() & expected.keys() if other[name] == expected[name]]
    images = [n for n in same if n.endswith((".nii.gz", ".dcm", ".png", ".jpg")) and "_mask" not in n]
    assert images == []
    phantoms.generate(
        tmp_path, seed=3, subjects=SUBJECTS, size=SIZE, progress=lambda *step: calls.append(step)
    )
    assert digests(tmp_path) == expected
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1))


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "phantom_fundus" / "holiday.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"x")
    with pytest.raises(CollectionError, match="was not written as a phantom"):
        phantoms.generate(tmp_path, subjects=6, size=32)
    assert mine.read_bytes() == b"x"
    assert not (tmp_path / "collection.yaml").exists()


@pytest.mark.parametrize(
    ("subjects", "size", "word"), [(5, 48, "subjects"), (6, 20, "size"), (6, 44, "size")]
)
def test_impossible_arguments_are_refused(tmp_path: Path, subjects: int, size: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        phantoms.generate(tmp_path, subjects=subjects, size=size)


def test_hounsfield_units_are_those_of_the_tissues() -> None:
    body = phantom_torso.torso(np.random.default_rng(0), 48, opacity=True)
    values, labels = body.hounsfield.astype(float), body.labels
    assert values.min() >= -1024 and np.percentile(values, 1) < -950  # air
    assert 80 < values[labels == phantom_torso.LIVER].mean() < 130
    assert np.percentile(values, 99.5) > 250  # bone
    lungs = (values < -700) & (values > -920)
    assert 0.02 < lungs.mean() < 0.3


def test_some_livers_have_no_lesion_and_a_threshold_does_not_find_the_others() -> None:
    bodies = [phantom_torso.torso(np.random.default_rng(seed), 32, opacity=False) for seed in range(16)]
    empty = [body for body in bodies if not (body.labels == phantom_torso.LESION).any()]
    assert 1 <= len(empty) <= 8
    scores = []
    for body in bodies:
        lesion = body.labels == phantom_torso.LESION
        if lesion.any():
            best = max(
                2 * (guess & lesion).sum() / (guess.sum() + lesion.sum())
                for low in range(-20, 90, 20)
                for guess in [(body.hounsfield > low) & (body.hounsfield < low + 40)]
            )
            scores.append(best)
    assert np.mean(scores) < 0.4


def test_mr_contrast_follows_the_sequence() -> None:
    signal = {
        sequence: {
            name: phantom_head.signal(sequence, *values) for name, values in phantom_head.TISSUES.items()
        }
        for sequence in phantom_head.SEQUENCES
    }
    assert signal["t1"]["white"] > signal["t1"]["grey"] > signal["t1"]["csf"]
    assert signal["t2"]["csf"] > signal["t2"]["edema"] > signal["t2"]["grey"] > signal["t2"]["white"]
    assert signal["flair"]["csf"] < 0.3 * signal["flair"]["grey"] < signal["flair"]["edema"]


def test_mr_noise_is_rician() -> None:
    person = phantom_head.head(np.random.default_rng(0), (16, 32, 32), (150, 220, 220), grade=None)
    air = phantom_head.image(np.random.default_rng(1), person, "t2")[:, :4, :4].astype(float)
    # Of Rayleigh noise mean / sd is sqrt(pi / (4 - pi)) = 1.913.
    assert air.mean() / air.std() == pytest.approx(1.913, rel=0.12)


@pytest.mark.parametrize("grade", ["low", "high"])
def test_tumours_are_marked(grade: str) -> None:
    person = phantom_head.head(np.random.default_rng(5), (32, 32, 32), (204, 204, 204), grade=grade)
    mask = phantom_head.lesion_mask(person)
    assert (mask == phantom_head.CORE).sum() > 5
    flair = phantom_head.image(np.random.default_rng(0), person, "flair").astype(float)
    brain = flair > np.percentile(flair, 70)
    assert flair[mask == phantom_head.EDEMA].mean() > flair[brain & (mask == 0)].mean()


def test_speckle_is_rayleigh_like_and_lesions_are_darker_than_the_gland() -> None:
    for label in ("benign", "malignant"):
        contrast = []
        for seed in range(6):
            picture, mask = phantom_pictures.ultrasound(np.random.default_rng(seed), 96, label)
            row = mask.any(axis=1)
            contrast.append(picture[row][mask[row] == 0].mean() - picture[mask == 1].mean())
        assert np.mean(contrast) > 15
    _, mask = phantom_pictures.ultrasound(np.random.default_rng(0), 96, "normal")
    assert not mask.any()


def test_ultrasound_classes_need_more_than_a_thumbnail() -> None:
    """Learnable: shape tells the classes apart. Not trivial: mean intensities hardly do."""
    means = {
        label: [phantom_pictures.ultrasound(np.random.default_rng(s), 64, label)[0].mean() for s in range(30)]
        for label in ("benign", "malignant")
    }
    gap = abs(np.mean(means["benign"]) - np.mean(means["malignant"]))
    assert gap < np.std(means["benign"])
    edges = {
        label: np.mean([_roundness(np.random.default_rng(s), label) for s in range(30)])
        for label in ("benign", "malignant")
    }
    assert edges["malignant"] > 1.15 * edges["benign"]


def _roundness(rng: np.random.Generator, label: str) -> float:
    """Perimeter over that of the disc of equal area (1 for a disc, pixel edges counted)."""
    _, mask = phantom_pictures.ultrasound(rng, 192, label)
    padded = np.pad(mask.astype(int), 1)
    edges = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    return edges / np.sqrt(4 * np.pi * mask.sum())


def test_fundus_is_round_reddish_and_mirrored_for_the_left_eye() -> None:
    right = phantom_pictures.fundus(np.random.default_rng(4), 96, 0, left=False)
    left = phantom_pictures.fundus(np.random.default_rng(4), 96, 0, left=True)
    assert np.array_equal(left, right[:, ::-1])
    assert right[0, 0].max() < 20
    red, green, blue = right[30:66, 30:66].reshape(-1, 3).mean(axis=0)
    assert red > green > blue
    sick = phantom_pictures.fundus(np.random.default_rng(4), 96, 3, left=False)
    assert not np.array_equal(sick, right)


def test_tumour_tiles_hold_more_nuclei() -> None:
    dark = {}
    for label in phantom_tissue.CLASSES:
        stain = phantom_tissue.slide(np.random.default_rng(0))
        tiles = [phantom_tissue.tile(np.random.default_rng(s), 128, label, stain) for s in range(6)]
        dark[label] = np.mean([(tile[..., 0] < 140).mean() for tile in tiles])
    assert dark["tumour"] > 1.5 * dark["normal"]


def test_radiograph_shows_lungs_dark_and_the_liver_on_the_left_of_the_picture() -> None:
    body = phantom_torso.torso(np.random.default_rng(1), 48, opacity=False)
    picture = phantom_torso.radiograph(np.random.default_rng(0), body, 96).astype(float)
    assert picture.shape == (96, 96) and picture.max() <= 4095
    lungs = picture[15:45, 15:35].mean(), picture[15:45, 60:80].mean()
    assert max(lungs) < picture[30:60, 44:52].mean()  # darker than the spine
    # The right diaphragm stands higher: its lung field (on the left of the picture) ends above the other.
    assert picture[58:66, 22:34].mean() > picture[30:38, 22:34].mean()


def test_splits_are_stratified_and_complete() -> None:
    labels = ["a"] * 20 + ["b"] * 8 + ["c"] * 3
    splits = phantoms.splits_of(labels, np.random.default_rng(0))
    for label in "abc":
        assert {s for s, own in zip(splits, labels, strict=True) if own == label} == {"train", "val", "test"}
    assert splits[:20].count("test") == 5 and splits[:20].count("val") == 3
    assert splits == phantoms.splits_of(labels, np.random.default_rng(0))


def test_smooth_fields_have_unit_variance_and_follow_their_generator() -> None:
    field = smooth(np.random.default_rng(0), (80, 90, 70), 14)
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.1 and field.std() == pytest.approx(1, abs=0.1)
    assert np.array_equal(field, smooth(np.random.default_rng(0), (80, 90, 70), 14))
    steps = np.abs(np.diff(field, axis=0)).mean()
    assert steps < np.abs(np.diff(smooth(np.random.default_rng(0), (80, 90, 70), 28), axis=0)).mean()


def test_ellipsoids_have_their_volume_wherever_they_lie() -> None:
    space = Space(np.random.default_rng(0), (40, 40, 40), (2.0, 2.0, 2.0), warp=0.0, cells=3)
    for centre, turn in (((0, 0, 0), 0.0), ((5, -8, 11), 0.6)):
        box, level = space.ellipsoid(centre, (20, 14, 10), turn=turn)
        volume = (level < 1).sum() * 8.0
        assert volume == pytest.approx(4 / 3 * np.pi * 20 * 14 * 10, rel=0.02)
        assert level.shape == np.empty(space.shape)[box].shape
