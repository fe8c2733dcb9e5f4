"""`medloom data fetch` as a user meets it: terms, the question, the way to shards, and the steps by hand."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from medloom.scripts import cli

from ..data.loopback import serve

RECORD = """datasets:
  - {{id: our-derm, name: Our dermoscopy, modalities: [dermoscopy], organs: [skin], licence: CC-BY-NC-4.0,
     access: open, homepage: "https://derm.example/terms", download: ["{url}/derm.zip"]}}
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An own record of the catalogue whose archive lies on the loopback."""
    import io

    from PIL import Image

    folder = tmp_path / "site"
    folder.mkdir()
    with zipfile.ZipFile(folder / "derm.zip", "w") as archive:
        for number in range(6):
            buffer = io.BytesIO()
            Image.new("L", (24, 20), 40 * number).save(buffer, "PNG")
            archive.writestr(f"derm/{'nevus' if number % 2 else 'melanoma'}/{number}.png", buffer.getvalue())
    with serve(folder) as running:
        record = tmp_path / "own.yaml"
        record.write_text(RECORD.format(url=running.url))
        monkeypatch.setenv("MEDLOOM_CATALOG", str(record))
        monkeypatch.chdir(tmp_path)
        yield running


def medloom(*words: str) -> int:
    return cli.main(list(words))


def test_the_way_from_an_identifier_to_shards(site, capsys):
    assert medloom("data", "fetch", "our-derm", "--accept-licence") == 0
    out = capsys.readouterr().out
    assert "licence: CC-BY-NC-4.0 (non-commercial)" in out and "https://derm.example/terms" in out
    assert "datasets/our-derm/collection.yaml: 6 images" in out
    build = next(line for line in out.splitlines() if "shards build" in line).removeprefix("next: medloom ")
    assert medloom(*build.split()) == 0
    assert medloom("shards", "check", "shards/our-derm") == 0
    head = Path("datasets/our-derm/collection.yaml").read_text().splitlines()[0]
    assert head.startswith("# Written by `medloom data fetch our-derm`")


def test_without_a_terminal_the_licence_needs_the_option_once(site, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    assert medloom("data", "fetch", "our-derm") == 2
    assert "read https://derm.example/terms, then run the same command with --accept-licence" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    assert site.seen == [] and not Path("datasets").exists()
    assert medloom("data", "fetch", "our-derm", "--accept-licence") == 0
    assert medloom("data", "fetch", "our-derm", "--to", "elsewhere") == 0
    assert "accepted before" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "status"), [("yes", 0), ("no", 2), ("y", 2)])
def test_at_a_terminal_it_asks(site, answer, status):
    ours, theirs = pty.openpty()
    code = "import sys; from medloom.scripts.cli import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "data", "fetch", "our-derm"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.write(ours, f"{answer}\n".encode())
    out, error = child.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert child.returncode == status, error
    assert "Type yes to accept it" in out
    assert Path("datasets").exists() is (status == 0)


def test_a_dataset_that_cannot_be_fetched_prints_the_steps_and_fails(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert medloom("data", "fetch", "lits") == 2
    out = capsys.readouterr().out
    assert "cannot be fetched by this command" in out
    assert "1. open https://competitions.codalab.org/competitions/17094" in out
    assert "medloom data fetch lits --from datasets/downloads/lits --to datasets" in out
    assert list(tmp_path.iterdir()) == []


def test_wrong_names_and_sizes_are_one_line(capsys):
    assert medloom("data", "fetch", "msd-task09-splen") == 2
    assert medloom("data", "fetch", "organmnist3d", "--size", "224") == 2
    error = capsys.readouterr().err
    assert "did you mean msd-task09-spleen" in error and "organmnist3d comes in 28, 64" in error
