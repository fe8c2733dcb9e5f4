"""What medloom exports in nnU-Net's raw layout is read back by the layout of that name, voxel by voxel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from medloom.data.collection import Collection, SourceConfig, source_of_config
from medloom.data.ingest.build import build
from medloom.data.interop.export import export
from medloom.data.shards.reader import Shards

RNG = np.random.default_rng(0)


def test_an_export_of_several_channels_is_read_back(tmp_path: Path, scan: Callable) -> None:
    affine = np.diag([0.8, 0.8, 2.5, 1])
    for case in ("a", "b"):
        (tmp_path / "in" / case).mkdir(parents=True)
        for word, top in (("t1", 900), ("t2", 900), ("seg", 3)):
            array = RNG.integers(0, top, (9, 8, 5)).astype(np.int16)
            nib.save(nib.Nifti1Image(array, affine), tmp_path / "in" / case / f"{case}_{word}.nii.gz")
    options = {"channels": ["t1", "t2"], "mask": "seg"}
    config = SourceConfig(
        dataset="brain", layout="cases", root=str(tmp_path / "in"), modality="mri", options=options,
        mask_classes={1: "edema", 2: "core"},
    )  # fmt: skip
    first = built(config, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "raw", layout="nnunet")
    (folder,) = (tmp_path / "raw").rglob("dataset.json")
    assert len(json.loads(folder.read_text())["channel_names"]) == 2
    again = SourceConfig(dataset="brain", layout="nnunet_raw", root=str(folder.parent), modality="mri")
    second = built(again, tmp_path / "two")
    assert len(first) == len(second) == 2
    for image, mask in first:
        assert any(np.array_equal(image, other) and np.array_equal(mask, map_) for other, map_ in second)


def built(config: SourceConfig, out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    source = source_of_config(config, Path("/"), "s")
    result = build(Collection("all", out.parent, (source,), (), "a salt of sixteen characters"), out)
    assert result.failures == []
    shards = Shards.open(out)
    samples = [shards.sample(ref) for ref in shards.refs()]
    return [(sample.image, sample.mask) for sample in samples if sample.mask is not None]
