"""Survey, figures and page: from a collection and from its shards, by the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medloom.data.annotations.agreement import cohen_kappa
from medloom.data.annotations.agreement_report import letter, report
from medloom.data.annotations.kinds import parse_kinds
from medloom.data.annotations.survey import Case, Survey, survey_shards
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.interop.export import export
from medloom.data.shards.reader import Shards
from medloom.scripts.cli import main
from PIL import Image as Pillow

NAMES = ("Dr. Mustermann", "Dr. Musterfrau", "Dr. Muster")
GRADES = [(0, 0, 1), (2, 2, 2), (1, 2, 1), (0, 1, 0), (2, 2, 1), (1, 1, 1)]


def write_collection(folder: Path) -> Path:
    """Six volumes with masks of two structures by three annotators (one on a shifted grid), and one alone."""
    folder.mkdir()
    rows = ["path,who,seg,grade,size,found"]
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    for number, grades in enumerate(GRADES):
        volume = np.random.default_rng(number).normal(0, 9, (20, 18, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / f"{number}.nii.gz")
        for place, (name, grade) in enumerate(zip(NAMES, grades, strict=True)):
            mask = np.zeros(volume.shape, np.uint8)
            mask[3:9, 3 : 9 + place, 2:6] = 1
            mask[11:17, 3 : 9 + place, 2:6] = 2
            grid = affine.copy()
            grid[0, 3] = 3.0 * (number == 4 and place == 1)
            file = f"{number}_{place}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(mask, grid), folder / file)
            found = "cyst|stone" if place == number % 3 else "cyst"
            rows.append(f"{number}.nii.gz,{name},{file},{grade},{10 * number + place},{found}")
    (folder / "alone.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes())
    rows.append(f"alone.nii.gz,{NAMES[0]},4_1.nii.gz,0,7,cyst")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    text = """
        name: read thrice
        salt: a-salt-for-tests
        sources:
          - dataset: mr
            layout: table
            modality: mri
            organ: kidney
            mask_classes: {1: left, 2: right}
            consensus: majority
            label_kinds:
              grade: {kind: ordinal, order: [0, 1, 2]}
              size: {kind: value, unit: mm}
              found: {kind: multi-label, separator: "|"}
            options: {annotator: who, mask: seg, labels: [grade, size, found]}
        """
    path = folder / "c.yaml"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("agreement")
    write_collection(base / "in")
    return base


@pytest.fixture(scope="module")
def status(folder: Path) -> int:
    """Exit status of the command on the collection; what it wrote is in `page`."""
    return main(
        ["data", "agreement", str(folder / "in" / "c.yaml"), "--out", str(folder / "page"), "--every-mask"]
    )


def figures(path: Path) -> dict:
    (dataset,) = json.loads((path / "agreement.json").read_text())["datasets"]
    return dataset


def test_the_command_writes_every_figure(folder: Path, status: int) -> None:
    assert status == 1  # a mask does not fit
    found = figures(folder / "page")
    assert (found["images"], found["cases"], found["checked"]) == (7, 6, 7)
    assert [one["cases"] for one in found["annotators"]] == [6, 6, 6]
    labels = {entry["label"]: entry for entry in found["labels"]}
    assert set(labels) == {"found: cyst", "found: stone", "grade", "size"}
    assert [one["name"] for one in labels["size"]["coefficients"]][:3] == [
        "Krippendorff's alpha, interval", "ICC(1,1)", "ICC(2,1)",
    ]  # fmt: skip
    differences = sorted(abs(row["difference"]) for row in labels["size"]["pairs"])
    assert differences == [1.0, 1.0, 2.0] and all(
        row["lower"] == row["upper"] for row in labels["size"]["pairs"]
    )
    assert labels["found: cyst"]["coefficients"][0]["value"] is None  # all said yes: not defined
    table = np.array(GRADES, float)
    expected = sorted(
        round(cohen_kappa(table[:, a], table[:, b], "quadratic"), 4) for a, b in ((0, 1), (0, 2), (1, 2))
    )
    assert sorted(row["kappa, quadratic"] for row in labels["grade"]["pairs"]) == pytest.approx(
        expected, abs=1e-4
    )


def test_masks_are_compared_in_millimetres(folder: Path, status: int) -> None:
    rows = figures(folder / "page")["masks"]
    overall = {row["structure"]: row for row in rows if row["pair"] is None}
    # Heights 6, 7 and 8 of otherwise equal boxes: Dice 12/13, 12/14, 14/15.
    dice = np.mean([12 / 13, 12 / 14, 14 / 15])
    assert overall["left"]["dice"] == overall["right"]["dice"] == pytest.approx(dice, abs=1e-4)
    assert overall["left"]["cases"] == 5 and overall["left"]["unit"] == "mm"
    by_pair = sorted(row["hd95"] for row in rows if row["pair"] and row["structure"] == "left")
    assert by_pair == [1.0, 1.0, 2.0]


def test_what_does_not_fit_is_listed_with_its_reason(folder: Path, status: int) -> None:
    faults = figures(folder / "page")["faults"]
    assert len(faults) == 2  # one of three annotators of an image, and the one of another
    assert all("shifted by (3, 0, 0) mm" in fault["reason"] for fault in faults)


def test_no_name_stands_on_the_page_or_in_the_json(folder: Path, status: int) -> None:
    for name in ("index.html", "agreement.json"):
        text = (folder / "page" / name).read_text()
        assert "Muster" not in text and "nii.gz" not in text and str(folder) not in text


def test_the_page_shows_the_cases_that_differ_most_and_needs_nothing_else(folder: Path, status: int) -> None:
    text = (folder / "page" / "index.html").read_text()
    assert text.count("<img") == len(figures(folder / "page")["worst"]) == 5
    assert not re.search(r"<script|https?://|<link", text)
    assert text.count("<table") == text.count("</table>") > 5


def test_shards_give_the_same_agreement_without_a_pixel(folder: Path, status: int) -> None:
    build(Collection.load(folder / "in" / "c.yaml"), folder / "shards")
    assert main(["data", "agreement", str(folder / "shards"), "--out", str(folder / "page2")]) == 0
    before, after = figures(folder / "page"), figures(folder / "page2")
    assert after["cases"] == 5  # one image was refused
    assert [one["key"] for one in after["annotators"]] == sorted(one["key"] for one in before["annotators"])
    overall = {row["structure"]: row["dice"] for row in before["masks"] if row["pair"] is None}
    assert {row["structure"]: row["dice"] for row in after["masks"] if row["pair"] is None} == overall


def test_an_export_keeps_shapes_readings_and_kinds_and_can_be_built_again(
    folder: Path, tmp_path: Path
) -> None:
    build(Collection.load(folder / "in" / "c.yaml"), tmp_path / "shards")
    export(tmp_path / "shards", tmp_path / "files")
    lines = [
        json.loads(line) for line in (tmp_path / "files" / "mr" / "metadata.jsonl").read_text().splitlines()
    ]
    shards = Shards.open(tmp_path / "shards")
    metas = {meta["key"]: meta for meta in map(shards.meta, shards.refs("mr-3d"))}
    for line in lines:
        assert line["readings"] == metas[line["key"]]["readings"] and line["shapes"] == []
    with (tmp_path / "files" / "collection.yaml").open("a") as stream:
        stream.write("salt: another-salt\n")
    again = build(Collection.load(tmp_path / "files" / "collection.yaml"), tmp_path / "again").manifest
    assert again.sources[0].labels == shards.manifest.sources[0].labels
    assert again.sources[0].label_kinds == shards.manifest.sources[0].label_kinds


def test_a_collection_that_nobody_read_twice_says_what_to_do(tmp_path: Path, capsys) -> None:
    Pillow.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("path\na.png\n")
    (tmp_path / "c.yaml").write_text(
        "name: c\nsalt: a-salt-for-tests\nsources: [{dataset: d, layout: table}]\n"
    )
    assert main(["data", "agreement", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "no image has two annotators" in " ".join(capsys.readouterr().err.split())


def test_marks_and_missing_readings_in_a_report() -> None:
    kinds = parse_kinds({"age": {"kind": "value", "unit": "years"}}, "x")
    cases = [
        Case(f"k{n}", said={"a": {"age": 50.0 + n, "side": "L"}, "b": {"age": 50.0 + n} if n else {}},
             marks=[{"a": "a", "b": "b", "kind": "box", "label": "cell", "boxes": [2, 2], "matched": n % 2,
                     "iou": 0.8 if n % 2 else None, "f1": (n % 2) / 2},
                    {"a": "a", "b": "b", "kind": "point", "label": "tip", "distance": float(n)}])
        for n in range(6)
    ]  # fmt: skip
    found = report(Survey("d", kinds, 9, cases))
    (age,) = found["labels"]  # side was said by one annotator only
    assert age["cases"] == 5 and age["coefficients"][0]["value"] == 1
    box, point = found["marks"]
    assert (box["f1"], box["iou"]) == (0.25, 0.8) and (point["mean"], point["unit"]) == (2.5, "mm")
    assert [row["what"] for row in found["worst"]] == ["cell"] * 6
    json.dumps(found, allow_nan=False)


def test_letters_go_on_after_z() -> None:
    assert [letter(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_shards_before_format_3_have_no_annotators(example) -> None:
    assert survey_shards(Shards.open(example.path)) == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_the_screen(folder: Path, status: int, tmp_path: Path, width: int) -> None:
    """In a headless browser: the body is as wide as the window, all pictures are decoded."""
    page = (folder / "page" / "index.html").read_text()
    probe = (
        "<script>addEventListener('load', () => { const i = [...document.images];"
        "document.title = [document.documentElement.scrollWidth <= innerWidth,"
        " i.length > 0 && i.every(x => x.naturalWidth > 50)].join() })</script>"
    )
    (tmp_path / "probe.html").write_text(f"<html>{page}{probe}")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", profile,
               f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'probe.html'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "<title>true,true</title>" in done.stdout
