"""Faults on the way from a hub are survived, or said in one line with the mend; processes share a cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.hub.pull import pull
from medloom.pretrain.weights import load_encoder

from ..hub_server import Hub
from .small import NAME, features, pulling

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


# Processes


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
