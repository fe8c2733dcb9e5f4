"""A loopback hub with a small encoder on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub import fetch as fetching
from medloom.pretrain.weights import save_encoder

from ..hub_server import Hub, serve_hub
from .small import REPO, VIT, register


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder as medloom writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("artefact")
    save_encoder(folder, build_encoder(VIT), {"held_out": {"rules": []}})
    (folder / "README.md").write_text("# An encoder\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a huggingface_hub that knows only it."""
    with serve_hub() as server:
        server.visit(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(fetching, "WAIT", 0.0)
        monkeypatch.delenv("MEDLOOM_WEIGHTS", raising=False)
        yield server


@pytest.fixture
def published(hub: Hub, artefact: Path) -> Hub:
    """The hub with the encoder on it."""
    hub.add(REPO, artefact)
    return hub


@pytest.fixture
def known(published: Hub, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name in a registry that pins it."""
    return register(published, artefact, tmp_path, monkeypatch)
