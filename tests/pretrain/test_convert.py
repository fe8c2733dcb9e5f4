"""Encoders in other forms: the same features in each, and a record that still says what was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from medloom.data.errors import CheckpointError, ConfigError
from medloom.pretrain.artefact import read_record
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub.convert import _without_folders, convert
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder, save_encoder
from safetensors.torch import load_file

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
VIT: dict[str, Any] = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, **SMALL}
INPUT = {"rule": 1, "crop": [64, 64], "channels": 3, "modalities": {}}
TRAINING = {"steps": 7, "sources": [{"dataset": "a", "licence": "CC0-1.0", "count": 3}]}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    provenance = {"input": INPUT, "training": TRAINING, "held_out": {"rules": []}}
    save_encoder(tmp_path / "flat", build_encoder(VIT), provenance)
    return tmp_path / "flat"


@torch.no_grad()
def pooled(name: str | Path, x: torch.Tensor) -> torch.Tensor:
    return load_encoder(name)[0].eval()(x).pooled


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]) -> Path:
    """A run that ended."""
    return pretrain(tiny_config(tmp_path_factory.mktemp("runs") / "run"))


def test_a_checkpoint_becomes_the_artefact_that_its_run_wrote(run: Path, tmp_path: Path) -> None:
    convert(str(run / "last.ckpt"), "artefact", tmp_path / "out")
    ours, theirs = read_record(tmp_path / "out" / "encoder.json"), read_record(run / "encoder.json")
    assert ours.pop("checkpoint") == {"step": 12, "weights": "trained"}
    assert ours["training"].pop("of_steps") == 12
    assert ours == theirs


def test_a_checkpoint_of_a_stopped_run_is_converted_by_its_folder(run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "encoder.json").unlink()
    convert(str(stopped), "artefact", tmp_path / "out")
    assert read_record(tmp_path / "out" / "encoder.json")["training"]["sources"]


def test_without_its_shards_a_checkpoint_says_nothing_of_training(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "last.ckpt", alone)
    convert(str(alone / "last.ckpt"), "artefact", tmp_path / "out")
    record = read_record(tmp_path / "out" / "encoder.json")
    assert "training" not in record and record["checkpoint"]["step"] == 12
    assert "the record will not say what it was trained on" in caplog.text


def test_the_teacher_of_a_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    payload = torch.load(run / "last.ckpt", weights_only=True)
    state = {key: value for key, value in payload["state_dict"].items() if key.startswith("encoder.")}
    payload["state_dict"] |= {f"objective.teacher.{key}": value * 2 for key, value in state.items()}
    payload["medloom"]["released"] = "objective.teacher.encoder."
    torch.save(payload, tmp_path / "teacher.ckpt")
    convert(str(tmp_path / "teacher.ckpt"), "artefact", tmp_path / "out")
    assert read_record(tmp_path / "out" / "encoder.json")["checkpoint"]["weights"] == "teacher"
    found = load_file(tmp_path / "out" / "encoder.safetensors")
    assert torch.equal(found["norm.bias"], payload["state_dict"]["objective.teacher.encoder.model.norm.bias"])


@torch.no_grad()
def test_timm_reads_its_form(flat: Path, tmp_path: Path) -> None:
    report = convert(str(flat), "timm", tmp_path / "timm", in_channels=1)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=0).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model(x), pooled(flat, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), pooled(tmp_path / "timm", x))
    assert report.adapted == ["patch_embed.proj.weight: 3 -> 1 channels"]


@torch.no_grad()
def test_a_state_dict_has_the_names_of_the_library(flat: Path, tmp_path: Path) -> None:
    convert(str(flat), "state-dict", tmp_path / "plain.safetensors")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **SMALL).eval()
    model.load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), pooled(flat, x))


def test_the_record_keeps_what_was_trained_and_says_what_was_done(flat: Path, tmp_path: Path) -> None:
    convert(str(flat), "artefact", tmp_path / "grey", in_channels=1)
    before, after = read_record(flat / "encoder.json"), read_record(tmp_path / "grey" / "encoder.json")
    assert after["training"] == TRAINING and after["in_channels"] == after["input"]["channels"] == 1
    assert after["converted"]["sha256"] == before["sha256"] != after["sha256"]
    assert "3 -> 1 channels" in after["converted"]["adapted"][0]
    convert(str(flat), "artefact", tmp_path / "same")
    assert read_record(tmp_path / "same" / "encoder.json") == before


def test_random_weights_keep_no_training(flat: Path, tmp_path: Path) -> None:
    convert(f"random:{flat}", "artefact", tmp_path / "out")
    record = read_record(tmp_path / "out" / "encoder.json")
    assert record["source"] == "random:flat" and record["input"] == INPUT
    assert not {"training", "held_out"} & set(record)


def test_changed_weights_do_not_keep_what_was_found_on_others(flat: Path, tmp_path: Path) -> None:
    found = {
        "scores": [1],
        "gate": [1],
        "probes": {"a": 1},
        "release": {"name": "x"},
        "compute": {"hours": 1},
    }
    record = {**read_record(flat / "encoder.json"), **found, "timm": True, "licences": {"parts": []}}
    (flat / "encoder.json").write_text(json.dumps(record))
    convert(str(flat), "artefact", tmp_path / "same")
    assert read_record(tmp_path / "same" / "encoder.json") == record
    convert(str(flat), "artefact", tmp_path / "grey", in_channels=1)
    grey = read_record(tmp_path / "grey" / "encoder.json")
    assert not {*found, "timm"} & set(grey) and grey["training"] == TRAINING and "licences" in grey


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("monai:SwinUNETR@/data/of/me/model.pt", "monai:SwinUNETR@model.pt"),
        ("hf-hub:org/name@main", "hf-hub:org/name@main"),
        ("hfolder/of/me/encoder", "encoder"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
    ],
)
def test_the_record_names_its_source_without_folders(name: str, said: str) -> None:
    assert _without_folders(name) == said


FLAT: dict[str, dict[str, Any]] = {
    "vit": {"kwargs": {"pos_embed": "none"}, **VIT},
    "scaled": {"kwargs": {"init_values": 1e-5, "pos_embed": "none", "reg_tokens": 2}, **VIT},
    "mean": {"kwargs": {"global_pool": "avg", "pos_embed": "none", "fc_norm": False}, **VIT},
    "convnext": {"name": "convnet", "model": "convnext_atto"},
}


@pytest.mark.parametrize("key", list(FLAT))
@torch.no_grad()
def test_a_2d_encoder_starts_a_3d_one(key: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(FLAT[key]).eval()
    save_encoder(tmp_path / "flat", encoder, {"input": INPUT, "training": TRAINING})
    convert(str(tmp_path / "flat"), "artefact", tmp_path / "solid", in_channels=1, patch_depth=4)
    record = read_record(tmp_path / "solid" / "encoder.json")
    assert record["ndim"] == 3 and record["in_channels"] == 1 and record["training"] == TRAINING
    assert record["input"] == {"rule": 1, "channels": 1, "modalities": {}}
    assert any("repeated along depth" in done for done in record["converted"]["adapted"])
    solid, report = load_encoder(tmp_path / "solid")
    assert not report.missing and solid.patch_size[1:] == encoder.patch_size
    if key == "convnext":
        x = torch.randn(1, 1, 64, 64)
        same = x.unsqueeze(2).expand(-1, -1, solid.patch_size[0], -1, -1)
        expected = encoder(x.expand(-1, 3, -1, -1)).pooled
        torch.testing.assert_close(solid.eval()(same).pooled, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("section", "form", "options", "message"),
    [
        (VIT, "tim", {}, "did you mean timm"),
        ({"name": "vit3d", "patch_size": [8, 8, 8], **SMALL}, "timm", {}, "timm has no network like vit3d"),
        ({"name": "vit3d", "patch_size": [8, 8, 8], **SMALL}, "artefact", {"patch_depth": 4}, "vit3d is 3D"),
        ({"name": "convnet", "model": "resnet10t"}, "artefact", {"patch_depth": 4}, "no 3D counterpart"),
        (VIT, "artefact", {"patch_depth": 0}, "depth of at least 1"),
        (VIT, "state-dict", {}, r"call it out\.safetensors"),
    ],
)
def test_what_cannot_be_made_is_refused(
    section: dict[str, Any], form: str, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    save_encoder(tmp_path / "from", build_encoder(section), {})
    with pytest.raises(ConfigError, match=message):
        convert(str(tmp_path / "from"), form, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(flat: Path) -> None:
    before = json.loads((flat / "encoder.json").read_text())
    with pytest.raises(CheckpointError, match="exists: choose another --out"):
        convert(str(flat), "artefact", flat, in_channels=1)
    assert json.loads((flat / "encoder.json").read_text()) == before


@pytest.mark.parametrize("version", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_swin_is_read_back_from_the_names_that_timm_wants_in_a_file(version: str, tmp_path: Path) -> None:
    small = {"depths": [1, 1, 1, 1], "embed_dim": 12, "num_heads": [1, 2, 2, 2], "window_size": 4}
    torch.manual_seed(0)
    encoder = build_encoder({"name": "swin", "model": version, "img_size": 64, "kwargs": small}).eval()
    save_encoder(tmp_path / "swin", encoder, {})
    convert(str(tmp_path / "swin"), "timm", tmp_path / "timm")
    convert(str(tmp_path / "swin"), "state-dict", tmp_path / "plain.safetensors")
    x = torch.randn(1, 3, 64, 64)
    for folder in ("swin", "timm"):
        model = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True, num_classes=0).eval()
        assert torch.equal(model(x), encoder(x).pooled) and torch.equal(
            pooled(tmp_path / folder, x), model(x)
        )
    names = set(load_file(tmp_path / "plain.safetensors"))
    assert names == {name.removeprefix("model.") for name in encoder.state_dict()}
