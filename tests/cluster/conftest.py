"""The small shards and runs of the pretraining tests, and recipes of them for commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import to_yaml

from tests.pretrain.conftest import rows_of, tiny_config, tiny_shards  # noqa: F401  fixtures


@pytest.fixture
def recipe(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """(out, *overrides) -> YAML of a small run whose folder is `out`."""

    def write(out: Path, *overrides: str) -> Path:
        path = tmp_path / f"{out.name}.yaml"
        path.write_text(to_yaml(tiny_config(out, *overrides)))
        return path

    return write
