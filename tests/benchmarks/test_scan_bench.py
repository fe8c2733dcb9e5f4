"""benchmarks/scan.py at a small size: every tree is scanned whole, and no image is opened for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from medloom.data.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ("yolo",)  # its coordinates are shares of a size that only the header says
ELSEWHERE = {"litdata", "webdataset", "nnunet"}  # other tools' packed formats: tests/data/interop


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import scan

    return scan


def test_every_layout_has_a_tree(bench: ModuleType) -> None:
    assert set(bench.TREES) == set(LAYOUTS) - ELSEWHERE


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - ELSEWHERE))
def test_a_tree_is_scanned_whole_without_opening_an_image(
    bench: ModuleType, layout: str, tmp_path: Path
) -> None:
    row = bench.measure(layout, tmp_path, 60, 1)
    assert row.tree.records > 0
    assert row.opened == (row.tree.records if layout in HEADERS else 0)
    assert layout in bench.report([row])
