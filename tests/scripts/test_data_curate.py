"""`medloom data curate`: what the command prints, and the build after it."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from medloom.scripts.cli import main
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter


@pytest.fixture
def collection(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(4):
        values = gaussian_filter(np.random.default_rng(number).normal(size=(120, 140)), 4)
        pixels = ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
        if number == 0:
            Pillow.fromarray(pixels[4:]).save(tmp_path / "in" / "again.jpg", quality=80)
    path = tmp_path / "c.yaml"
    path.write_text(
        textwrap.dedent("""
        name: small
        salt: a-salt-for-tests
        sources:
          - {dataset: pictures, layout: image_folder, root: in, modality: x-ray, licence: CC0-1.0}
        """)
    )
    return path


def test_curate_and_build(collection, tmp_path, capsys):
    out = tmp_path / "curated"
    command = ["data", "curate", str(collection), "--out", str(out), "--workers", "0"]
    assert main([*command, "--list"]) == 0
    printed = capsys.readouterr().out
    assert "drop near: pictures/again.jpg score=" in printed
    assert "of pictures/0.png" in printed
    assert "5 records, 5 images looked at" in printed
    assert f"--curation {out / 'curation.json'}" in printed
    assert (out / "sheets" / "near.png").is_file()
    assert "again" not in (out / "curation.json").read_text()

    shards = tmp_path / "shards"
    build = ["shards", "build", str(collection), "--out", str(shards), "--workers", "0"]
    assert main([*build, "--curation", str(out)]) == 0
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["held_out"]["excluded"] == {"curation: near": 1}

    assert main([*command, "--flag", "near", "--no-sheets"]) == 0
    assert "near  flag    pictures" in " ".join(capsys.readouterr().out.split("\n"))
    assert main([*build, "--curation", str(out)]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop", "nears"], "did you mean near"),
        (["--threshold", "near_2d"], "expected NAME=VALUE"),
        (["--threshold", "near2d=1"], "did you mean near_2d"),
        (["--catalogue", "picture=lits"], "did you mean pictures"),
        (["--clean-for", "msd-task03-livr"], "msd-task03-liver"),
    ],
)
def test_wrong_words_name_the_right_ones(collection, tmp_path, capsys, words, message):
    assert main(["data", "curate", str(collection), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_help_lists_every_rule(capsys):
    from medloom.data.curate.findings import RULES

    with pytest.raises(SystemExit):
        main(["data", "curate", "--help"])
    printed = capsys.readouterr().out
    assert all(f"  {rule} " in printed for rule in RULES)
