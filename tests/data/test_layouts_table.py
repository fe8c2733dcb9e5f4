"""data/layouts/table.py: a row per image, from CSV, TSV and Parquet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from medloom.data.config import structured
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.layouts import LAYOUTS, Refusal, Source
from medloom.data.sample import Modality, Organ, Record

TABLE = LAYOUTS["table"]


def scan(
    root: Path, text: str | None = None, /, name: str = "manifest.csv", **options: Any
) -> list[Record | Refusal]:
    if text is not None:
        (root / name).write_text(text)
        for line, column in itertools.product(text.splitlines()[1:], range(3)):
            cells = line.replace("\t", ",").split(",")
            if column < len(cells) and cells[column].endswith((".png", ".nii.gz")):
                path = root / cells[column].lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"junk")
    checked = structured(TABLE.Options, {"file": name, **options}, where="options")
    source = Source(dataset="d", layout="table", root=root, modality=Modality.CT, options=checked)
    return list(TABLE.scan(root, source, checked))


def only(items: list[Record | Refusal]) -> Record:
    assert len(items) == 1 and isinstance(items[0], Record), items
    return items[0]


def why(items: list[Record | Refusal]) -> str:
    assert len(items) == 1 and isinstance(items[0], Refusal), items
    return items[0].reason


def test_every_role_is_read_from_its_column(tmp_path: Path) -> None:
    text = (
        "file,mask,kind,who,when,set,mod,part,age,view\n"
        "i/a.png,m/a.png,benign,p1,s1,training,MR,retina,61,AP\n"
    )
    options = {
        "path": "file", "mask": "mask", "label": "kind", "subject": "who", "study": "when", "split": "set",
        "modality": "mod", "organ": "part", "labels": ["view"], "values": {"age": "age_years"},
    }  # fmt: skip
    record = only(scan(tmp_path, text, **options))
    assert record == Record(
        dataset="d", name="i/a.png", subject="p1", paths=(tmp_path / "i/a.png",), modality=Modality.MRI,
        organ=Organ.EYE, study="s1", split="train", mask=tmp_path / "m/a.png",
        labels={"class": "benign", "view": "AP", "age_years": 61},
    )  # fmt: skip


def test_without_options_a_path_column_is_enough(tmp_path: Path) -> None:
    record = only(scan(tmp_path, "path\na/b.png\n"))
    assert (record.name, record.subject, record.modality, record.labels) == (
        "a/b.png",
        "a/b.png",
        Modality.CT,
        {},
    )


def test_empty_cells_mean_unknown(tmp_path: Path) -> None:
    text = "path,label,split,modality,mask,age\na.png,,,,,\n"
    record = only(
        scan(tmp_path, text, label="label", split="split", modality="modality", mask="mask", labels=["age"])
    )
    assert (record.labels, record.split, record.modality, record.mask) == ({}, None, Modality.CT, None)


def test_numbers_in_label_columns_become_numbers_but_codes_stay_text(tmp_path: Path) -> None:
    text = "path,a,b,c,d,label\nx.png,3,-2.5e1,007,n/a,1\n"
    record = only(scan(tmp_path, text, labels=["a", "b", "c", "d"], label="label"))
    assert record.labels == {"a": 3, "b": -25.0, "c": "007", "d": "n/a", "class": "1"}


def test_a_tab_separated_table_and_a_byte_order_mark(tmp_path: Path) -> None:
    items = scan(tmp_path, "\ufeffpath\tlabel\nx.png\tfine, really\n", name="t.tsv", label="label")
    assert only(items).labels == {"class": "fine, really"}


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"junk")
    (tmp_path / "y.png").write_bytes(b"junk")
    columns = {
        "path": ["x.png", "y.png"],
        "label": [1.0, None],
        "age": [61.5, float("nan")],
        "sick": [True, False],
        "who": [7, 8],
        "unused": [b"\xff", b"\x00"],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    first, second = scan(tmp_path, name="t.parquet", label="label", labels=["age", "sick"], subject="who")
    assert isinstance(first, Record) and isinstance(second, Record)
    assert first.labels == {"class": "1", "age": 61.5, "sick": True}
    assert second.labels == {"sick": False}
    assert (first.subject, second.subject) == ("7", "8")


def test_templates_make_paths_from_columns(tmp_path: Path) -> None:
    for name in ("img/7.png", "seg/7_s.png", "img/8.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "manifest.csv").write_text("id,seg\n7,s\n8,\n")
    first, second = scan(tmp_path, path="img/{id}.png", mask="seg/{id}_{seg}.png")
    assert isinstance(first, Record) and isinstance(second, Record)
    assert (first.name, first.mask, second.mask) == ("img/7.png", tmp_path / "seg/7_s.png", None)


def test_names_encode_columns(tmp_path: Path) -> None:
    items = scan(
        tmp_path,
        "path\nimages/07_MRI-FLAIR_brain.png\n",
        path_pattern=r"/(?P<number>\d+)_(?P<mod>[^_]+)_(?P<part>[^_.]+)\.",
        subject="number",
        modality="mod",
        organ="part",
        words={"modality": {"MRI-FLAIR": "mri"}},
    )
    record = only(items)
    assert (record.subject, record.modality, record.organ) == ("07", Modality.MRI, Organ.BRAIN)


def test_words_translate_by_role_and_numbers_are_words_too(tmp_path: Path) -> None:
    text = "path,y,fold\nx.png,1,0\n"
    record = only(
        scan(tmp_path, text, label="y", split="fold", words={"label": {1: "sick"}, "split": {0: "test"}})
    )
    assert (record.labels, record.split) == ({"class": "sick"}, "test")


def test_windows_paths_and_dots_are_tidied(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").write_bytes(b"junk")
    record = only(scan(tmp_path, "path\n.\\a\\b.png\n"))
    assert record.name == "a/b.png"
    assert record.paths[0].is_file()


def test_absolute_paths_below_the_root_are_named_relatively(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"junk")
    (tmp_path / "manifest.csv").write_text(f"path\n{tmp_path}/b.png\n")
    assert only(scan(tmp_path)).name == "b.png"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",m.png,a,train,ct", "no path"),
        ("gone.jpg,m.png,a,train,ct", "file is missing"),
        ("x.png,gone.jpg,a,train,ct", "mask gone.jpg: file is missing"),
        ("x.png,m.png,,train,ct", "no subject"),
        ("x.png,m.png,a,trian,ct", "unknown split 'trian'; did you mean train"),
        ("x.png,m.png,a,train,kt", "unknown modality 'kt'"),
        (".,m.png,a,train,ct", "is not a file"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_alone(tmp_path: Path, row: str, reason: str) -> None:
    good = "good.png,m.png,p,train,ct"
    text = f"path,mask,who,split,mod\n{good}\n{row}\n"
    items = scan(tmp_path, text, mask="mask", subject="who", split="split", modality="mod")
    assert isinstance(items[0], Record)
    assert reason in why(items[1:])


def test_a_name_that_the_pattern_does_not_meet_is_refused(tmp_path: Path) -> None:
    assert "does not match" in why(scan(tmp_path, "path\nx.png\n", path_pattern=r"(?P<a>\d)", subject="a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "fiel"}, r"no column 'fiel' \(options.path\); did you mean file"),
        ({"path": "img/{nr}.png"}, r"no column 'nr' \(options.path\)"),
        ({"path": "file", "label": "lable"}, r"no column 'lable' \(options.label\); did you mean label"),
        ({"path": "file", "labels": ["agee"]}, r"no column 'agee' \(options.labels\)"),
        ({"path": "file", "values": {"agee": "x"}}, r"no column 'agee' \(options.values\)"),
        ({"path": "file", "path_pattern": "(?P<label>x)"}, "'label', which is a column"),
    ],
)
def test_a_missing_column_stops_the_scan(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CollectionError, match=message):
        scan(tmp_path, "file,label\nx.png,a\n", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("path\n", "no rows"),
        ("path,path\na,b\n", "'path' appears twice"),
        ("path,label\nx.png\n", "line 2: 1 cells for 2 columns"),
        ('path\n"x.png\n', "cannot be read"),
    ],
)
def test_a_broken_table_stops_the_scan(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CollectionError, match=message):
        scan(tmp_path, text)


def test_a_missing_table_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "manifests.csv").write_text("path\n")
    with pytest.raises(CollectionError, match=r"no such table.*manifests\.csv"):
        scan(tmp_path)


def test_tables_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(CollectionError, match="cannot be read as Parquet"):
        scan(tmp_path, name="t.parquet")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(CollectionError, match=r"unknown kind of table '\.xlsx'"):
        scan(tmp_path, name="t.xlsx")
    (tmp_path / "latin.csv").write_bytes(b"path\ncaf\xe9.png\n")
    with pytest.raises(CollectionError, match="UTF-8"):
        scan(tmp_path, name="latin.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": {"modalty": {}}}, "did you mean modality"),
        ({"words": {"modality": "mri"}}, "words.modality: expected"),
        ({"words": {"split": {"a": "train"}}}, "words.split: translates nothing"),
        ({"path_pattern": r"(\d+)"}, "no named group"),
        ({"path_pattern": "("}, "not a regular expression"),
    ],
)
def test_options_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structured(TABLE.Options, options, where="options")
