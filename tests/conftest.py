"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is judged by the change; `make test-all` draws new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("default" if os.environ.get("MEDLOOM_NEW_EXAMPLES") else "fixed")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as the command line does

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _private_homes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, salt or W&B login."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("MEDLOOM_SALT", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Python waits for such processes when it exits: a leak would hang the run after its last test."""
    yield
    gc.collect()
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left, f"tests left processes running: {left}"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real collection, or skip: it is not part of the repository."""
    folder = Path(os.environ.get("MEDLOOM_REALDATA", ROOT.parent / "shared" / "realdata"))
    if not (folder / "index.json").is_file():
        pytest.skip(f"the real collection is not at {folder}; set MEDLOOM_REALDATA to use it")
    return folder
