"""`medloom shards build`: what the command prints and returns."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from medloom.scripts.cli import main
from PIL import Image as Pillow


@pytest.fixture
def collection(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    path = tmp_path / "c.yaml"
    path.write_text(
        textwrap.dedent("""
        name: small
        salt: a-salt-for-tests
        sources:
          - {dataset: pictures, layout: image_folder, root: in, modality: dermoscopy, licence: CC0-1.0}
        """)
    )
    return path


def test_a_dry_run_prints_a_table_and_writes_nothing(collection, tmp_path, capsys):
    assert main(["shards", "build", str(collection), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "pictures" in printed
    assert "png 8 bit" in printed
    assert "CC0-1.0" in printed
    assert "to be written: about" in printed
    assert "time left" not in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_as_json(collection, tmp_path, capsys):
    command = ["shards", "build", str(collection), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sources"][0]["records"] == 4
    assert main([*command[:-2], "--json"]) == 2


def test_build_with_a_profile_and_then_a_dry_run(collection, tmp_path, capsys):
    command = ["shards", "build", str(collection), "--out", str(tmp_path / "out"), "--profile", "fast"]
    assert main([*command, "--workers", "1", "--memory-gb", "2"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["build"]["profile"] == "fast"
    capsys.readouterr()
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sources"][0]["done"] == plan["sources"][0]["units"] == 1
    assert plan["to_write"] == [0, 0, 0]


def test_refused_files_are_named_on_the_terminal_only(collection, tmp_path, capsys):
    for number in range(25):
        (tmp_path / "in" / f"erika-{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    command = ["shards", "build", str(collection), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.count("erika-") == 20 and "and 5 more" in printed.out
    assert "erika" not in printed.err and "refused: <file>" in printed.err
    assert "erika" not in (tmp_path / "out" / "failures.jsonl").read_text()
    assert main([*command, "--all-refused"]) == 0
    assert capsys.readouterr().out.count("erika-") == 25
