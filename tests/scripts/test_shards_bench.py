"""`medloom shards bench`: prints rates, waits, the limit and an advice; refuses what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.phantoms.phantoms import generate
from medloom.scripts import cli


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    build(Collection.load(generate(folder / "phantoms", subjects=6, size=32)), folder / "shards")
    return folder / "shards"


QUICK = ["--seconds", "0.05", "--repeats", "1", "--workers", "1,2", "--step-ms", "5,400", "--batch", "4"]


def test_it_says_whether_the_loader_keeps_up(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["shards", "bench", str(shards), "--crop", "24,24,24", *QUICK, "--json", str(tmp_path / "b.json")]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for part in ("one crop, one process", "crops/s", "CPU ms a crop", "keeps up", "warm:", "cold:"):
        assert part in shown, shown
    assert "step of 400 ms: data.workers=" in shown
    assert "step of 5 ms: " in shown
    written = json.loads((tmp_path / "b.json").read_text())
    assert [rate["workers"] for rate in written["rates"]] == [1, 2]
    assert written["limit"] in shown and len(written["waits"]) == 4


def test_the_crop_chooses_images_or_volumes(shards: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["shards", "bench", str(shards), "--crop", "32,32", *QUICK]) == 0
    assert "batches of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "at least 1"),
        (["--workers", "0"], "at least 1"),
        (["--step-ms", "0"], "more than 0 ms"),
        (["--crop", "1,2,3,4"], "data.ndim is 4"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    shards: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["shards", "bench", str(shards), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["shards", "bench", str(tmp_path)]) == 2
    assert "manifest.json is missing" in " ".join(capsys.readouterr().err.split())
