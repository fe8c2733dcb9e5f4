"""A small encoder on the loopback hub: its names, its registry, its features and a process that pulls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from medloom.pretrain.hub.registry import entry
from medloom.pretrain.weights import load_encoder

from ..hub_server import Hub

VIT = {
    "name": "vit",
    "model": "vit_tiny_patch16_224",
    "img_size": 32,
    "depth": 1,
    "embed_dim": 24,
    "num_heads": 2,
}
REPO = "org/encoder"
NAME = f"hf-hub:{REPO}"


def register(hub: Hub, artefact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    record = json.loads((artefact / "encoder.json").read_text()) | changed
    text = entry(
        "small-2d",
        record,
        repo=REPO,
        commit=hub.repositories[REPO].head,
        title="for tests",
        licence="CC0-1.0",
    )
    (folder / "registry.yaml").write_text(text)
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(folder / "registry.yaml"))
    return "small-2d"


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def features(source: str | Path) -> torch.Tensor:
    encoder, report = load_encoder(source)
    assert not report.missing and not report.unexpected
    with torch.no_grad():
        return encoder.eval()(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).pooled


PULL = """
import sys
from medloom.data.errors import MedloomError
from medloom.pretrain.hub.pull import pull
try:
    print(pull(sys.argv[1]).bytes)
except MedloomError as error:
    sys.exit(print(error, file=sys.stderr) or error.status)
assert "torch" not in sys.modules, "fetching must stay light"
"""


def pulling(environment: dict[str, str], name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, name], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
