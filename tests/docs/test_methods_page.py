"""docs/methods.md is what the code says of itself."""

from __future__ import annotations

from pathlib import Path

from medloom.pretrain.methods import cross_table, markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    assert markdown(cross_table()) in PAGE.read_text(), "paste what `medloom methods --markdown` says"
