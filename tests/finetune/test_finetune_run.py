"""finetune/run.py and protocols.py: the run folder, equal arms, restarts that change nothing, refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from medloom.data.errors import CheckpointError, CollectionError, ConfigError, MedloomError
from medloom.finetune.run import finetune, load_arm, read_run
from medloom.finetune.splits import read_split
from safetensors.torch import load_file


def rows_of(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_is_complete_and_both_arms_did_the_same(segmentation_run: Path) -> None:
    config, plan, split = read_run(segmentation_run)
    assert config.task.name == "volumes"
    assert plan.patch[0] % 8 == 0
    assert sorted(set(split.values())) == ["test", "train", "val"]
    for arm in ("pretrained", "scratch"):
        assert (segmentation_run / arm / "model.safetensors").is_file()
        assert not (segmentation_run / arm / "last.ckpt").exists()
        rows = rows_of(segmentation_run / arm)
        assert [row["step"] for row in rows if "val/dice" in row] == [3, 6]
        assert rows[-1]["samples"] == 6 * plan.batch
    facts = [
        json.loads((segmentation_run / arm / "arm.json").read_text()) for arm in ("pretrained", "scratch")
    ]
    assert facts[0]["parameters"] == facts[1]["parameters"]
    assert facts[0]["step"] in (3, 6)


def test_nothing_that_is_written_names_a_person(
    workshop: Any, segmentation_run: Path, classification_run: Path
) -> None:
    for folder in (segmentation_run, classification_run, workshop.cache):
        for path in folder.rglob("*"):
            assert "patient-" not in path.name
            if path.is_file():
                assert b"patient-" not in path.read_bytes(), path


def test_the_scratch_arm_starts_elsewhere_and_the_heads_alike(
    workshop: Any, volumes: Path, tmp_path: Path
) -> None:
    """With a rate of zero the weights that come out are those that went in."""
    zero = ["optim.head_lr=0", "optim.encoder_lr=0", "optim.scratch_lr=0", "steps=1", "validations=1"]
    run = finetune(workshop.config(volumes, tmp_path / "run", *zero))
    pretrained, scratch = (load_file(run / arm / "model.safetensors") for arm in ("pretrained", "scratch"))
    source = load_file(workshop.root / "encoder3d" / "encoder.safetensors")
    assert pretrained.keys() == scratch.keys()
    for name, tensor in pretrained.items():
        if not name.startswith("encoder."):
            assert torch.equal(tensor, scratch[name]), name
        else:
            assert torch.equal(tensor, source[name.removeprefix("encoder.")])
    weight = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(pretrained[weight], scratch[weight])


def test_the_linear_protocol_leaves_the_encoder_alone(workshop: Any, volumes: Path, tmp_path: Path) -> None:
    run = finetune(workshop.config(volumes, tmp_path / "run", "protocol=linear"))
    source = load_file(workshop.root / "encoder3d" / "encoder.safetensors")
    frozen = load_file(run / "pretrained" / "model.safetensors")
    assert all(torch.equal(frozen[f"encoder.{name}"], tensor) for name, tensor in source.items())
    floor, trained = (load_file(run / arm / "model.safetensors") for arm in ("random", "scratch"))
    weight = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(floor[weight], frozen[weight])
    assert not torch.equal(floor[weight], trained[weight])  # the same start, but this one was trained


def test_logistic_regression_learns_and_its_layer_is_the_regression(classification_run: Path) -> None:
    facts = json.loads((classification_run / "pretrained" / "arm.json").read_text())
    assert facts["validation"]["auc"] > 0.9
    assert 1e-5 <= facts["C"] <= 1e2
    assert facts["frozen"]
    floor, scratch = (
        json.loads((classification_run / arm / "arm.json").read_text()) for arm in ("random", "scratch")
    )
    assert floor["frozen"]
    assert not scratch["frozen"]


class Killed(Exception):
    """Stands for a process that dies between two instructions."""


def _killing(at: int, arm: str):
    def progress(done: int, total: int, what: str) -> None:
        if arm in what and done == at:
            raise Killed

    return progress


@pytest.mark.parametrize(("at", "arm"), [(2, "pretrained"), (5, "pretrained"), (4, "scratch")])
def test_a_killed_run_continues_to_the_same_numbers(
    at: int, arm: str, workshop: Any, volumes: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    config = workshop.config(volumes, tmp_path / "run")
    with pytest.raises(Killed):
        finetune(config, progress=_killing(at, arm))
    finetune(config)
    for name in ("pretrained", "scratch"):
        assert rows_of(tmp_path / "run" / name) == rows_of(segmentation_run / name)
        ours, theirs = (
            load_file(run / name / "model.safetensors") for run in (tmp_path / "run", segmentation_run)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_signal_saves_and_the_same_command_goes_on(
    workshop: Any, volumes: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    config = workshop.config(volumes, tmp_path / "run")

    def progress(done: int, total: int, what: str) -> None:
        if "scratch" in what and done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = finetune(config, progress=progress)
    assert (folder / "scratch" / "last.ckpt").is_file()
    assert not (folder / "scratch" / "arm.json").exists()
    with pytest.raises(CheckpointError, match="not finished"):
        load_arm(None, folder / "scratch")  # type: ignore[arg-type]
    model = (folder / "pretrained" / "model.safetensors").stat().st_mtime_ns
    finetune(config)
    assert (folder / "pretrained" / "model.safetensors").stat().st_mtime_ns == model  # not repeated
    assert rows_of(folder / "scratch") == rows_of(segmentation_run / "scratch")


def test_a_checkpoint_cut_in_half_starts_the_arm_again(
    workshop: Any, volumes: Path, segmentation_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = workshop.config(volumes, tmp_path / "run", "baseline=false")
    with pytest.raises(Killed):
        finetune(config, progress=_killing(5, "pretrained"))
    path = tmp_path / "run" / "pretrained" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    finetune(config)
    assert "damaged" in caplog.text
    assert rows_of(tmp_path / "run" / "pretrained") == rows_of(segmentation_run / "pretrained")


def test_another_configuration_and_a_foreign_folder_are_refused(
    workshop: Any, volumes: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(segmentation_run, folder)
    with pytest.raises(ConfigError, match="seed was 0, is 3"):
        finetune(workshop.config(volumes, folder, "seed=3"))
    before = (folder / "scratch" / "model.safetensors").stat().st_mtime_ns
    finetune(workshop.config(volumes, folder, "workers=0"))  # how it runs may change
    assert (folder / "scratch" / "model.safetensors").stat().st_mtime_ns == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("text")
    with pytest.raises(ConfigError, match="no fine-tuning run"):
        finetune(workshop.config(volumes, foreign))


def test_an_encoder_of_the_wrong_dimension_is_refused(workshop: Any, volumes: Path, tmp_path: Path) -> None:
    config = workshop.config(volumes, tmp_path / "run", f"encoder={workshop.root / 'encoder2d'}")
    with pytest.raises(ConfigError, match="give a 3D encoder"):
        finetune(config)
    assert not (tmp_path / "run").exists(), "the corrected command may use the same name"


def test_random_weights_do_not_inherit_the_history_of_their_architecture(
    workshop: Any, pictures: Path, tmp_path: Path
) -> None:
    config = workshop.config(
        pictures,
        tmp_path / "run",
        f"encoder=random:{workshop.root / 'encoder2d'}",
        "protocol=logistic",
        "baseline=false",
    )
    record = json.loads((finetune(config) / "encoder.json").read_text())
    assert record == {"source": "random:encoder2d"}


def test_a_class_without_a_test_case_is_refused(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(pictures.read_text()) | {
        "classes": ["dark", "bright", "striped"],
        "name": "pictures-3",
    }
    record = tmp_path / "pictures-3.yaml"
    record.write_text(yaml.safe_dump(values))
    with pytest.raises(CollectionError, match="class 'striped' has no case in train"):
        finetune(workshop.config(record, tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_with_the_mend(workshop: Any, volumes: Path, tmp_path: Path) -> None:
    config = workshop.config(volumes, tmp_path / "run", "optim.head_lr=1e30", "optim.warmup_fraction=0")
    with pytest.raises(MedloomError, match="lower optim"):
        finetune(config)


def test_the_label_fraction_leaves_subjects_unused(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    run = finetune(workshop.config(
        pictures, tmp_path / "run", "protocol=logistic", "fraction=0.5", "baseline=false"
    ))  # fmt: skip
    split = read_split(run / "split.csv")
    assert list(split.values()).count("unused") == list(split.values()).count("train")
    with (run / "split.csv").open() as file:
        subjects = {row["subject"]: row["used"] for row in csv.DictReader(file)}
    assert set(subjects.values()) == {"0", "1"}
