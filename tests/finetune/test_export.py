"""finetune/export: what leaves computes what was trained, also where medloom is not installed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.export import export
from medloom.finetune.export.graph import Graph, compared, trace
from medloom.finetune.prediction import predict
from medloom.scripts import cli

BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("medloom", "timm"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocked())
try:
    import medloom.data
    raise SystemExit("medloom is not blocked")
except ImportError:
    pass
sys.path.insert(0, "")
import monai.bundle
monai.bundle.run(config_file="configs/inference.json", input=sys.argv[1], output_dir=sys.argv[2])
"""


def run_bundle(folder: Path, images: Path, out: Path) -> None:
    """Run the bundle by MONAI alone, in a process that cannot import medloom."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(images), str(out)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def segmentation(segmentation_run: Path) -> Graph:
    return trace(segmentation_run, "pretrained")


def test_onnx_computes_what_torch_does_on_real_images(
    segmentation_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    arguments = ["export", str(segmentation_run), "--to", "onnx", "--out", str(tmp_path / "onnx")]
    assert cli.main(arguments) == 0
    assert "on 4 images of the task" in capsys.readouterr().out
    said = json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())
    assert said["check"]["real"]
    assert 0 <= said["check"]["max_abs_difference"] < 1e-4
    assert said["output"]["mask_values"] == [0, 1, 2]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    for batch in (1, 3):
        x = np.zeros((batch, said["input"]["channels"], *said["input"]["sides"]), np.float32)
        found = np.asarray(session.run([said["output"]["name"]], {said["input"]["name"]: x})[0])
        assert found.shape == (batch, 3, *said["input"]["sides"])
        assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_an_export_that_computes_something_else_is_refused(segmentation: Graph) -> None:
    def other(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = segmentation.module(torch.from_numpy(x)).numpy()
        found[0, 0, 0] += 1e-3
        return found

    with pytest.raises(ConfigError, match=r"differs by 0\.001"):
        compared(segmentation, other, "model.onnx")


@pytest.mark.parametrize("codes", [pytest.param("RAS", marks=pytest.mark.slow), "PIL"])
def test_a_bundle_segments_as_medloom_where_medloom_is_not(
    segmentation_run: Path, workshop: Any, tmp_path: Path, codes: str
) -> None:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    images = tmp_path / "images"
    images.mkdir()
    for number, spacing in ((7, [1.0, 1.0, 1.0]), (9, [0.8, 1.3, 1.1])):  # the second one is resampled
        source: Any = nib.load(workshop.root / "volumes" / f"patient-0{number}-image.nii.gz")
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = [-20.0, 5.5, 3.0]
        image: Any = nib.Nifti1Image(np.asarray(source.dataobj), affine)
        turn = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(codes)))
        image.as_reoriented(turn).to_filename(images / f"case{number}.nii.gz")
    check = export(segmentation_run, "monai-bundle", tmp_path / "bundle")
    assert check["max_abs_difference"] < 1e-4
    run_bundle(tmp_path / "bundle", images, tmp_path / "out")
    predict(segmentation_run, [images], tmp_path / "own")
    for number in (7, 9):
        mine: Any = nib.load(tmp_path / "own" / f"case{number}.nii.gz")
        theirs: Any = nib.load(tmp_path / "out" / f"case{number}_seg.nii.gz")
        assert np.allclose(mine.affine, theirs.affine)
        a, b = np.asarray(mine.dataobj), np.asarray(theirs.dataobj)
        assert (a > 0).any()
        assert (a != b).mean() < 1e-3  # ties of rounding alone


def test_a_bundle_of_pictures_writes_the_same_table(
    classification_run: Path, workshop: Any, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        shutil.copy(workshop.root / "pictures" / f"patient-0{number}-0.png", images)
    export(classification_run, "monai-bundle", tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", images, tmp_path / "out")
    predict(classification_run, [images], tmp_path / "own")
    tables = []
    for path in (tmp_path / "out" / "predictions.csv", tmp_path / "own" / "predictions.csv"):
        with path.open(newline="") as file:
            rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
        tables.append(rows)
    assert tables[0].keys() == tables[1].keys()
    for name, row in tables[0].items():
        for column in ("p_dark", "p_bright"):
            assert float(row[column]) == pytest.approx(float(tables[1][name][column]), abs=1e-5)
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "dark", "1": "bright"}


def test_without_the_data_noise_is_compared_and_said(
    classification_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(classification_run, run)
    config = (run / "config.yaml").read_text()
    root = next(line for line in config.splitlines() if line.startswith("root:"))
    (run / "config.yaml").write_text(config.replace(root, f"root: {tmp_path / 'gone'}"))
    graph = trace(run, "scratch")
    assert not graph.real
    assert not graph.dense


def test_an_unknown_form_lists_the_known(classification_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="monai-bundle"):
        export(classification_run, "monai", tmp_path)
