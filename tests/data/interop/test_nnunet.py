"""Cases of nnU-Net v2: z-scores stay as they are, and lie where the image lay."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from medloom.data.errors import CollectionError, ReadError
from medloom.data.interop import nnunet
from medloom.data.normalise import intensity, kind
from medloom.data.sample import Given

from .foreign import run_import, samples

DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORIGIN = (-10.0, 20.0, 5.0)
SPACING = (3.0, 0.8, 0.5)  # z, y, x


def case(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    blosc: bool = False,
    transpose: tuple[int, ...] = (0, 1, 2),
    crop: tuple[tuple[int, int], ...] = ((2, 14), (4, 28), (0, 32)),
    scale: int = 2,
    properties: dict[str, Any] | None = None,
) -> np.ndarray:
    """Write a case that was cropped to `crop` (z, y, x) and enlarged `scale` times; its data [1, ...]."""
    folder.mkdir(parents=True, exist_ok=True)
    box = [crop[axis] for axis in transpose]
    cropped = [high - low for low, high in box]
    shape = [n * scale for n in cropped]
    data = np.random.default_rng(seed).normal(0, 1, (1, *shape)).astype(np.float32)
    seg = np.where(data > 1, 1, 0).astype(np.int8)
    seg[:, 0] = -1
    facts = {
        "sitk_stuff": {"spacing": SPACING[::-1], "origin": ORIGIN, "direction": DIRECTION},
        "spacing": list(SPACING),
        "shape_before_cropping": (20, 30, 32),
        "bbox_used_for_cropping": [list(pair) for pair in box],
        "shape_after_cropping_and_before_resampling": tuple(cropped),
        "class_locations": {1: np.argwhere(seg == 1)[:100]},
    }
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(facts if properties is None else properties))
    if blosc:
        for ending, array in (("", data), ("_seg", seg)):
            blosc2.asarray(array, urlpath=str(folder / f"{name}{ending}.b2nd"), mode="w")
    else:
        np.savez_compressed(folder / f"{name}.npz", data=data, seg=seg)
    return data


def dataset(root: Path, configuration: str = "3d_fullres", **options: Any) -> Path:
    """The folder of a preprocessed dataset with three cases."""
    for n in range(3):
        case(root / f"nnUNetPlans_{configuration}", f"case_{n}", seed=n, **options)
    plans = {"transpose_forward": list(options.get("transpose", (0, 1, 2)))}
    (root / "nnUNetPlans.json").write_text(json.dumps(plans))
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    splits = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    return root


@pytest.mark.parametrize("blosc", [False, True], ids=["npz", "b2nd"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_cases_are_imported(tmp_path: Path, blosc: bool, transpose: tuple[int, ...]) -> None:
    root = dataset(tmp_path / "Dataset001_X", blosc=blosc, transpose=transpose)
    data = case(tmp_path / "again", "c", seed=1, transpose=transpose)
    result = run_import(root, out=tmp_path / "out", modality="ct", overrides=["options.fold=0"])
    assert not result.failures
    found = samples(tmp_path / "out")
    assert sorted(sample.meta["split"] for sample in found) == ["train", "train", "val"]
    # ITK's axes run to the left and to the back, ours to the right and to the front.
    backward = [transpose.index(axis) for axis in range(3)]
    expected = data[0].transpose(backward)[:, ::-1, ::-1]
    sample = next(sample for sample in found if np.array_equal(sample.image[0], expected))
    assert sample.image.dtype == np.float32
    np.testing.assert_allclose(sample.meta["spacing"], (1.5, 0.4, 0.25))
    assert sample.meta["facts"]["normalised"] is True
    assert sample.meta["mask"]["classes"] == {"1": "tumour"}
    np.testing.assert_array_equal(sample.mask[2:-2, 2:-2, 2:-2], (expected > 1)[2:-2, 2:-2, 2:-2])


def test_the_stream_leaves_normalised_intensities_alone(tmp_path: Path) -> None:
    root = dataset(tmp_path / "Dataset001_X")
    run_import(root, out=tmp_path / "out", modality="ct")
    for sample in samples(tmp_path / "out"):
        assert kind(sample.meta) == "given"
        # The extremes are kept in seven digits.
        np.testing.assert_allclose(intensity(sample.meta).apply(sample.image), sample.image, atol=1e-6)
        assert sample.meta["stats"]["foreground"]["rule"] == "otsu"
    run_import(root, out=tmp_path / "raw", modality="ct", overrides=["options.normalised=false"])
    assert {kind(sample.meta) for sample in samples(tmp_path / "raw")} == {"volume"}


def test_the_affine_puts_the_crop_back_where_it_was(tmp_path: Path) -> None:
    case(tmp_path, "c", transpose=(2, 0, 1))
    given = Given(properties=tmp_path / "c.pkl", transpose=(2, 0, 1))
    found = nnunet.geometry_of(given, (64, 24, 48), "c")
    # The outer corner of the first voxel is the outer corner of the crop: z 2, y 4, x 0.
    corner = found.affine @ [-0.5, -0.5, -0.5, 1]
    lps = np.array(ORIGIN) + np.array([0 - 0.5, 4 - 0.5, 2 - 0.5]) * SPACING[::-1]
    np.testing.assert_allclose(corner[:3], lps * [-1, -1, 1])
    far = found.affine @ [63.5, 23.5, 47.5, 1]
    lps = np.array(ORIGIN) + np.array([32 - 0.5, 28 - 0.5, 14 - 0.5]) * SPACING[::-1]
    np.testing.assert_allclose(far[:3], lps * [-1, -1, 1])


def test_pictures_become_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "nnUNetPlans_2d"
    folder.mkdir()
    data = np.random.default_rng(0).normal(0, 1, (3, 1, 40, 50)).astype(np.float32)
    facts = {
        "spacing": (999, 1, 1),
        "bbox_used_for_cropping": [[0, 1], [0, 40], [0, 50]],
        "shape_after_cropping_and_before_resampling": (1, 40, 50),
    }
    (folder / "c.pkl").write_bytes(pickle.dumps(facts))
    np.savez(folder / "c.npz", data=data, seg=np.zeros((1, 1, 40, 50), np.int8))
    run_import(folder, out=tmp_path / "out", dataset="d")
    (sample,) = samples(tmp_path / "out")
    np.testing.assert_array_equal(sample.image, data[:, 0])
    assert sample.mask.shape == (40, 50)


def test_one_configuration_is_chosen(tmp_path: Path) -> None:
    root = dataset(tmp_path / "D")
    dataset(root, "3d_lowres", scale=1)
    with pytest.raises(CollectionError, match="nnUNetPlans_3d_fullres, nnUNetPlans_3d_lowres; name one"):
        run_import(root, out=tmp_path / "no")
    run_import(root, out=tmp_path / "out", overrides=["options.configuration=3d_lowres"])
    assert {sample.image.shape for sample in samples(tmp_path / "out")} == {(1, 12, 24, 32)}


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    case(folder, "good")
    case(folder, "lonely")
    (folder / "lonely.pkl").unlink()
    case(folder, "old", properties={"list_of_data_files": ["a"]})
    case(folder, "cut")
    (folder / "cut.npz").write_bytes((folder / "cut.npz").read_bytes()[:500])
    np.savez(folder / "other.npz", picture=np.zeros(3))
    (folder / "other.pkl").write_bytes(pickle.dumps({}))
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {flag}",)

    case(folder, "evil", properties={"spacing": Evil()})
    result = run_import(folder, out=tmp_path / "out", kind="nnunet", modality="mri", dataset="d")
    assert result.manifest.count == 1
    reasons = {failure.path.split(".")[0]: failure.reason for failure in result.failures}
    assert set(reasons) == {"lonely", "old", "cut", "other", "evil"}
    assert "copy its .pkl too" in reasons["lonely"]
    assert "not the properties of nnU-Net v2" in reasons["old"]
    assert "zip" in reasons["cut"]
    assert "holds no array `data`" in reasons["other"]
    assert ".system" in reasons["evil"]
    assert not flag.exists()


def test_no_fold_is_invented(tmp_path: Path) -> None:
    root = dataset(tmp_path / "D")
    with pytest.raises(CollectionError, match=r"no fold 3 in splits_final\.json, which has 1"):
        run_import(root, out=tmp_path / "out", overrides=["options.fold=3"])


def test_nibabel_s_properties_are_read_too(tmp_path: Path) -> None:
    affine = np.diag([-0.5, 0.8, 3.0, 1.0])
    affine[:3, 3] = (4, 5, 6)
    facts = {
        "nibabel_stuff": {"original_affine": affine},
        "spacing": SPACING,
        "bbox_used_for_cropping": [[0, 10]] * 3,
        "shape_after_cropping_and_before_resampling": (10, 10, 10),
    }
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(facts))
    found = nnunet.geometry_of(Given(properties=tmp_path / "c.pkl"), (10, 10, 10), "c")
    np.testing.assert_allclose(found.affine @ [1, 2, 3, 1], affine @ [3, 2, 1, 1])
    facts["spacing"] = (1.0, 2.0)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(facts))
    with pytest.raises(ReadError, match="three axes are expected"):
        nnunet.geometry_of(Given(properties=tmp_path / "c.pkl"), (10, 10, 10), "c")
