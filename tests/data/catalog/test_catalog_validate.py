"""Validation finds every fault that is put in, and corrections are patches that git applies."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
from medloom.data.catalog import load
from medloom.data.catalog.corrections import correct, relate
from medloom.data.catalog.parsing import TABLES, Parser, dataset, read
from medloom.data.catalog.validate import faults
from medloom.data.errors import ConfigError

PAGE = "https://example.org/terms"


def changed(folder: Path, table: str, key: str, column: str, value: str) -> Path:
    """A copy of the tables in which one cell of the row that starts with `key` is `value`."""
    tables = Path(shutil.copytree(TABLES, folder / "tables"))
    with (tables / table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if next(iter(row.values())) == key][:1]
    assert row[column] != value
    row[column] = value
    with (tables / table).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return tables


def test_the_packaged_tables_are_sound():
    assert faults() == []


@pytest.mark.parametrize(
    ("table", "key", "column", "value", "expected"),
    [
        ("datasets.csv", "lits", "id", "LiTS", "lower-case letters"),
        ("datasets.csv", "lits", "id", "kits19", "id occurs twice"),
        ("datasets.csv", "lits", "name", "KITS 19", "occurs twice"),
        ("datasets.csv", "lits", "modalities", "ct;mrj", "did you mean mri"),
        ("datasets.csv", "lits", "access", "free", "access: unknown 'free'"),
        ("datasets.csv", "lits", "formats", "docx", "formats: unknown 'docx'"),
        ("datasets.csv", "lits", "sources", "", "sources: empty"),
        ("datasets.csv", "lits", "n_images", "-3", "no positive whole number"),
        ("datasets.csv", "lits", "unit", "", "go together"),
        ("datasets.csv", "lits", "year", "20177", "expected 1950 to"),
        ("datasets.csv", "lits", "homepage", "www.lits.org", "is no address"),
        ("datasets.csv", "lits", "paper", "doi 10.1/x", "doi:10"),
        ("datasets.csv", "lits", "notes", "copied from /home/anna/lits", "path of somebody's machine"),
        ("overlaps.csv", "abdomenatlas", "b", "nowhere", "no dataset nowhere"),
        ("overlaps.csv", "abdomenatlas", "relation", "holds", "relation: unknown 'holds'"),
        ("overlaps.csv", "abdomenatlas", "basis", "guessed", "begins with read or recalled"),
        ("overlaps.csv", "abdomenatlas", "evidence_url", "a book", "is no address"),
        ("overlaps_more.csv", "pathmnist", "b", "pathmnist", "a relation to itself"),
        ("overlaps_more.csv", "pathmnist", "b", "nct-crc-he-100k", "related twice"),
        ("msd.csv", "Task03", "archive_md5", "xyz", "is no MD5"),
        ("msd.csv", "Task03", "n_test", "71", "202 cases, but datasets.csv has 201"),
        ("msd.csv", "Task03", "nnunet_leaderboard_dsc", "95.75", "1 scores for 2 structures"),
        ("medmnist.csv", "pathmnist", "n_val", "10005", "splits add up"),
        ("medmnist.csv", "pathmnist", "n_classes", "8", "9 labels for 8 classes"),
        ("medmnist.csv", "pathmnist", "md5_224", "", "is no MD5"),
        ("routes.csv", "lits", "id", "nowhere", "no dataset nowhere"),
        ("routes.csv", "lits", "metrics", "", "no metrics"),
    ],
)
def test_a_fault_is_found_where_it_is(tmp_path, table, key, column, value, expected):
    found = faults(changed(tmp_path, table, key, column, value))
    assert any(fault.table == table and expected in fault.text for fault in found), found


def test_all_faults_are_told_at_once(tmp_path):
    tables = changed(tmp_path, "datasets.csv", "lits", "homepage", "nowhere")
    text = (tables / "datasets.csv").read_text().replace("\nkits19,KiTS19,2019,", "\nkits19,KiTS19,3019,")
    (tables / "datasets.csv").write_text(text)
    assert {fault.row for fault in faults(tables)} == {"lits", "kits19"}
    (tables / "msd.csv").unlink()
    with pytest.raises(ConfigError, match=r"msd.csv: no such table"):
        faults(tables)


def applied(patch: str, folder: Path) -> Path:
    """Tables of a fresh git checkout after `git apply`."""
    home = folder / "data" / "catalog" / "tables"
    shutil.copytree(TABLES, home)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "apply", "-"], cwd=folder, input=patch.encode(), check=True)
    return home


def test_a_correction_is_a_patch_that_git_applies(tmp_path):
    catalog = load(own=())
    patch = correct(catalog["sliver07"], {"licence": "CC-BY-4.0", "organs": "liver;vessel"}, PAGE)
    tables = applied(patch, tmp_path)
    after = {row.id: row for row in read(tables / "datasets.csv", dataset, Parser())}
    row = after["sliver07"]
    assert (row.licence, [str(organ) for organ in row.organs]) == ("CC-BY-4.0", ["liver", "vessel"])
    assert PAGE in row.notes and row.notes.startswith(catalog["sliver07"].notes)
    assert row.sources == (*catalog["sliver07"].sources, "other:reported")
    assert [d for d in catalog.datasets if d.id != "sliver07"] == [
        d for d in after.values() if d.id != "sliver07"
    ]
    assert faults(tables) == []


def test_quoted_cells_keep_their_quotes(tmp_path):
    catalog = load(own=())
    identifier = next(d.id for d in catalog if "," in d.name and '"' not in d.name)
    tables = applied(correct(catalog[identifier], {"year": "2001"}, PAGE), tmp_path)
    (row,) = [d for d in read(tables / "datasets.csv", dataset, Parser()) if d.id == identifier]
    assert (row.name, row.year) == (catalog[identifier].name, 2001)


def test_a_missing_relation_is_a_patch_too(tmp_path):
    known = {item.id for item in load(own=())}
    tables = applied(relate("sliver07", "shares-cases", "lits", PAGE, known=known), tmp_path)
    with (tables / "overlaps_more.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["a"], last["relation"], last["b"], last["evidence_url"]) == (
        "sliver07", "shares-cases", "lits", PAGE,
    )  # fmt: skip
    assert faults(tables) == []


def test_a_wrong_correction_is_refused(tmp_path):
    catalog = load(own=())
    sliver, known = catalog["sliver07"], {item.id for item in catalog}
    for changes, message in (
        ({"licens": "MIT"}, "did you mean licence"),
        ({"id": "other"}, "no column that can be corrected"),
        ({"organs": "lver"}, "did you mean liver"),
        ({"year": "19999"}, "expected 1950"),
        ({"year": "2007"}, "says so already"),
    ):
        with pytest.raises(ConfigError, match=message):
            correct(sliver, changes, PAGE)
    with pytest.raises(ConfigError, match="is no address"):
        correct(sliver, {"year": "2008"}, "my memory")
    with pytest.raises(ConfigError, match="related twice"):
        relate("lits", "contains", "ircadb-3d", PAGE, known=known)
    with pytest.raises(ConfigError, match="did you mean lits"):
        relate("sliver07", "shares-cases", "litz", PAGE, known=known)
