"""Encoders from a hub: the ways to name one, pins, revisions that change, and the cache without a network."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from medloom.data.errors import CheckpointError, ConfigError
from medloom.pretrain.artefact import read_record
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub.convert import convert
from medloom.pretrain.hub.pull import pull
from medloom.pretrain.hub.registry import registry
from medloom.pretrain.sources import read_source
from medloom.pretrain.weights import load_encoder, save_encoder

from ..hub_server import Hub
from .small import NAME, REPO, VIT, features, offline, register

# The ways to name one


@pytest.mark.parametrize("name", [NAME, f"hf:{REPO}", f"{NAME}@main", f"{NAME}@COMMIT"])
def test_a_repository_is_loaded_by_name(name: str, published: Hub, artefact: Path) -> None:
    name = name.replace("COMMIT", published.repositories[REPO].head)
    assert torch.equal(features(name), features(artefact))


def test_a_name_of_the_registry_is_loaded_and_then_never_asks_the_network(
    known: str, published: Hub, artefact: Path
) -> None:
    first = features(known)
    published.seen.clear()
    assert torch.equal(features(known), first) and torch.equal(first, features(artefact))
    assert published.seen == []


def test_a_registry_may_name_a_folder(
    artefact: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(artefact, tmp_path / "house" / "ours")
    sha256 = json.loads((artefact / "encoder.json").read_text())["sha256"]
    path = tmp_path / "house" / "registry.yaml"
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(path))
    path.write_text(f"ours-2d: {{folder: ours, sha256: {sha256}}}\n")
    assert torch.equal(features("ours-2d"), features(artefact))
    path.write_text(f"ours-2d: {{folder: ours, sha256: {'a' * 64}}}\n")
    with pytest.raises(CheckpointError, match="not the SHA-256 that the registry pins"):
        load_encoder("ours-2d")
    path.write_text(f"ours-2d: {{folder: other, sha256: {sha256}}}\n")
    with pytest.raises(CheckpointError, match="other is not there"):
        load_encoder("ours-2d")
    path.write_text("ours-2d: {train: medloom pretrain tiny-mae-2d}\n")
    with pytest.raises(CheckpointError, match="not published; make them with: medloom pretrain tiny-mae-2d"):
        load_encoder("ours-2d")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal-2d", "did you mean small-2d"),
        ("hf-hub:encoder", "expected hf-hub:ORG/NAME"),
        ("hf-hub:org/a/b", "expected hf-hub:ORG/NAME"),
        ("hf-hub:../x@main", "expected hf-hub:ORG/NAME"),
    ],
)
def test_wrong_names_are_told_without_the_network(
    name: str, message: str, known: str, published: Hub
) -> None:
    published.seen.clear()
    with pytest.raises(CheckpointError, match=message):
        load_encoder(name)
    assert published.seen == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {repo: org/x, revision: main, sha256: SHA}", "a branch or a tag may move"),
        ("a: {repo: org/x, revision: COMMIT}", "sha256 None, expected"),
        ("a: {repo: x, revision: COMMIT, sha256: SHA}", "expected ORG/NAME"),
        ("a: {repo: org/x, folder: y, sha256: SHA}", "both repo and folder"),
        ("a: {title: nothing}", "needs repo or folder"),
        ("a: {repos: org/x}", "did you mean repo"),
        ("A b: {train: x}", "rename it"),
        ("a: 3", "expected keys"),
    ],
)
def test_an_entry_that_pins_nothing_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(text.replace("SHA", "a" * 64).replace("COMMIT", "b" * 40))
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(path))
    with pytest.raises(ConfigError, match=message):
        registry()


def test_the_shipped_registry_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDLOOM_WEIGHTS", raising=False)
    assert all(release.name == name for name, release in registry().items())


# Changed revisions


def renewed(hub: Hub, folder: Path) -> str:
    """Publish other weights under the same name; returns the new commit."""
    torch.manual_seed(1)
    save_encoder(folder, build_encoder(VIT), {})
    return hub.add(REPO, folder)


def test_a_branch_is_followed_and_the_change_is_said(
    published: Hub, artefact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = features(NAME)
    first, second = published.repositories[REPO].head, renewed(published, tmp_path / "next")
    with caplog.at_level(logging.INFO, logger="medloom"):
        after = features(NAME)
    assert not torch.equal(after, before) and torch.equal(after, features(tmp_path / "next"))
    assert f"changed from commit {first[:12]} to {second[:12]}" in caplog.text
    assert torch.equal(features(f"{NAME}@{first}"), before)


def test_a_pinned_name_does_not_follow(
    known: str, published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features(known)
    renewed(published, tmp_path / "next")
    assert torch.equal(features(known), before)
    published.visit(monkeypatch, tmp_path / "empty")
    assert torch.equal(features(known), before)


def test_a_pinned_commit_that_is_gone_is_told(known: str, published: Hub, artefact: Path) -> None:
    published.repositories[REPO].commits.clear()
    published.add(REPO, artefact)
    with pytest.raises(CheckpointError, match=rf"small-2d: commit \w+ is gone .* hf-hub:{REPO}"):
        load_encoder(known)


def test_weights_that_are_not_the_pinned_ones_are_refused(
    published: Hub, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register(published, artefact, tmp_path, monkeypatch, sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"the registry pins 000000000000: the repository was changed"):
        load_encoder(name)
    assert load_encoder(NAME)  # taken as it is, by its own name


# Without a network


def test_offline_uses_the_cache_and_else_says_what_to_run(
    known: str, published: Hub, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        offline(patch)
        for name in (known, NAME):
            with pytest.raises(
                CheckpointError, match=rf"HF_HUB_OFFLINE is set: run `medloom weights pull {name}`"
            ):
                load_encoder(name)
    load_encoder(known), load_encoder(NAME)
    published.seen.clear()
    offline(monkeypatch)
    assert torch.equal(features(known), features(NAME))
    assert published.seen == []


def test_a_hub_out_of_reach_uses_the_cache_and_says_so(
    published: Hub, artefact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = features(NAME)
    published.only, published.faults = "/api/", ["500"]
    assert torch.equal(features(NAME), before)
    assert "cannot be reached; taking commit" in caplog.text
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(features(NAME), before)
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9 cannot be reached .*medloom weights pull"):
        load_encoder("hf-hub:org/other")


def test_a_folder_taken_along_needs_no_network(
    known: str, published: Hub, tmp_path: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = pull(known, tmp_path / "take")
    assert sorted(path.name for path in pulled.folder.iterdir()) == sorted(
        path.name for path in artefact.iterdir()
    )
    assert not any(path.is_symlink() for path in pulled.folder.iterdir())
    assert pull(known, tmp_path / "take").bytes == pulled.bytes
    offline(monkeypatch)
    monkeypatch.delenv("MEDLOOM_WEIGHTS")
    assert torch.equal(features(tmp_path / "take"), features(artefact))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "registry.yaml"))
    with pytest.raises(CheckpointError, match=r"holds other files \(mine\.txt\)"):
        pull(known, tmp_path / "other")
    with pytest.raises(CheckpointError, match="did you mean small-2d"):
        pull("small-3d")


def test_a_folder_of_a_released_name_is_meant_by_its_path(
    known: str, published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    save_encoder(tmp_path / known, build_encoder(VIT), {})
    monkeypatch.chdir(tmp_path)
    assert torch.equal(features(f"./{known}"), features(tmp_path / known))
    assert published.seen == []
    assert not torch.equal(features(known), features(tmp_path / known))


def test_a_pulled_repository_has_a_name_that_pins_it(published: Hub) -> None:
    assert pull(NAME).pinned == f"{NAME}@{published.repositories[REPO].head}"


def test_a_conversion_asks_the_hub_once(published: Hub, tmp_path: Path) -> None:
    pull(NAME)
    published.seen.clear()
    convert(NAME, "artefact", tmp_path / "solid", in_channels=1, patch_depth=4)
    assert published.gets("/api/") == 1
    adapted = read_record(tmp_path / "solid" / "encoder.json")["converted"]["adapted"]
    assert any("channels" in line for line in adapted)


def test_the_record_alone_reads_no_weights(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(known)
    monkeypatch.setattr("medloom.pretrain.hub.fetch.sha256", None)
    assert read_source(known, weights=False)[2]["embed_dim"] == 24


def test_what_an_encoder_is_needs_no_weights(known: str, published: Hub) -> None:
    for name in (known, NAME):
        assert read_source(name, weights=False)[2]["architecture"]["name"] == "vit"
    assert published.gets("/cdn/") == 0
