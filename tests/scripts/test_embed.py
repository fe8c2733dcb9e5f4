"""A new user: pull from a hub, embed and look, fine-tune, score, as docs/embed.md says it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.weights import save_encoder
from medloom.scripts import cli
from PIL import Image

from ..pretrain.hub_server import serve_hub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embed.md"
VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, "depth": 1, "embed_dim": 24,
       "num_heads": 2}  # fmt: skip
QUICK = "steps=2 validations=1 batch_size=4 image_size=32 device=cpu --no-baseline"


def write_phantoms(root: Path) -> None:
    """The layout of `medloom phantoms`, two subjects a class and split."""
    rng = np.random.default_rng(0)
    for place, split in enumerate(("train", "val", "test")):
        for level, label in enumerate(("normal", "benign", "malignant")):
            folder = root / "phantom_ultrasound" / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                stem = folder / f"phantom_us_{place * 6 + level * 2 + number:03d}_1"
                pixels = rng.integers(0, 80, (40, 40)) + 80 * level
                Image.fromarray(pixels.astype(np.uint8)).save(stem.with_suffix(".png"))
                mask = np.zeros((40, 40), np.uint8)
                Image.fromarray(mask).save(stem.with_name(f"{stem.name}_mask.png"))


def commands(root: Path) -> list[list[str]]:
    """The four lines of the page, with this test's hub and folder in place of the examples."""
    text = PAGE.read_text().split("## From a released encoder")[1].split("\n## ")[0]
    lines = re.findall(r"^medloom (.+)$", text, flags=re.MULTILINE)
    return [
        shlex.split(line.replace("ORG/NAME", "org/small").replace("runs/hand", str(root))) for line in lines
    ]


def test_four_commands_from_a_hub_to_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    record = {"input": {"crop": [32, 32], "channels": 3}, "held_out": {"rules": []}}
    save_encoder(tmp_path / "artefact", build_encoder(VIT), record)
    write_phantoms(tmp_path / "hand" / "phantoms")
    pull, embed, finetune, evaluate = commands(tmp_path / "hand")
    with serve_hub() as hub:
        hub.add("org/small", tmp_path / "artefact")
        hub.visit(monkeypatch, tmp_path / "cache")
        for words in (pull, embed, [*finetune, *QUICK.split()], evaluate):
            assert cli.main(words) == 0, capsys.readouterr().err
        assert hub.gets("/cdn/") == 1, "the weights are fetched once"
    table = pq.read_table(tmp_path / "hand" / "features.parquet")
    sha256 = json.loads((tmp_path / "artefact" / "encoder.json").read_text())["sha256"]
    assert table.schema.metadata[b"encoder_sha256"].decode() == sha256
    assert table.num_rows == 18 and not any("mask" in file for file in table["file"].to_pylist())
    picture = np.asarray(Image.open(tmp_path / "hand" / "map.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 9, "points of nine folders"
    summary = json.loads((tmp_path / "hand" / "released" / "evaluation" / "summary.json").read_text())
    assert "pretrained" in summary["arms"]
