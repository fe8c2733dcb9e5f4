"""finetune/prediction: new images come out on their own grid, with the very predictions that are scored."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.data import prepare
from medloom.finetune.prediction import predict
from medloom.finetune.prediction.predict import _Work
from medloom.finetune.run import load_arm, read_run
from medloom.finetune.tasks import TASKS
from medloom.scripts import cli
from PIL import Image

ORIENTATIONS = ["RAS", "LPS", "PIR", "SLA", "AIL"]


def table(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def scored(run: Path, arm: str = "pretrained") -> dict[str, Any]:
    """Content hash of each test case -> what `medloom evaluate` scores of it."""
    config, plan, parts = read_run(run)
    data = prepare(config.task, root=config.root or ".", cache=config.cache)
    task = TASKS[config.task.kind](config, data, plan, parts)
    network, _ = load_arm(task, run / arm)
    cases = task.cases["test"]
    found = task.predictions(network, cases, torch.device("cpu"))
    return {case.meta["content_hash"]: one for case, one in zip(cases, found, strict=True)}


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_label_map_lies_on_the_grid_of_its_input(
    segmentation_run: Path, workshop: Any, tmp_path: Path, codes: str
) -> None:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    upright: Any = nib.load(workshop.root / "volumes" / "patient-09-image.nii.gz")
    turn = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(codes)))
    angle = 0.2
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = oblique @ np.diag([1.0, 1.25, 1.5, 1.0])
    affine[:3, 3] = [-31.5, 12.25, 7.125]
    base = nib.Nifti1Image(np.asarray(upright.dataobj), affine)
    base.set_qform(affine, code=1)
    base.set_sform(affine, code=2)
    base.header.set_xyzt_units("mm")
    turned: Any = base.as_reoriented(turn)
    for name, image in (("upright", base), ("turned", turned)):
        image.to_filename(tmp_path / f"{name}.nii.gz")
    done = predict(
        segmentation_run, [tmp_path / "upright.nii.gz", tmp_path / "turned.nii.gz"], tmp_path / "out"
    )
    assert (done.files, done.failed) == (2, 0)
    results: dict[str, Any] = {}
    for name in ("upright", "turned"):
        source: Any = nib.load(tmp_path / f"{name}.nii.gz")
        result: Any = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert result.shape == source.shape
        assert np.array_equal(result.affine, source.affine)
        for key in ("sform_code", "qform_code", "xyzt_units"):
            assert result.header[key] == source.header[key]
        assert np.array_equal(result.header["pixdim"][:4], source.header["pixdim"][:4])
        assert result.get_data_dtype() == np.uint8
        results[name] = result
    assert (np.asarray(results["upright"].dataobj) > 0).any()
    again = np.asarray(results["upright"].as_reoriented(turn).dataobj)
    assert np.array_equal(again, np.asarray(results["turned"].dataobj))


def test_what_is_predicted_is_what_is_scored(segmentation_run: Path, workshop: Any, tmp_path: Path) -> None:
    from medloom.data.ingest.ingest import content_hash
    from medloom.data.readers import read

    expected, names = scored(segmentation_run), {"patient-07", "patient-08", "patient-09"}
    files = [workshop.root / "volumes" / f"{name}-image.nii.gz" for name in sorted(names)]
    predict(segmentation_run, files, tmp_path / "out")
    for file in files:
        labels: Any = nib.load(tmp_path / "out" / file.name)
        own = expected.pop(content_hash(read([file])[0].array))
        assert np.array_equal(np.asarray(labels.dataobj).transpose(), own)
    assert not expected
    rows = table(tmp_path / "out")
    assert {row["file"] for row in rows} == {f"{name}-image" for name in names}
    assert all(float(row["outer ml"]) >= 0 and row["output"] == f"{row['file']}.nii.gz" for row in rows)


def test_probabilities_of_pictures_are_those_that_are_scored(
    classification_run: Path, workshop: Any, tmp_path: Path
) -> None:
    from medloom.data.ingest.ingest import content_hash
    from medloom.data.readers import read

    predict(classification_run, [workshop.root / "pictures"], tmp_path / "out", arm="all")
    expected = {arm: scored(classification_run, arm) for arm in ("pretrained", "random", "scratch")}
    rows = table(tmp_path / "out")
    assert len(rows) == 48 * 3
    compared = 0
    for row in rows:
        file = workshop.root / "pictures" / f"{row['file']}.png"
        known = expected[row["arm"]].get(content_hash(read([file])[0].array))
        if known is not None:
            compared += 1
            found = np.array([float(row["p_dark"]), float(row["p_bright"])])
            assert np.abs(found - known).max() < 2e-6
            assert row["prediction"] == ["dark", "bright"][int(known.argmax())]
    assert compared == 12 * 3


def test_an_ensemble_averages_what_is_scored(classification_run: Path, workshop: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(classification_run, other)
    for name in ("model.safetensors", "arm.json"):
        shutil.copy(other / "scratch" / name, other / "pretrained" / name)
    file = workshop.root / "pictures" / "patient-00-0.png"
    runs = [(classification_run, []), (other, []), (classification_run, [other])]
    values = []
    for number, (run, more) in enumerate(runs):
        predict(run, [file], tmp_path / str(number), ensemble=more)
        values.append(float(table(tmp_path / str(number))[0]["p_bright"]))
    assert abs(values[0] - values[1]) > 1e-3
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=2e-6)


def test_runs_of_other_tasks_are_no_ensemble(
    classification_run: Path, segmentation_run: Path, workshop: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="other things"):
        predict(segmentation_run, [workshop.root / "volumes"], tmp_path, ensemble=[classification_run])


def test_one_bad_file_never_ends_it_and_no_name_is_logged(
    classification_run: Path, workshop: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "new"
    (folder / "deep").mkdir(parents=True)
    for name in ("JohnDoe.png", "deep/JaneDoe.png"):
        shutil.copy(workshop.root / "pictures" / "patient-00-0.png", folder / name)
    (folder / "Broken.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    shutil.copy(workshop.root / "volumes" / "patient-00-image.nii.gz", folder / "Volume.nii.gz")
    (folder / "notes.txt").write_text("no image")
    with caplog.at_level(logging.DEBUG, logger="medloom"):
        done = predict(classification_run, [folder], tmp_path / "out")
    assert (done.files, done.failed) == (2, 2)
    assert [row["file"] for row in table(tmp_path / "out")] == ["JohnDoe", "deep/JaneDoe"]
    reasons = {row["file"]: row["reason"] for row in table(tmp_path / "out", "failures.csv")}
    assert "trained on 2D" in reasons["Volume"]
    assert "truncated" in reasons["Broken"] or "picture" in reasons["Broken"]
    assert not any(word in caplog.text for word in ("JohnDoe", "JaneDoe", "Broken", "Volume", str(folder)))


def test_a_killed_prediction_continues_and_a_changed_file_is_predicted_again(
    segmentation_run: Path, workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "new", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        shutil.copy(
            workshop.root / "volumes" / f"patient-0{number}-image.nii.gz", folder / f"{number}.nii.gz"
        )
    straight = predict(segmentation_run, [folder], tmp_path / "straight")
    write = _Work.write
    seen: list[str] = []

    def counting(self: Any, arm: str, item: Any, case: Any, labels: np.ndarray) -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(item.name)
        return write(self, arm, item, case, labels)

    monkeypatch.setattr(_Work, "write", counting)
    monkeypatch.setattr(_Work, "full", property(lambda self: True))  # a group each
    with pytest.raises(KeyboardInterrupt):
        predict(segmentation_run, [folder], out)
    with (out / "journal.jsonl").open("a") as file:
        file.write('{"file": "2", "sta')  # cut short
    seen.clear()
    done = predict(segmentation_run, [folder], out)
    assert (done.files, done.before, seen) == (3, 2, ["2"])
    for name in ("predictions.csv", "0.nii.gz", "1.nii.gz", "2.nii.gz"):
        assert (out / name).read_bytes() == (straight.folder / name).read_bytes()
    shutil.copy(workshop.root / "volumes" / "patient-05-image.nii.gz", folder / "1.nii.gz")
    seen.clear()
    assert predict(segmentation_run, [folder], out).before == 2
    assert seen == ["1"]
    with pytest.raises(ConfigError, match="choose another --out"):
        predict(segmentation_run, [folder], out, arm="scratch")
    with pytest.raises(ConfigError, match="not empty"):
        predict(segmentation_run, [folder], folder)


def test_names_never_collide(workshop: Any, tmp_path: Path, classification_run: Path) -> None:
    picture = Image.open(workshop.root / "pictures" / "patient-00-0.png")
    for name in ("a.png", "a.tif", "a.bmp"):
        picture.save(tmp_path / name)
    predict(classification_run, [tmp_path], tmp_path / "out")
    assert [row["file"] for row in table(tmp_path / "out")] == ["a-bmp", "a-png", "a-tif"]


def write_series(folder: Path, volume: np.ndarray, oblique: bool) -> None:
    """Slices [D, H, W] of int16 as CT files under random names, the top one first."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    angle = 0.3 if oblique else 0.0
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.cross(row, column)
    for index in range(len(volume)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = FileDataset(str(folder / "x"), {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientID, one.PatientName, one.Modality = "p1", "Doe^J", "CT"
        one.PatientBirthDate = one.PatientSex = one.StudyDate = one.StudyTime = one.StudyID = ""
        one.AccessionNumber = one.ReferringPhysicianName = ""
        one.SeriesNumber, one.InstanceNumber = 3, len(volume) - index
        one.ImagePositionPatient = [float(x) for x in np.array([-10.0, 5.0, 2.0]) + 2.0 * index * normal]
        one.ImageOrientationPatient = [*row, *column]
        one.PixelSpacing, one.SliceThickness = [1.5, 1.25], 2.0
        one.Rows, one.Columns = volume.shape[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        one.PixelData = volume[index].astype("<i2").tobytes()
        one.save_as(folder / f"{(index * 7) % 97:02d}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("oblique", [False, True])
def test_a_dicom_series_becomes_nifti_or_a_segmentation(
    segmentation_run: Path, workshop: Any, tmp_path: Path, oblique: bool
) -> None:
    from medloom.data.readers import read, read_label_map

    image: Any = nib.load(workshop.root / "volumes" / "patient-09-image.nii.gz")
    write_series(tmp_path / "in" / "scan", np.asarray(image.dataobj).transpose(), oblique)
    assert predict(segmentation_run, [tmp_path / "in"], tmp_path / "nifti").files == 1
    assert predict(segmentation_run, [tmp_path / "in"], tmp_path / "seg", dicom_seg=True).files == 1
    files = sorted((tmp_path / "in" / "scan").iterdir())
    like = read(files)[0]
    from_nifti = read_label_map(tmp_path / "nifti" / "scan.nii.gz", like)
    from_seg = read_label_map(tmp_path / "seg" / "scan.seg.dcm", like)
    assert (from_nifti > 0).any()
    assert np.array_equal(from_nifti, from_seg)


def test_the_command_says_what_came_of_it(
    classification_run: Path, workshop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = workshop.root / "pictures" / "patient-00-0.png"
    assert cli.main(["predict", str(classification_run), str(good), "--out", str(tmp_path / "one")]) == 0
    assert "predicted: 1 files" in capsys.readouterr().out
    (tmp_path / "bad.png").write_bytes(b"nothing")
    inputs = [str(good), str(tmp_path / "bad.png")]
    assert cli.main(["predict", str(classification_run), *inputs, "--out", str(tmp_path / "two")]) == 1
    assert "not usable: 1 files" in capsys.readouterr().out
    assert (
        cli.main(["predict", str(classification_run), str(tmp_path / "no"), "--out", str(tmp_path / "x")])
        == 2
    )
    arguments = ["predict", str(classification_run), str(good), "--out", str(tmp_path / "x"), "--arm", "typo"]
    assert cli.main(arguments) == 2
    assert "finished: pretrained, random, scratch" in capsys.readouterr().err
    assert json.loads((tmp_path / "one" / "predict.json").read_text())["arm"] == "pretrained"
