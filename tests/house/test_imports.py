"""Import direction data <- pretrain <- finetune <- scripts, packaging lists, the limits of the house."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("data", "pretrain", "finetune", "scripts")
FILES = [path for folder in (*ORDER, "configs") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level folder of every medloom import in `path`, relative ones resolved."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            full = (*base, *(node.module or "").split("."))
            yield next((part for part in full if part), node.names[0].name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from _absolute(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(alias.name)


def _absolute(name: str) -> Iterator[str]:
    parts = name.split(".")
    if parts[0] == "medloom" and len(parts) > 1:
        yield parts[1]
    elif parts[0] in ORDER:
        yield f"bare import of {parts[0]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    if own not in ORDER:
        return
    allowed = {*ORDER[: ORDER.index(own) + 1], "configs"}
    wrong = {name for name in imported_packages(path) if name not in allowed}
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: only {sorted(allowed)} are to its left"


def test_a_wrong_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    bad = tmp_path / "data" / "bad.py"
    bad.write_text("from ..pretrain.run import pretrain\nfrom .sample import Sample\nimport data\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert set(imported_packages(bad)) == {"pretrain", "data", "bare import of data"}


def test_every_package_is_listed_for_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    present = {
        "medloom." + ".".join(init.parent.relative_to(ROOT).parts)
        for folder in (*ORDER, "configs")
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == present


def test_no_medloom_folder_at_the_root() -> None:
    assert not (ROOT / "medloom").exists(), (
        "it would hide the installed namespace from Python in the checkout"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_house_limits(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path.name}: a module opens with what it does"
    assert len(text.splitlines()) <= 400, f"{path.name}: over 400 lines, split it by concept"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines, at most 60"
