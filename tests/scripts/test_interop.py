"""`medloom shards import` and `export` from the command line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from medloom.data import open_shards
from medloom.scripts import cli
from PIL import Image


def write_shards(folder: Path, count: int = 4) -> Path:
    """Two tars with pictures, classes and a person's name."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for number in range(count):
                buffer = io.BytesIO()
                pixels = np.random.default_rng(10 * shard + number).integers(0, 255, (20, 22, 3), np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                facts = json.dumps({"who": f"Mustermann {number}", "grade": number % 2}).encode()
                for name, data in ((f"{number}.png", buffer.getvalue()), (f"{number}.json", facts)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_SALT", "a-salt-for-tests")


def test_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "Derm Set")
    out, files = tmp_path / "out", tmp_path / "files"
    words = ["--modality", "dermoscopy", "--organ", "skin", "--licence", "CC0-1.0", "--workers", "1"]
    argv = ["shards", "import", str(tmp_path / "Derm Set"), "--out", str(out), *words]
    assert cli.main([*argv, "options.subject=who", "options.label=grade"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 8 samples of derm_set, 1 files" in said
    shards = open_shards(out)
    metas = [shards.meta(ref) for ref in shards.refs()]
    assert {meta["labels"]["class"] for meta in metas} == {"0", "1"}
    assert len({meta["subject"] for meta in metas}) == 4
    assert {(meta["organ"], meta["licence"], meta["split"]) for meta in metas} == {
        ("skin", "CC0-1.0", "train")
    }

    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(meta["key"] for meta in metas[:3]))
    assert cli.main(["shards", "export", str(out), "--out", str(files), "--keys", str(keys)]) == 0
    assert "3 samples, 3 new files" in capsys.readouterr().out
    assert len(list(files.glob("derm_set/*.png"))) == 3
    assert cli.main(["shards", "export", str(out), "--out", str(files), "--sources", "derm_set"]) == 0
    assert "8 samples, 5 new files" in capsys.readouterr().out
    assert "CC0-1.0" in (files / "LICENCES.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["."], "say which with --from webdataset|litdata|nnunet"),
        (["wds", "options.subjekt=who"], "did you mean subject?"),
        (["wds", "options.subject=x"], "no subject: field x"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    write_shards(tmp_path / "wds", 1)
    monkeypatch.chdir(tmp_path / "empty" if words == ["."] else tmp_path)
    assert cli.main(["shards", "import", *words, "--out", "out", "--modality", "oct", "--workers", "1"]) == 2
    assert message in capsys.readouterr().err.replace("\n", "")


def test_a_list_of_no_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "wds", 1)
    out = str(tmp_path / "out")
    words = ["--modality", "oct", "--workers", "1"]
    assert cli.main(["shards", "import", str(tmp_path / "wds"), "--out", out, *words]) == 0
    (tmp_path / "keys").touch()
    export = ["shards", "export", out, "--out", str(tmp_path / "files"), "--keys"]
    assert cli.main([*export, str(tmp_path / "keys")]) == 2
    assert "lists no key" in capsys.readouterr().err
    assert cli.main([*export, str(tmp_path / "missing")]) == 2
