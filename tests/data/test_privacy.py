"""data/privacy.py: keys depend on the salt and on nothing else; the salt is made once and is private."""

from __future__ import annotations

import multiprocessing
import os
import re
import stat
from pathlib import Path

import pytest
from medloom.data import privacy
from medloom.data.errors import ConfigError

SALT = b"a salt for tests"


def test_a_key_is_the_dataset_and_sixteen_hex() -> None:
    key = privacy.key_of(SALT, "derm_ham10000", "images/ISIC_0024468.jpg")
    assert re.fullmatch(r"derm_ham10000-[0-9a-f]{16}", key)
    assert key == privacy.key_of(SALT, "derm_ham10000", "images/ISIC_0024468.jpg")


def test_every_part_and_the_salt_change_the_key() -> None:
    base = privacy.key_of(SALT, "a", "x")
    others = {
        privacy.key_of(b"another salt", "a", "x")[-16:],
        privacy.key_of(SALT, "b", "x")[-16:],
        privacy.key_of(SALT, "a", "y")[-16:],
        privacy.key_of(SALT, "a", "x", "frame-0001")[-16:],
        privacy.subject_key(SALT, "a", "x"),
        privacy.salt_fingerprint(SALT),
    }
    assert len(others) == 6
    assert base[-16:] not in others


def test_parts_do_not_run_into_each_other() -> None:
    assert privacy.key_of(SALT, "a", "bc", "d") != privacy.key_of(SALT, "a", "b", "cd")


def test_keys_are_stable_across_versions() -> None:
    # Shards built by an older medloom must keep meeting the held-out subjects of a newer one.
    assert privacy.key_of(SALT, "a", "x") == "a-d9e3b7bd8fbc3327"
    assert privacy.subject_key(SALT, "a", "x") == "0bc242fa94db8dc7"


def test_names_that_are_not_utf8_have_keys(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert privacy.key_of(SALT, "a", name) != privacy.key_of(SALT, "a", "café.png")


def test_a_salt_longer_than_a_blake2_key_counts_to_its_end() -> None:
    assert privacy.salt_fingerprint(b"x" * 100 + b"a") != privacy.salt_fingerprint(b"x" * 100 + b"b")


@pytest.mark.parametrize("dataset", ["", "HAM", "a b", "a/b", "../a", "x" * 61, "ä"])
def test_a_dataset_that_is_no_slug_is_refused(dataset: str) -> None:
    with pytest.raises(ConfigError, match="a-z 0-9 _ -"):
        privacy.key_of(SALT, dataset, "x")


def test_an_empty_salt_is_refused() -> None:
    with pytest.raises(ConfigError, match="salt is empty"):
        privacy.subject_key(b"", "a", "x")


def test_the_salt_file_is_made_once_with_mode_600() -> None:
    assert not privacy.salt_path().exists()
    first = privacy.load_salt()
    assert len(first) >= 32
    assert stat.S_IMODE(privacy.salt_path().stat().st_mode) == 0o600
    assert privacy.load_salt() == first
    assert [entry.name for entry in privacy.salt_path().parent.iterdir()] == ["salt"]


def test_two_homes_have_two_salts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = privacy.load_salt()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert privacy.load_salt() != first


def _load(_: int) -> bytes:
    return privacy.load_salt()


def test_processes_that_make_the_salt_at_once_agree() -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_load, range(16), chunksize=1))) == 1


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_SALT", "from the environment")
    assert privacy.load_salt() == b"from the environment"
    assert not privacy.salt_path().exists()


def test_a_short_salt_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_SALT", "short")
    with pytest.raises(ConfigError, match=r"MEDLOOM_SALT.*5 characters"):
        privacy.load_salt()


def test_a_salt_that_cannot_be_made_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set MEDLOOM_SALT"):
        privacy.load_salt()
