"""Names of mask values from the files of the tools, and refusals."""

from __future__ import annotations

import pytest
from medloom.data.annotations.names import read_names
from medloom.data.errors import CollectionError

NAMES = {1: "liver", 2: "left kidney"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"0": "background", "1": "liver", "2": "left kidney"}'),
        ("b.json", '{"labels": {"background": 0, "liver": 1, "left kidney": 2}, "name": "x"}'),
        ("dseg.tsv", "index\tname\tcolor\n1\tliver\t#ff0000\n2\tleft kidney\t#00ff00\n"),
        ("t.csv", "Name,Value\nbackground,0\nliver,1\nleft kidney,2\n"),
        (
            "snap.txt",
            '# ITK-SnAP\n    0     0    0    0        0  0  0    "Clear Label"\n'
            '    1   255    0    0        1  1  1    "liver"\n'
            '    2     0  255    0      0.5  1  1    "left kidney"\n',
        ),
        ("slicer.ctbl", "# Colors\n0 background 0 0 0 0\n1 liver 2 3 1 255\n2 left kidney 1 2 3 255\n"),
        ("ColorLUT.txt", "#No. Label  R G B A\n\n1   liver   70  130 180 0\n2   left kidney  1 2 3 0\n"),
    ],
)  # fmt: skip
def test_names_are_read_without_background(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "[1]", "expected an object"),
        ("a.json", '{"1": ["liver"]}', "expected a name or a number"),
        ("a.json", '{"1": "x", "2": "x"}', "name 'x' stands there twice"),
        ("a.tsv", "index\tname\n1\ta\n1\tb\n", "value 1 stands there twice"),
        ("a.tsv", "number\ttext\n1\ta\n", "expected columns index and name, found number, text"),
        ("a.txt", "liver = 1\n", "no value with name and colour"),
        ("a.txt", "# nothing\n", "names no value above 0"),
    ],
)
def test_what_holds_no_names_is_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(CollectionError, match=reason) as error:
        read_names(tmp_path / name)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CollectionError, match=r"none\.tsv: cannot be read"):
        read_names(tmp_path / "none.tsv")
