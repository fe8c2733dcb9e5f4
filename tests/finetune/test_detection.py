"""Detection from the source's marks to boxes in the case's own pixels, in pictures and in volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.data.errors import CollectionError, ConfigError
from medloom.finetune.config import load_config
from medloom.finetune.detection.anchors import Anchors
from medloom.finetune.evaluation import evaluate
from medloom.finetune.overlays import PREDICTION, REFERENCE
from medloom.finetune.run import finetune
from PIL import Image

from .conftest import SALT, Workshop, write_table

SHARP = {"disc": 200.0, "square": 20.0}  # on a ground of 100


def write_smears(folder: Path, count: int = 24, size: tuple[int, int] = (64, 96)) -> None:
    """Pictures with bright discs and dark squares, and their boxes as Pascal VOC."""
    rng = np.random.default_rng(3)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        pixels = rng.normal(100, 8, size)
        objects = ""
        for x in rng.permutation(3)[: 1 + number % 3]:
            name, side = ("disc", 20) if rng.random() < 0.6 else ("square", 14)
            top, left = int(rng.integers(2, size[0] - side - 2)), int(32 * x + rng.integers(1, 32 - side))
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            if name == "disc":
                middle = side / 2 - 0.5
                inside &= (rows - top - middle) ** 2 + (columns - left - middle) ** 2 < (side / 2) ** 2
            pixels[inside] = SHARP[name]
            objects += (
                f"<object><name>{name}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{left + side}</xmax><ymax>{top + side}</ymax></bndbox></object>"
            )
        stem = f"patient-{number:02d}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{stem}.png")
        text = f"<annotation><filename>{stem}.png</filename>{objects}</annotation>"
        (folder / "annotations" / f"{stem}.xml").write_text(text)


def write_nodules(folder: Path, count: int = 16) -> None:
    """Volumes of thick slices with one to three bright balls, and their label maps."""
    import nibabel as nib

    rng = np.random.default_rng(4)
    folder.mkdir(parents=True)
    rows = []
    grid = np.mgrid[:48, :40, :20]  # x, y, z
    for number in range(count):
        image, mask = rng.normal(0, 30, (48, 40, 20)), np.zeros((48, 40, 20), dtype=np.uint8)
        for part in rng.permutation(3)[: 1 + number % 3]:
            centre = np.array([8 + 16 * part, rng.integers(8, 32), rng.integers(4, 16)])
            apart = (grid - centre[:, None, None, None]) * np.array([1, 1, 2])[:, None, None, None]
            inside = (apart**2).sum(axis=0) < 6**2
            image[inside], mask[inside] = 400, 2
        subject = f"patient-{number:02d}"
        for name, array in (("image", image.astype(np.int16)), ("mask", mask)):
            nib.Nifti1Image(array, np.diag([1, 1, 2, 1])).to_filename(folder / f"{subject}-{name}.nii.gz")
        split = "test" if number % 4 == 0 else "val" if number % 8 == 1 else "train"
        rows.append({"path": f"{subject}-image.nii.gz", "mask": f"{subject}-mask.nii.gz",
                     "subject": subject, "split": split})  # fmt: skip
    write_table(folder, rows)


@pytest.fixture(scope="module")
def smears(workshop: Workshop) -> Path:
    write_smears(workshop.root / "smears")
    return workshop.record("smears", {
        "kind": "detection", "classes": ["disc", "square"], "flips": [0, 1], "image_size": 64,
        "source": {"dataset": "smears", "layout": "voc", "root": "smears", "modality": "microscopy"},
        "split": {"rule": "by_subject", "fractions": [0.7, 0.1, 0.2]},
    })  # fmt: skip


@pytest.fixture(scope="module")
def nodules(workshop: Workshop) -> Path:
    write_nodules(workshop.root / "nodule_volumes")
    return workshop.record("volumes-nodules", {
        "kind": "detection", "boxes": "components", "structures": {2: "nodule"}, "flips": [1, 2],
        "source": {"dataset": "nodule_volumes", "layout": "table", "root": "nodule_volumes",
                   "modality": "mri",
                   "options": {"mask": "mask", "subject": "subject", "split": "split"}},
    })  # fmt: skip


@pytest.fixture(scope="module")
def smear_run(workshop: Workshop, smears: Path) -> Path:
    """Both arms, trained for long enough to find most objects."""
    return finetune(
        workshop.config(
            smears, workshop.root / "run-smears", "steps=40", "validations=2", "batch_size=8",
            "optim.head_lr=4e-3", "detection.width=16",
        )
    )  # fmt: skip


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def mean_of(found: dict[str, Any], arm: str, metric: str, structure: str = "") -> float:
    rows = [(row["metric"], row["structure"], row["mean"]) for row in found["arms"][arm]]
    return next(mean for *place, mean in rows if place == [metric, structure])


def test_objects_in_pictures_are_learnt_scored_and_written(
    workshop: Workshop, smear_run: Path, tmp_path: Path
) -> None:
    folder = evaluate(smear_run, out=tmp_path / "out", mirror=True)
    found = summary(folder)
    for arm in ("pretrained", "scratch"):
        assert mean_of(found, arm, "ap50") > 0.5
        assert 0 < mean_of(found, arm, "map") < mean_of(found, arm, "ap50")
        parts = [mean_of(found, arm, "ap50", name) for name in ("disc", "square")]
        assert mean_of(found, arm, "ap50") == pytest.approx(np.mean(parts))
        assert mean_of(found, arm, "froc", "8 FP") >= mean_of(found, arm, "froc", "0.125 FP")
    assert {row["metric"] for row in found["comparisons"]} == {"map", "ap50", "froc"}
    assert len(found["comparisons"]) == 3  # of the whole, not of its parts
    with (folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    keys = {row["case"] for row in csv.DictReader((folder / "cases.csv").open(newline=""))}
    assert {line["case"] for line in lines} <= keys
    for line in lines:
        # In the pixels of the picture (64 x 96), not of the square that the network saw.
        assert 0 <= float(line["y0"]) < float(line["y1"]) <= 64
        assert 0 <= float(line["x0"]) < float(line["x1"]) <= 96
    best = [line for line in lines if float(line["score"]) > 0.5]
    assert best
    assert max(float(line["x1"]) for line in best) > 64
    worst = found["worst"]
    assert worst
    colours = np.asarray(Image.open(folder / worst[0]["image"]))
    assert (colours == REFERENCE).all(axis=2).any()
    assert (colours == PREDICTION).all(axis=2).any()
    text = (folder / "report.html").read_text()
    assert "mAP" in text
    assert "disc" in text
    assert "patient-" not in text


def test_objects_in_volumes_are_found_by_windows(workshop: Workshop, nodules: Path, tmp_path: Path) -> None:
    config = workshop.config(
        nodules, tmp_path / "run", "steps=40", "validations=1", "batch_size=4", "baseline=false",
        "patch=[16,32,32]", "optim.head_lr=4e-3", "detection.width=16", "foreground=0.8",
    )  # fmt: skip
    run = finetune(config)
    folder = evaluate(run)
    found = summary(folder)
    assert mean_of(found, "pretrained", "map") > 0.4  # of IoU 0.10 to 0.50
    assert mean_of(found, "pretrained", "froc") > 0.5
    with (folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    high = [float(line[name]) for line in lines for name in ("z1",)]
    assert max(high) > 16  # beyond one window
    assert max(float(line["y1"]) for line in lines) <= 40


def test_a_stopped_run_goes_on_to_the_same_network(
    workshop: Workshop, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.finetune.tasks.detection import Detection
    from safetensors.torch import load_file

    items = ("steps=6", "validations=2", "batch_size=2", "detection.width=8", "baseline=false")
    whole = finetune(workshop.config(smears, tmp_path / "whole", *items))
    loss, calls = Detection.loss, []

    def failing(self: Any, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Detection, "loss", failing)
        with pytest.raises(KeyboardInterrupt):
            finetune(workshop.config(smears, tmp_path / "parts", *items))
    parts = finetune(workshop.config(smears, tmp_path / "parts", *items))
    a, b = (load_file(folder / "pretrained" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_frozen_encoder_stays_as_it_was(workshop: Workshop, smears: Path, tmp_path: Path) -> None:
    from medloom.pretrain.weights import load_encoder
    from safetensors.torch import load_file

    run = finetune(workshop.config(
        smears, tmp_path / "run", "steps=2", "validations=1", "detection.width=8", "protocol=linear"
    ))  # fmt: skip
    before, _ = load_encoder(str(workshop.root / "encoder2d"))
    after = load_file(run / "pretrained" / "model.safetensors")
    assert all(torch.equal(after[f"encoder.{name}"], value) for name, value in before.state_dict().items())
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"pretrained", "random", "scratch"}


def test_what_cannot_be_detected_is_refused(workshop: Workshop, smears: Path, tmp_path: Path) -> None:
    def change(**values: Any) -> Path:
        import yaml

        said = yaml.safe_load(smears.read_text()) | values
        return workshop.record("smears-changed", said | {"name": "smears-changed", "salt": SALT})

    with pytest.raises(CollectionError, match=r"no box named disk.*disc"):
        finetune(workshop.config(change(classes=["disk"]), tmp_path / "a"))
    for values, words in (
        ({"boxes": "shape"}, "shapes"),
        ({"boxes": "components"}, "structures"),
        ({"classes": []}, "classes"),
        ({"boxes": "instances"}, "one class"),
        ({"iou": [0.5, 0.1]}, "ascending"),
        ({"metrics": ["dice"]}, "unknown 'dice'"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(change(**values), [f"encoder={workshop.root / 'encoder2d'}"])
    with pytest.raises(ConfigError, match="does not go with detection"):
        finetune(workshop.config(smears, tmp_path / "b", "protocol=logistic"))


def test_masks_of_instances_become_boxes(workshop: Workshop, tmp_path: Path) -> None:
    from medloom.finetune.data import prepare
    from medloom.finetune.record import TaskRecord

    folder = workshop.root / "cells"
    folder.mkdir()
    mask = np.zeros((20, 20), dtype=np.uint16)
    mask[2:6, 3:9], mask[6:9, 3:9], mask[15:18, 15:18] = 1, 2, 300  # the first two touch
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.full((20, 20), 90, dtype=np.uint8)).save(folder / "image.png")
    write_table(folder, [{"path": "image.png", "mask": "mask.png"}])
    record = TaskRecord(
        name="cells", kind="detection", boxes="instances", classes=["cell"], salt=SALT,
        source={"dataset": "cells", "layout": "table", "root": "cells", "modality": "microscopy",
                "options": {"mask": "mask"}},
    )  # fmt: skip
    for _ in range(2):  # built, and read again
        data = prepare(record, root=workshop.root, cache=tmp_path)
        [found] = data.boxes.values()
        assert sorted(map(tuple, found.corners.tolist())) == [(2, 3, 6, 9), (6, 3, 9, 9), (15, 15, 18, 18)]
        assert set(found.labels.tolist()) == {0}


def test_the_plan_of_a_run_holds_its_anchors(smear_run: Path) -> None:
    import yaml

    plan = yaml.safe_load((smear_run / "plan.yaml").read_text())
    found = Anchors(**plan["anchors"])
    assert found.strides[0] == [4, 4]
    assert plan["resize"] == [64, 64]
