"""The wheel, installed into a folder of its own, works from elsewhere without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The editable install of the checkout would answer first through its import hook, so the hook is taken out.
UNHOOK = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "


def python(code: str, folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in `folder` with `site` before everything else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", UNHOOK + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_wheel_installs_and_runs_elsewhere(tmp_path: Path) -> None:
    source, wheels, site, elsewhere = (tmp_path / name for name in ("source", "wheels", "site", "elsewhere"))
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = wheels.glob("medloom-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True
    )

    shown = python("import medloom.data; print(medloom.data.__file__)", elsewhere, site)
    assert shown.stdout.startswith(str(site)), shown.stdout + shown.stderr
    found = python(
        "from medloom.data.config import find_config; print(find_config('pretrain', 'phantom-mae-2d'))",
        elsewhere,
        site,
    )
    assert str(site) in found.stdout, found.stderr
    helped = python("from medloom.scripts.cli import main; main(['--help'])", elsewhere, site)
    assert "pretrain" in helped.stdout, helped.stderr
    assert (site / "bin" / "medloom").exists()
