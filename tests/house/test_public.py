"""The documented surface: three callables, light to import, still callable after their modules are loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "name"), [("data", "open_shards"), ("pretrain", "load_encoder"), ("finetune", "evaluate")]
)
def test_the_public_names_are_light_and_callable(package: str, name: str) -> None:
    code = (
        f"import sys, medloom.{package} as package\n"
        "assert not {'torch', 'blosc2', 'monai'} & set(sys.modules), 'importing it must stay light'\n"
        f"assert '{name}' in package.__all__\n"
        "import medloom.finetune.evaluation, medloom.pretrain.weights, medloom.data.shards.reader\n"
        f"assert callable(package.{name})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
