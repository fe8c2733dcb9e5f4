"""`medloom catalog page` and `medloom gallery`: what the user gets and is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from medloom.scripts import cli


def test_catalog_page_writes_one_file_with_own_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "datasets:\n  - {id: our-knees, name: Our Knees, modalities: [mri], organs: [joint]}\n"
        "overlaps:\n  - {a: our-knees, relation: contains, b: lits}\n"
    )
    assert cli.main(["catalog", "page", "--out", str(tmp_path / "page"), "--own", str(own)]) == 0
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["index.html"]
    text = (tmp_path / "page/index.html").read_text()
    assert "Our Knees" in text and str(tmp_path) not in text
    assert "1,315 datasets" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["catalog", "page", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "choose another --out" in error and "Traceback" not in error


def test_gallery_says_what_it_shows_and_what_was_left_out(
    tmp_path: Path,
    make_layout: Callable[[Path, dict[str, list[int]]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = make_layout(tmp_path / "shards", {"a-2d": [9], "b-3d": [2]})
    out = tmp_path / "gallery"
    assert cli.main(["gallery", str(shards), "--out", str(out), "--per-cell", "4"]) == 0
    said = capsys.readouterr().out
    assert "6 samples of 2 kinds" in said and "left out" not in said
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert cli.main(["gallery", str(shards), "--out", str(out), "--size-mb", str(size * 0.9 / 1e6)]) == 0
    assert "left out for want of room" in capsys.readouterr().out
    assert cli.main(["gallery", str(shards), "--out", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err
