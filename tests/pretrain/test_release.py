"""A release: the gate passes what is right, refuses what is not, and what is pushed loads elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from medloom.data.config import read_yaml, to_yaml
from medloom.data.errors import CheckpointError, ConfigError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.release.gate import private, refuse_verdict, verified_elsewhere
from medloom.pretrain.release.probe import recompute, summary, wrong
from medloom.pretrain.release.push import push, stage
from medloom.pretrain.release.standalone import modeling
from medloom.pretrain.release.verify import FAILED, SKIPPED, Verdict, verify
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder, save_encoder
from medloom.scripts import cli
from safetensors.torch import load_file, save_file

from .hub_server import Hub, serve_hub
from .small import SMALL_ENCODERS


@pytest.fixture(scope="session")
def done(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished 2D run with probes."""
    return pretrain(tiny_config(tmp_path_factory.mktemp("release") / "run", "probe.every_steps=6"))


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(done, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that knows our login, and an empty cache."""
    with serve_hub() as hub:
        hub.visit(monkeypatch, tmp_path / "cache", token="hf_known")
        yield hub


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate asks this process: seconds are saved where the clean process is not what is tested."""

    def here(folder: Path, run: Path) -> Verdict:
        return verify(folder, run, card=False)

    monkeypatch.setattr("medloom.pretrain.release.push.verified_elsewhere", here)


def change(folder: Path, **values: Any) -> dict[str, Any]:
    """Change keys of encoder.json."""
    record = json.loads((folder / "encoder.json").read_text()) | values
    (folder / "encoder.json").write_text(json.dumps(record))
    return record


def relicensed(folder: Path, licence: str) -> None:
    """Give the first training source another licence."""
    training = json.loads((folder / "encoder.json").read_text())["training"]
    training["sources"][0]["licence"] = licence
    change(folder, training=training)


def test_a_run_is_released_and_loads_elsewhere(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status = cli.main(["weights", "push", str(run), "--to", "org/tiny-2d", "--licence", "Apache-2.0"])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert set(hub.files("org/tiny-2d")) == {
        ".gitattributes", "README.md", "config.json", "encoder.json", "encoder.safetensors", "reference.npz",
    }  # fmt: skip
    assert hub.repositories["org/tiny-2d"].messages == ["initial commit", "Release tiny-2d"]
    commit = hub.repositories["org/tiny-2d"].head
    assert f"  revision: {commit}" in shown.out and f"hf-hub:org/tiny-2d@{commit}" in shown.out
    assert "hf_known" not in shown.out + shown.err + caplog.text
    assert (run / "encoder.safetensors").read_bytes() == hub.files("org/tiny-2d")["encoder.safetensors"]
    encoder, report = load_encoder(f"hf-hub:org/tiny-2d@{commit}", prove=True)
    assert report.proved == 0.0 and report.record["release"]["name"] == "org/tiny-2d"
    model = timm.create_model("hf-hub:org/tiny-2d", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(x), encoder.eval()(x).pooled, atol=1e-6)
    card = hub.files("org/tiny-2d")["README.md"].decode()
    assert str(report.record["sha256"]) in card and "license: apache-2.0" in card
    assert 'load_encoder("hf-hub:org/tiny-2d")' in card and "| knn_tiny_pictures |" in card
    assert cli.main(["weights", "verify", str(run / "release"), "--run", str(run)]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_a_release_may_be_a_folder_of_a_registry(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = tmp_path / "releases" / "tiny-2d"
    for _ in range(2):  # an older artefact is replaced
        assert cli.main(["weights", "push", str(run), "--folder", str(house)]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "registry.yaml").write_text(shown[shown.rindex("tiny-2d:\n") :])
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "registry.yaml"))
    assert load_encoder("tiny-2d", prove=True)[1].proved == 0.0
    assert (house / "README.md").read_text().count("# tiny-2d\n") == 1
    (house / "mine.txt").touch()
    assert cli.main(["weights", "push", str(run), "--folder", str(house)]) == 2
    assert "holds mine.txt: name a new folder" in capsys.readouterr().err and (house / "mine.txt").exists()
    held = sorted(path.name for path in run.iterdir())
    assert cli.main(["weights", "push", str(run), "--folder", f"{run}/../{run.name}"]) == 2
    assert "would replace what it is made from" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == held
    assert cli.main(["weights", "push", str(run)]) == 2
    assert "say where the release goes" in capsys.readouterr().err


@pytest.mark.usefixtures("near")
def test_a_dry_run_asks_the_hub_nothing_and_can_be_repeated(run: Path, hub: Hub) -> None:
    for _ in range(2):
        pushed = push(run, "org/x", dry_run=True)
        assert pushed.commit is None and hub.seen == []
    names = {path.name for path in pushed.folder.iterdir()}
    assert names == {"README.md", "config.json", "encoder.json", "encoder.safetensors", "reference.npz"}
    assert not list(run.glob(".partial*"))
    record = pushed.record
    assert record["compute"]["hours"] > 0 and record["compute"]["devices"]
    assert {check["name"] for check in record["gate"]} == {
        "weights", "network", "reference features", "timm", "probe scores",
    }  # fmt: skip
    knn = record["probes"]["scores"]["probe/knn_tiny_pictures"]
    assert knn["recomputed"] == pytest.approx(knn["recorded"], abs=1e-6)
    assert knn["low"] <= knn["recomputed"] <= knn["high"] and knn["images"] > 0
    assert "license: other" in (pushed.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-ND-4.0", "no derivatives"),
        ("UNCLEAR", "its terms are not known"),
        ("", "its terms are not known"),
        ("CC0-1.0, UNCLEAR", "its terms are not known"),
        ("physionet-1.5", r"its terms are not known \(an agreement\)"),
    ],
)
def test_a_licence_that_stands_against_it_is_refused(licence: str, why: str, run: Path) -> None:
    relicensed(run, licence)
    with pytest.raises(
        ConfigError, match=rf"tiny_pictures \({licence or 'unknown'}\): {why}.*--licence-over"
    ):
        push(run, "org/x", dry_run=True)
    assert not (run / "release").exists()


@pytest.mark.usefixtures("near")
def test_an_override_is_recorded_in_record_and_card(run: Path) -> None:
    relicensed(run, "CC-BY-NC-4.0")
    with pytest.raises(ConfigError, match="override"):
        push(run, "org/x", dry_run=True, override="  ")
    folder = push(run, "org/x", dry_run=True, override="a letter of the owner").folder
    found = json.loads((folder / "encoder.json").read_text())["licences"]
    assert found["override"] == "a letter of the owner" and "non-commercial" in found["forbids"][0]
    card = (folder / "README.md").read_text()
    assert "**Released in spite of** tiny_pictures (CC-BY-NC-4.0): non-commercial" in card
    assert "a letter of the owner" in card and not verify(folder).failed
    record = json.loads((folder / "encoder.json").read_text())
    change(folder, licences=record["licences"] | {"override": None})
    assert [check.name for check in verify(folder).failed] == ["licences"]


def test_a_run_keeps_the_licence_of_the_weights_it_starts_from(
    run: Path, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    change(run, licence="CC-BY-NC-4.0")
    after = pretrain(tiny_config(tmp_path / "after", f"init_from={run}"))
    with pytest.raises(ConfigError, match=r"weights of run \(CC-BY-NC-4\.0\): non-commercial"):
        push(after, "org/x", dry_run=True)


@pytest.mark.usefixtures("near")
def test_weights_that_are_not_what_scored_are_refused(run: Path) -> None:
    torch.manual_seed(3)
    encoder, report = load_encoder(run)
    for parameter in encoder.parameters():
        parameter.data = torch.zeros_like(parameter)  # blind: every image gets the same features
    kept = {key: report.record[key] for key in ("input", "training", "held_out")}
    save_encoder(run, encoder, kept)
    with pytest.raises(CheckpointError, match=r"probe scores: probe/.* was .*, the artefact gives"):
        push(run, "org/x", dry_run=True)
    assert not (run / "release").exists() and not list(run.glob(".partial*"))


def test_other_features_in_the_clean_process_are_refused(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "encoder.json").read_text())
    stage(run, tmp_path / "staged", record)
    with np.load(run / "reference.npz") as file:
        arrays = dict(file)
    arrays["2d.tokens"] = arrays["2d.tokens"] + 0.1
    np.savez(tmp_path / "staged" / "reference.npz", **arrays)
    verdict = verified_elsewhere(tmp_path / "staged", run)
    assert [check.name for check in verdict.failed] == ["reference features"]
    with pytest.raises(CheckpointError, match="a clean process found reference features: differ by"):
        refuse_verdict(verdict, run)


def test_a_clean_process_that_dies_is_a_refusal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho killed by the kernel >&2\nexit 9\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(CheckpointError, match=r"cannot load the artefact \(exit 9\): killed by the kernel"):
        push(run, "org/x", dry_run=True)
    assert not (run / "release").exists()


@pytest.mark.usefixtures("near")
def test_an_artefact_without_reference_features_gets_them(run: Path) -> None:
    (run / "reference.npz").unlink()
    assert (push(run, "org/x", dry_run=True).folder / "reference.npz").is_file()


@pytest.mark.usefixtures("near")
def test_scores_that_cannot_be_checked_are_said_so(run: Path) -> None:
    config = read_yaml(run / "config.yaml")
    config["data"]["shards"] = str(run / "gone")
    (run / "config.yaml").write_text(to_yaml(config))
    folder = push(run, "org/x", dry_run=True).folder
    said = "were not computed again: the probed shards are not at hand"
    assert said in (folder / "README.md").read_text()


def test_shards_of_another_manifest_are_not_probed(run: Path) -> None:
    encoder, report = load_encoder(run)
    training = report.record["training"] | {"manifest": "0" * 64}
    assert (
        "another manifest" in recompute(run, encoder, report.record | {"training": training})["not_checked"]
    )


@pytest.mark.parametrize("name", ["org", "org/a/b", "", "org/", "../x"])
def test_a_name_that_is_no_repository_is_refused(name: str, run: Path) -> None:
    with pytest.raises(ConfigError, match="expected ORG/NAME"):
        push(run, name, dry_run=True)


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    (run / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match="name a finished run"):
        push(run, "org/x", dry_run=True)


@pytest.mark.usefixtures("near")
def test_names_of_this_machine_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = push(run, "org/x", dry_run=True).folder
    private(folder, run)
    with monkeypatch.context() as patched:  # a user by number alone, as in containers
        patched.setattr("getpass.getuser", lambda: {}["uid"])
        private(folder, run)
    change(folder, note=f"trained in {run.resolve()}")
    with pytest.raises(ConfigError, match=r"encoder\.json names the run folder"):
        private(folder, run)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("token", "the hub does not know you"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("gone", "cannot be reached"),
    ],
)
@pytest.mark.usefixtures("near")
def test_a_hub_that_refuses_is_one_line(
    fault: str, said: str, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    if fault == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=said) as caught:
        push(run, "org/x")
    assert "hf_" not in str(caught.value) and "\n" not in str(caught.value)
    assert (run / "release" / "README.md").is_file() and "org/x" not in hub.repositories


def spoil(folder: Path, how: str) -> None:
    """Damage an artefact in one way."""
    if how == "hash":
        data = bytearray((folder / "encoder.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "encoder.safetensors").write_bytes(data)
    elif how == "record":
        (folder / "encoder.json").write_text("{")
    elif how == "network":
        change(folder, embed_dim=7)
    elif how == "card":
        (folder / "README.md").write_text("# another")
    elif how == "timm":
        config = json.loads((folder / "config.json").read_text())
        config["model_args"]["num_heads"] = 4
        (folder / "config.json").write_text(json.dumps(config))
    else:
        (folder / {"no card": "README.md", "no reference": "reference.npz"}[how]).unlink()


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ("hash", "weights"), ("record", "record"), ("network", "network"), ("card", "model card"),
        ("no card", "model card"), ("no reference", "reference features"), ("timm", "timm"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("near")
def test_verify_names_what_is_wrong(
    how: str, check: str, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (done / "release").is_dir():
        push(done, "org/x", dry_run=True)
    folder = Path(shutil.copytree(done / "release", tmp_path / "artefact"))
    assert not verify(folder).failed
    spoil(folder, how)
    assert [one.name for one in verify(folder).failed] == [check]
    assert cli.main(["weights", "verify", str(folder)]) == 1
    assert FAILED in capsys.readouterr().out


@pytest.mark.usefixtures("near")
def test_a_3d_run_gets_a_card_and_proves_itself(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    run = pretrain(tiny_config(tmp_path / "run", "probe.every_steps=6", ndim=3))
    pushed = push(run, "org/tiny-3d", dry_run=True)
    card = (pushed.folder / "README.md").read_text()
    assert "library_name: medloom" in card and "timm.create_model" not in card
    assert "spacing in mm" in card and "1 × 1 × 1" in card


@pytest.mark.usefixtures("near")
def test_a_release_has_the_code_of_medloom_whatever_lay_in_the_run(tmp_path: Path) -> None:
    encoder = build_encoder({"name": "vit3d", **SMALL_ENCODERS["vit3d"]})
    run = save_encoder(tmp_path / "run", encoder, {}).parent
    (run / "modeling.py").write_text("import os\n")
    said = {check.name: check for check in verify(run, card=False).checks}
    assert said["modeling.py"].result == SKIPPED and "read it before" in said["modeling.py"].detail
    folder = push(run, "org/x", dry_run=True, override="a test").folder
    assert (folder / "modeling.py").read_text() == modeling(encoder) and not verify(folder).failed
    (folder / "modeling.py").unlink()
    assert [check.name for check in verify(folder).failed] == ["modeling.py"]


def test_verify_looks_at_the_folder_not_at_the_release_of_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = {"folder": str(tmp_path / "elsewhere"), "sha256": "0" * 64}
    (tmp_path / "registry.yaml").write_text(json.dumps({"run": registered}))
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "registry.yaml"))
    monkeypatch.chdir(tmp_path)
    assert not verify(Path("run"), card=False).failed


def test_intervals_are_of_patients_and_allow_two_images() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    correct = np.array([1, 1, 1, 0, 1, 1, 0, 0], dtype=bool)
    several = summary(correct, labels, list("abcdefgh"))
    assert several["recomputed"] == pytest.approx((0.75 + 0.5) / 2) and several["allowed"] == 2 / 8
    assert several["low"] < several["recomputed"] < several["high"] and several["subjects"] == 8
    paired = summary(np.repeat(correct, 2), np.repeat(labels, 2), list("aabbccddeeffgghh"))
    assert (paired["low"], paired["high"]) == (several["low"], several["high"])  # not narrower by copies
    one = summary(correct, labels, ["a"] * 8)
    assert one["low"] is None and one["high"] is None
    score = {"recorded": 0.9, "recomputed": 0.6, "allowed": 0.25}
    assert "was 0.9000, the artefact gives 0.6000" in wrong({"scores": {"probe/knn_x": score}})[0]
    assert not wrong({"scores": {"probe/knn_x": score | {"recomputed": 0.7}}})


@pytest.mark.usefixtures("near")
def test_a_changed_architecture_does_not_pass_for_the_trained_one(run: Path) -> None:
    tensors = load_file(run / "encoder.safetensors")
    record = json.loads((run / "encoder.json").read_text())
    arguments = record["architecture"]["args"]
    assert build_encoder({"name": "vit", **arguments, "num_heads": 4}).embed_dim == record["embed_dim"]
    change(run, architecture={"name": "vit", "args": arguments | {"num_heads": 4}})
    save_file(tensors, run / "encoder.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="reference features: differ"):
        push(run, "org/x", dry_run=True)
