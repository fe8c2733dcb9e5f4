"""docs/collections.md names every layout with its options, and its examples are collections that load."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from medloom.data.collection import CollectionConfig
from medloom.data.config import structured
from medloom.data.layouts import LAYOUTS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "collections.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
ROWS = {
    name: line
    for line in TEXT.splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`(\w+)`", line.split("|")[1])
}
ELSEWHERE = {"litdata", "webdataset", "nnunet"}  # options in docs/interop.md


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_layout_is_in_the_table_with_its_options(layout: str) -> None:
    assert layout in ROWS
    if layout not in ELSEWHERE:
        named = set(re.findall(r"`(\w+)`", ROWS[layout].split("|")[3]))
        assert {field.name for field in dataclasses.fields(LAYOUTS[layout].Options)} <= named


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_is_a_collection(block: str, tmp_path: Path) -> None:
    known = {"name": "example", **yaml.safe_load(block)}
    (tmp_path / "collection.yaml").write_text(yaml.safe_dump(known))
    config = structured(CollectionConfig, tmp_path / "collection.yaml", [], where="example")
    assert config.sources
    for source in config.sources:
        structured(LAYOUTS[source.layout].Options, source.options, where=source.dataset)


def test_every_new_layout_has_an_example() -> None:
    shown = {source["layout"] for block in BLOCKS for source in yaml.safe_load(block).get("sources", [])}
    assert {"nnunet_raw", "cases", "bids", "medmnist", "coco", "voc", "yolo", "labelme", "video"} <= shown
