"""The zoo in use: fetched from a hub or an address, from a file, by the command line; refusals; the docs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError, ConfigError
from medloom.finetune.benchmark.grid import architecture, encoders_of
from medloom.finetune.config import load_config
from medloom.finetune.leakage import statement
from medloom.pretrain.artefact import read_record
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub.convert import convert
from medloom.pretrain.release.card import card
from medloom.pretrain.weights import load_encoder, load_into, named_tensors
from medloom.pretrain.zoo import record as zoo
from medloom.pretrain.zoo.mapping import mapped
from medloom.pretrain.zoo.source import described, read_zoo
from medloom.pretrain.zoo.table import markdown, rows
from medloom.scripts.cli import main
from safetensors.torch import save_file

from .hub_server import Hub, serve_hub
from .small import SMALL_ENCODERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"
SECTION = {"name": "vit3d", "patch_size": [8, 8, 8], "depth": 1, "embed_dim": 24, "num_heads": 2}
RECORD: dict[str, Any] = {
    "title": "a small one", "paper": "none", "home": "https://example.org/tiny", "licence": "MIT",
    "download": {"hub": "org/tiny", "file": "weights.safetensors"}, "encoder": SECTION,
    "mapping": {"inside": ["model"], "drop": ["^head"], "rename": [["^net\\.", ""]]},
    "input": {"crop": [16, 16, 16], "channels": 1, "modalities": {"ct": {}}},
}  # fmt: skip


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """What the authors of `tiny` would publish."""
    torch.manual_seed(0)
    found = {f"net.{name}": tensor.clone() for name, tensor in build_encoder(SECTION).state_dict().items()}
    return found | {"head.weight": torch.zeros(2)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with `tiny` alone."""
    path = tmp_path / "zoo"
    path.mkdir()
    monkeypatch.setattr(zoo, "FOLDER", path)
    write(path)
    return path


def write(folder: Path, name: str = "tiny", **changes: Any) -> None:
    """A record; JSON is YAML."""
    (folder / f"{name}.yaml").write_text(json.dumps({**RECORD, **changes}))
    zoo._read.cache_clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]) -> Iterator[Hub]:
    """A hub with the file of `tiny`."""
    files = tmp_path / "files"
    files.mkdir()
    save_file(state, files / "weights.safetensors")
    with serve_hub() as server:
        server.visit(monkeypatch, tmp_path / "cache")
        server.add("org/tiny", files)
        monkeypatch.delenv("MEDLOOM_WEIGHTS", raising=False)
        yield server


def test_a_bare_name_is_fetched_once_and_loads_strictly(
    folder: Path, hub: Hub, state: dict[str, torch.Tensor]
) -> None:
    encoder, report = load_encoder("tiny")
    assert not report.missing and not report.unexpected
    assert torch.equal(encoder.state_dict()["norm.weight"], state["net.norm.weight"])
    assert main(["weights", "pull", "zoo:tiny@weights.safetensors"]) == 2, "nothing to fetch"
    before = hub.gets("weights.safetensors")
    load_encoder("zoo:tiny")
    assert hub.gets("weights.safetensors") == before > 0
    assert report.record["source"] == "zoo:tiny" and report.record["input"]["crop"] == [16, 16, 16]


def test_a_folder_taken_along_serves_a_machine_without_a_network(
    folder: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    assert main(["weights", "pull", "tiny", "--to", str(tmp_path / "along")]) == 0
    assert f"zoo:tiny@{tmp_path / 'along'}" in capsys.readouterr().out
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"medloom weights pull zoo:tiny.* name zoo:tiny@DIR"):
        load_encoder("tiny")
    assert not load_encoder(f"zoo:tiny@{tmp_path / 'along'}")[1].missing


def test_a_fault_that_passes_is_survived(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medloom.pretrain.hub.fetch.WAIT", 0.0)
    hub.only, hub.faults = "/cdn/", ["500"]
    assert not load_encoder("tiny")[1].missing


@pytest.mark.parametrize(
    ("fault", "message"),
    [("gated", "ask for access at .*/org/tiny"), ("away", "no such repository"), ("renamed", "is gone")],
)
def test_what_the_hub_refuses_says_what_to_do(folder: Path, hub: Hub, fault: str, message: str) -> None:
    if fault == "gated":
        hub.repositories["org/tiny"].gated = True
    elif fault == "away":
        hub.repositories.clear()
    else:
        write(folder, download={"hub": "org/tiny", "file": "other.bin"})
    with pytest.raises(CheckpointError, match=message):
        load_encoder("tiny")


def test_an_address_is_fetched_once_and_another_hash_refused(
    folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    url = f"{hub.url}/org/tiny/resolve/main/weights.safetensors"
    write(folder, download={"url": url})
    assert not load_encoder("tiny")[1].missing
    before = len(hub.seen)
    load_encoder("tiny")
    assert len(hub.seen) == before
    write(folder, download={"url": url, "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"SHA-256 .*zoo:tiny@FILE"):
        load_encoder("tiny")
    write(folder, download={"url": f"{hub.url}/org/tiny/resolve/main/none.pt"})
    with pytest.raises(
        CheckpointError, match=r"fetch it from https://example.org/tiny and name it zoo:tiny@FILE"
    ):
        load_encoder("tiny")


def test_checkpoints_of_trainers_are_read_without_unpickling(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    inside = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": inside, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    assert not load_encoder(f"zoo:tiny@{path}")[1].missing
    torch.save({"model": state, "trainer": Path("/somewhere")}, path)
    with pytest.raises(CheckpointError, match=r"nothing is unpickled.*save_file"):
        load_encoder(f"zoo:tiny@{path}")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        load_encoder(f"zoo:tiny@{path}")
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder(f"zoo:tiny@{tmp_path / 'none.pth'}")


def test_another_network_s_file_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"0 of \d+ tensors loaded"):
        load_encoder(f"zoo:tiny@{tmp_path / 'other.safetensors'}")
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds nothing of the encoder"):
        load_encoder(f"zoo:tiny@{tmp_path / 'other.safetensors'}")


@pytest.mark.parametrize(
    ("names", "rules", "message"),
    [
        (["a.w", "b.w"], [["^[ab]", "c"]], "both become c.w"),
        (["x.q", "x.k", "y.q"], [["q$", "qkv#0"], ["k$", "qkv#1"]], "y.qkv is made of 2 tensors"),
    ],
)
def test_rules_that_do_not_fit_the_file_say_so(
    folder: Path, names: list[str], rules: list[list[str]], message: str
) -> None:
    record = dataclasses.replace(zoo.load_record("tiny"), mapping=zoo.KeyRules(rename=rules))
    with pytest.raises(CheckpointError, match=message):
        mapped(record, {name: torch.zeros(2) for name in names})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"download": {}}, "one of hub, timm, url and by_hand"),
        ({"download": {"hub": "a/b"}}, "download.file"),
        ({"encoder": {}}, "encoder: needed"),
        ({"checked": "yes"}, "checked: unknown 'yes'"),
        ({"mapping": {"drop": ["("]}}, "no regular expression"),
        ({"mapping": {"rename": [["a"]]}}, "expected a pair"),
        ({"licenc": "MIT"}, "licence"),
    ],
)
def test_a_record_that_cannot_be_right_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    write(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        zoo.load_record("tiny")


def test_a_record_extends_another(folder: Path) -> None:
    (folder / "more.yaml").write_text("extends: tiny\ntitle: more\ndownload: {by_hand: ask its authors}\n")
    record = zoo.load_record("more")
    assert (record.title, record.licence, record.encoder) == ("more", "MIT", SECTION)
    with pytest.raises(CheckpointError, match="ask its authors; then name it zoo:more@FILE"):
        load_encoder("more")


def test_a_benchmark_takes_them_like_any_encoder_without_fetching(folder: Path) -> None:
    assert encoders_of(["tiny", "ours=runs/mae"]) == {"tiny": "tiny", "ours": "runs/mae"}
    assert architecture("tiny") == architecture("random:zoo:tiny") != architecture("random:timm:resnet18")
    _, report = load_encoder("random:tiny", seed=1)
    assert report.missing and not report.loaded
    assert report.record["input"]["rule"] == "its own"


def test_pretraining_starts_from_one_with_other_channels_and_patch(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    encoder = build_encoder({**SECTION, "in_channels": 2})
    report = load_into(encoder, f"zoo:tiny@{tmp_path / 'weights.safetensors'}")
    assert any("channels" in line for line in report.adapted) and report.record["source"] == "zoo:tiny"


def test_what_a_record_leaves_open_is_left_open_in_every_form(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"name": "resenc", **SMALL_ENCODERS["resenc"]}
    write(folder, encoder=section, mapping={}, trained_on=["chestmnist"])
    save_file(named_tensors(build_encoder(section)), tmp_path / "weights.safetensors")
    name = f"zoo:tiny@{tmp_path / 'weights.safetensors'}"
    convert(name, "nnunet", tmp_path / "nnunet")
    convert(name, "artefact", tmp_path / "artefact")
    start = read_record(tmp_path / "artefact" / "encoder.json")
    assert main(["weights", "info", str(tmp_path / "artefact")]) == 0
    shown = capsys.readouterr().out
    assert "known only in part" in shown and "None" not in shown and "chestmnist" in shown
    training = {"steps": 7, "sources": [], "init_from": "tiny", "ancestor": {"training": start["training"]}}
    for record in (start, {**start, "training": training}):
        text = card(record)
        assert "chestmnist" in text and "None" not in text
        (tmp_path / "artefact" / "encoder.json").write_text(json.dumps(record))
        assert main(["weights", "info", str(tmp_path / "artefact")]) == 0
        assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize(("task", "status"), [("chestmnist", "leaked"), ("bloodmnist", "unknown")])
def test_known_training_data_leak_and_the_rest_is_unknown(task: str, status: str) -> None:
    record = load_config(task, ["encoder=none"]).task
    found = statement(record, described(zoo.load_record("rad-dino")), [])
    assert found["status"] == status
    assert "rad-dino" in found["statement"] or status == "leaked"


def test_timm_records_are_timm_s_networks_with_a_record() -> None:
    section, tensors, said = read_zoo("imagenet-resnet50", None, weights=False)
    assert section == {"name": "convnet", "model": "resnet50.a1_in1k"} and not tensors
    assert said["input"]["channels"] == 3


def test_the_command_line_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list", "--zoo"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in zoo.names())
    assert main(["weights", "info", "voco-b"]) == 0
    out = capsys.readouterr().out
    assert "Luffy503/VoCo VoCo_B_SSL_head.pt" in out and "HU" in out


def test_the_table_of_the_page_is_that_of_the_records() -> None:
    assert markdown(rows()) in PAGE.read_text(), "paste what `medloom weights list --zoo --markdown` says"
