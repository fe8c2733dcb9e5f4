"""Encoders from a hub: the registry, pins, the cache, and every fault said in one line with its mend."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from medloom.data.errors import CheckpointError, ConfigError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub import fetch as fetching
from medloom.pretrain.hub.pull import pull
from medloom.pretrain.hub.registry import entry, registry
from medloom.pretrain.weights import load_encoder, save_encoder

from .hub_server import Hub, serve_hub

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


def test_a_branch_is_followed_and_the_change_is_said(
    published: Hub, artefact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = features(NAME)
    torch.manual_seed(1)
    save_encoder(tmp_path / "next", build_encoder(VIT), {})
    first, second = published.repositories[REPO].head, published.add(REPO, tmp_path / "next")
    with caplog.at_level(logging.INFO, logger="medloom"):
        after = features(NAME)
    assert not torch.equal(after, before) and torch.equal(after, features(tmp_path / "next"))
    assert f"changed from commit {first[:12]} to {second[:12]}" in caplog.text
    assert torch.equal(features(f"{NAME}@{first}"), before)


def test_a_pinned_name_does_not_follow(
    known: str, published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features(known)
    torch.manual_seed(1)
    save_encoder(tmp_path / "next", build_encoder(VIT), {})
    published.add(REPO, tmp_path / "next")
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


# Faults of the way


@pytest.mark.parametrize(
    "faults", [["cut"], ["cut", "cut"], ["429"], ["500"], ["500", "cut", "429"], ["wrong"]]
)
def test_a_fault_that_passes_is_survived(faults: list[str], published: Hub, artefact: Path) -> None:
    published.only, published.faults = "/cdn/", list(faults)
    assert torch.equal(features(NAME), features(artefact))
    assert not published.faults


def test_a_cut_download_goes_on_where_it_was_cut(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what has arrived counts in such pieces
    published.only, published.faults = "/cdn/", ["cut"]
    load_encoder(NAME)
    statuses = [status for method, path, status in published.seen if method == "GET" and "/cdn/" in path]
    assert statuses == [200, 206]


def test_a_hub_that_stalls_is_asked_again(
    published: Hub, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    published.only, published.faults = "/cdn/", ["stall"]
    assert torch.equal(features(NAME), features(artefact))


def test_a_slow_hub_is_waited_for(published: Hub, artefact: Path) -> None:
    published.pause = 0.01  # beyond any timeout that counted the whole, not a silence
    assert torch.equal(features(NAME), features(artefact))


def test_weights_that_stay_wrong_are_refused_and_not_kept(published: Hub, tmp_path: Path) -> None:
    published.only, published.faults = "/cdn/", ["wrong", "wrong"]
    with pytest.raises(CheckpointError, match=r"arrived twice with a wrong SHA-256"):
        load_encoder(NAME)
    assert not list((tmp_path / "cache").rglob("encoder.safetensors"))
    assert load_encoder(NAME)


def test_a_file_damaged_in_the_cache_is_fetched_again(
    known: str, artefact: Path, published: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    path = pull(known).folder / "encoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(bytes(data))
    assert torch.equal(features(known), features(artefact))
    assert "encoder.safetensors is damaged in the cache" in caplog.text


@pytest.mark.parametrize(
    ("faults", "only", "message"),
    [
        (["500"] * 9, "/cdn/", "the hub answers 500: try again later"),
        (["500"] * 9, "/api/", "the hub answers 500: try again later"),
        (["429"] * 99, "/api/", r"too many requests \(429\)"),
        (["401"], "/api/", "`hf auth login` again, or correct HF_TOKEN"),
        (["403"], "/api/", "forbidden: your login may not read"),
    ],
)
def test_a_fault_that_stays_is_said(faults: list[str], only: str, message: str, published: Hub) -> None:
    published.only, published.faults = only, faults
    with pytest.raises(CheckpointError, match=f"^{NAME}: .*{message}") as caught:
        load_encoder(NAME)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told(published: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such repository, or a private one"):
        load_encoder("hf-hub:org/other")
    with pytest.raises(CheckpointError, match="has no revision 'v9': name a branch, a tag or a commit"):
        load_encoder(f"{NAME}@v9")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no encoder")
    published.add("org/text", tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"holds neither encoder\.json nor timm's config\.json"):
        load_encoder("hf-hub:org/text")
    (tmp_path / "text" / "encoder.json").write_text("{}")
    published.add("org/text", tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"holds no encoder\.safetensors"):
        load_encoder("hf-hub:org/text")


def test_gated_and_private_repositories_say_how_to_get_in(
    hub: Hub, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/gated", artefact, gated=True)
    hub.add("org/private", artefact, private=True)
    with pytest.raises(CheckpointError, match=r"not logged in: ask for access at http.*/org/gated, then `hf"):
        load_encoder("hf-hub:org/gated")
    hub.visit(monkeypatch, tmp_path / "cache", token="hf_known")
    with pytest.raises(CheckpointError, match=r"your login has no access: ask for it at http.*/org/gated"):
        load_encoder("hf-hub:org/gated")
    hub.members.add("hf_known")
    assert load_encoder("hf-hub:org/gated")[1].loaded and load_encoder("hf-hub:org/private")[1].loaded
    assert not [path for path in hub.authorized if path.startswith("/cdn/")], "the login left the hub"


def test_a_full_disk_is_told_and_leaves_nothing_half(published: Hub, tmp_path: Path) -> None:
    """A file system of 100 kB, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs rights that this user has not")
    try:
        done = pulling(published.environment(disk), NAME)
        assert "the disk is full, nothing half was kept: free space, or set HF_HOME" in done.communicate()[1]
        assert done.returncode == 2 and not list(disk.rglob("*.incomplete"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_in_the_middle_is_told(
    published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import errno

    from huggingface_hub import file_download

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        load_encoder(NAME)


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


def test_a_pulled_repository_has_a_name_that_pins_it(published: Hub) -> None:
    assert pull(NAME).pinned == f"{NAME}@{published.repositories[REPO].head}"


def test_what_an_encoder_is_needs_no_weights(known: str, published: Hub) -> None:
    from medloom.pretrain.sources import read_source

    for name in (known, NAME):
        assert read_source(name, weights=False)[2]["architecture"]["name"] == "vit"
    assert published.gets("/cdn/") == 0


# Processes


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


def test_two_processes_that_pull_at_once_both_get_it(published: Hub, tmp_path: Path, artefact: Path) -> None:
    published.pause = 0.02
    both = [pulling(published.environment(tmp_path / "shared"), NAME) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {int(out) for out, _ in said} == {sum(path.stat().st_size for path in artefact.iterdir())}
    assert not list((tmp_path / "shared").rglob("*.incomplete"))


def test_the_variables_of_the_hub_are_honoured(published: Hub, tmp_path: Path) -> None:
    environment = published.environment(tmp_path / "own")
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    first = pulling(offline, NAME)
    assert "HF_HUB_OFFLINE is set" in first.communicate()[1] and first.returncode == 2
    assert pulling(environment, NAME).communicate()[0] == pulling(offline, NAME).communicate()[0] != ""
