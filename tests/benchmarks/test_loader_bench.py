"""The comparison of loaders: every adapter gives the stored voxels, and the result hides nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("medloom", "medloom-fast", "nnssl", "plain", "nifti", "webdataset")


def run(out: Path, *words: str) -> dict[str, Any]:
    """Run the benchmark in a process of its own, as a reader would; returns the JSON that it wrote."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.loader",
        "--tiny",
        "--work",
        str(out / "work"),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "MEDLOOM_REALDATA": str(out)}
    done = subprocess.run(
        [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.glob("*.json")
    return json.loads(path.read_text()) | {"stdout": done.stdout}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench")
    found = run(out, "--only", "mr,pictures,overhead", "--peers", ",".join(["litdata", *PEERS]))
    (markdown,) = out.glob("*.md")
    return found | {"markdown": markdown.read_text()}


def test_every_adapter_gives_the_stored_voxels_and_has_numbers(result: dict[str, Any]) -> None:
    volumes = result["cases"]["mr"]["peers"]
    for name in PEERS:
        row = volumes[name]
        assert "reason" not in row, (name, row)
        assert row["verified"] == result["cases"]["mr"]["batch"]
        assert len(row["rounds"]) == result["rounds"]
        for number in row["rounds"]:
            assert number["cpu_ms"] > 0 and number["samples_per_s"] > 0 and number["memory_mb"] > 0
        assert row["stored_bytes"] > 0 and row["start_s"] > 0


@pytest.mark.slow
def test_the_other_adapters_give_the_stored_voxels(tmp_path: Path) -> None:
    peers = ("medloom-any", "nnssl-grid", "monai-cache", "monai-persistent")
    rows = run(tmp_path, "--only", "mr", "--peers", ",".join(peers))["cases"]["mr"]["peers"]
    assert {name: row.get("verified") for name, row in rows.items()} == dict.fromkeys(peers, 2)


def test_pictures_are_verified_and_mixed(result: dict[str, Any]) -> None:
    pictures = result["cases"]["pictures"]["peers"]
    for name in ("medloom", "webdataset", "plain"):
        assert pictures[name]["verified"] == 16
    assert pictures["plain"]["mixing"] is None
    assert pictures["medloom"]["mixing"]["shards"] == 12
    assert 1 < pictures["medloom"]["mixing"]["distinct"] <= 12


def test_leaving_out_the_decoding_leaves_the_loader(result: dict[str, Any]) -> None:
    overhead, pictures = (
        result["cases"][name]["peers"]["medloom"]["rounds"] for name in ("overhead", "pictures")
    )
    assert 0 < min(row["cpu_ms"] for row in overhead) < max(row["cpu_ms"] for row in pictures)


def test_what_was_not_measured_is_said(result: dict[str, Any]) -> None:
    shown = " ".join((result["markdown"] + result["stdout"]).split())
    assert "nifti was not measured: is no peer for a picture" in shown
    if importlib.util.find_spec("litdata") is None:
        assert "litdata was not measured: open: ModuleNotFoundError: No module named 'litdata'" in shown
    assert {row["verdict"] for row in result["targets"]} > {"not measured"}
    assert all(row["measured"] for row in result["targets"])


def test_the_machine_is_described_without_its_name(result: dict[str, Any]) -> None:
    import platform

    assert result["host"]["cores"] >= 1 and result["limits"]["copy_gb_s"] > 0
    assert result["command"].startswith("python -m benchmarks.loader --tiny")
    assert platform.node() not in json.dumps(result["host"])


def test_properties_hold(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "properties")["properties"]
    assert "failed" not in found, found
    assert found["resume"]["equal"] == found["resume"]["batches"] > 0
    assert found["resume"]["state_bytes"] <= 200
    assert found["elastic"]["equal"] == found["elastic"]["steps"] > 0
    assert found["corruption"] == {"injected": 4, "found": 4, "batches": "unchanged"}
    assert found["start_large"]["samples"] >= 10_000
    assert found["deep"]["medloom_per_s"] > 0 and found["growth"]["medloom"] > 0


def test_a_crop_is_found_where_it_was_cut_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    runner = importlib.import_module("benchmarks.runner")
    raw = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    crop = raw[3:11, 7:20, 5:30].copy()
    assert runner.located(raw, crop) == (3, 7, 5)
    crop[4, 4, 4] += 1
    assert runner.located(raw, crop) is None
    assert runner.located(raw, raw[:8, :8, :8].astype(np.int32)) is None
    assert runner.located(raw, raw[:8, :8, :8].transpose(2, 1, 0)) is None


def test_unknown_words_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    loader = importlib.import_module("benchmarks.loader")
    with pytest.raises(SystemExit):
        loader.main(["--peers", "medlom"])
    assert "known are medloom" in capsys.readouterr().err
