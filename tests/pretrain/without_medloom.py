"""Python that cannot import medloom: no editable hook, no checkout, no variables; packages beside it stay."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

# -S leaves out the .pth files through which the checkout is installed; the packages are put back by hand.
START = """
import sys
sys.path.append({site!r})
try:
    import medloom
except ImportError:
    pass
else:
    raise SystemExit("this process can import medloom, so it proves nothing")
"""


def alone(code: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What `code` prints, run in `folder` by a Python without medloom; fails with what it complained of.

    Args:
        environment: variables; None: those of this process.
    """
    site = sysconfig.get_paths()["purelib"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", START.format(site=site) + code],
        cwd=folder,
        env={**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
