"""`medloom weights` as a user types it: list, info, pull, convert, against a hub on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub.registry import entry, registry
from medloom.pretrain.release.card import card
from medloom.pretrain.release.push import Pushed
from medloom.pretrain.release.verify import Verdict
from medloom.pretrain.weights import load_encoder, save_encoder
from medloom.scripts import cli
from medloom.scripts.weights.push import _lines

from ..pretrain.hub_server import Hub, serve_hub

SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}
VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, **SMALL}
SPACING = {"p5": [1, 1, 1], "p50": [2, 0.8, 0.8], "p95": [5, 1, 1]}
PROVENANCE = {
    "input": {
        "rule": 1, "crop": [32, 32], "channels": 3,
        "modalities": {"ct": {"images": 300, "rules": {"window": 1.0}, "spacing_mm": SPACING}},
    },
    "training": {
        "objective": {"name": "mae"}, "steps": 100, "samples": 6400, "batch_size": 64,
        "sources": [{"dataset": "ham10000", "licence": "CC-BY-NC-4.0", "count": 20}],
        "ancestor": {"sha256": "abc", "training": {"steps": 9, "sources": []}, "held_out": {}},
    },
    "held_out": {"rules": [{"dataset": "busi", "split": "test"}]},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one encoder, and a registry that names it `small-2d`, and `secret-2d` without files."""
    torch.manual_seed(0)
    save_encoder(tmp_path / "artefact", build_encoder(VIT), PROVENANCE)
    record = json.loads((tmp_path / "artefact" / "encoder.json").read_text())
    with serve_hub() as server:
        commit = server.add("org/small", tmp_path / "artefact")
        line = entry("small-2d", record, repo="org/small", commit=commit, title="a test", licence="CC0-1.0")
        path = tmp_path / "registry.yaml"
        path.write_text(line + "secret-2d: {train: medloom pretrain tiny-mae-2d, licence: internal}\n")
        server.visit(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("MEDLOOM_WEIGHTS", str(path))
        yield server


def test_list_says_what_is_here(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> dict[str, str]:
        assert cli.main(["weights", "list"]) == 0
        return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}

    before = rows()
    assert " no " in before["small-2d"] and "CC0-1.0" in before["small-2d"]
    assert "not published" in before["secret-2d"]
    assert hub.seen == [], "a list must not ask the network"
    assert cli.main(["weights", "pull", "small-2d"]) == 0
    capsys.readouterr()
    assert " yes " in rows()["small-2d"]


@pytest.mark.parametrize("name", ["small-2d", "hf-hub:org/small"])
def test_info_shows_the_record_without_the_weights(
    name: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "info", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "patch 16 × 16, 3 channels, 24 features", "mae, 100 steps of 64",
        "ham10000 20 CC-BY-NC-4.0 non-commercial",
        "held out of training: dataset busi, split test", "ct 300 window 2 × 0.8 × 0.8", "before that",
    ):  # fmt: skip
        assert part in shown, shown
    assert hub.gets("/cdn/") == 0


def test_info_of_what_says_little(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "info", "secret-2d"]) == 0
    assert "made by: medloom pretrain tiny-mae-2d" in capsys.readouterr().out
    assert cli.main(["weights", "info", "timm:resnet18"]) == 0
    assert "what was held out is not known" in capsys.readouterr().out


def test_pull_into_a_folder_then_convert(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take, grey = str(tmp_path / "take"), str(tmp_path / "grey")
    assert cli.main(["weights", "pull", "hf-hub:org/small", "--to", take]) == 0
    shown = capsys.readouterr().out
    assert f"hf-hub:org/small@{hub.repositories['org/small'].head}" in shown
    assert f'load_encoder("{take}")' in shown
    words = ["weights", "convert", take, "--to", "artefact", "--out", grey, "--in-channels", "1"]
    assert cli.main(words) == 0
    assert "3 -> 1 channels" in capsys.readouterr().out
    assert load_encoder(grey)[0].in_channels == 1
    assert cli.main(words) == 2
    assert "exists: choose another --out" in capsys.readouterr().err


def test_info_and_card_of_a_2d_encoder_made_3d(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "solid")
    words = ["weights", "convert", "hf-hub:org/small", "--to", "artefact", "--out", out]
    assert cli.main([*words, "--patch-depth", "4"]) == 0
    capsys.readouterr()
    assert cli.main(["weights", "info", out]) == 0
    assert "input: intensities by rule 1" in capsys.readouterr().out
    said = card(json.loads((tmp_path / "solid" / "encoder.json").read_text()))
    assert "No size of crops on record" in said and "Crops of" not in said


@pytest.mark.parametrize(
    ("repo", "name"), [("org/_Tiny_2D", "tiny_2d"), ("org/größe.1", "gr--e.1"), ("org/__", "encoder")]
)
def test_the_lines_after_a_push_are_a_registry(
    repo: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(tmp_path, build_encoder(VIT), {})
    record = json.loads((tmp_path / "encoder.json").read_text())
    pushed = Pushed(tmp_path, repo, "7" * 40, Verdict([], {}), record)
    (tmp_path / "registry.yaml").write_text(_lines(pushed, "not stated"))
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "registry.yaml"))
    found = registry()[name]
    assert (found.repo, found.sha256, found.licence) == (repo, record["sha256"], "not stated")


def test_an_unknown_name_is_one_line(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "pull", "smal-2d"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("did you mean small-2d?")
