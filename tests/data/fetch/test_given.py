"""What the user has already goes the way of downloads; a licence is remembered."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from medloom.data.errors import ConfigError, StoreError
from medloom.data.fetch import licence
from medloom.data.fetch.fetch import fetch
from medloom.data.fetch.plan import given, plan

from . import sets
from .sets import QUICK, SPLEEN, names


def test_files_that_the_user_has_are_verified_and_unpacked(spleen, site, tmp_path):
    mine = tmp_path / "Downloads" / "Task09_Spleen (1).tar"
    mine.parent.mkdir()
    shutil.copy(site.folder / "Task09_Spleen.tar", mine)
    found = fetch(given(plan(spleen, SPLEEN), [mine]), tmp_path / "data", QUICK)
    assert found.images == 5 and site.seen == [] and mine.exists()
    mine.write_bytes(mine.read_bytes()[:-512])
    shutil.rmtree(found.folder)
    with pytest.raises(StoreError, match="the catalogue says"):
        fetch(given(plan(spleen, SPLEEN), [mine]), tmp_path / "data", QUICK)


def test_an_unpacked_folder_is_used_where_it_lies(spleen, site, tmp_path):
    shutil.unpack_archive(site.folder / "Task09_Spleen.tar", tmp_path / "unpacked", "tar")
    before = names(tmp_path / "unpacked")
    found = fetch(given(plan(spleen, SPLEEN), [tmp_path / "unpacked"]), tmp_path / "data", QUICK)
    assert found.images == 5 and names(tmp_path / "unpacked") == before
    assert names(found.folder) == ["collection.yaml"]


def test_a_dataset_behind_an_account_goes_on_from_a_folder_of_downloads(tmp_path):
    wanted = plan(sets.built_in(), "lits")
    assert wanted.parts == () and "challenge" in wanted.reason
    with pytest.raises(ConfigError, match="lits: cannot be fetched"):
        fetch(wanted, tmp_path, QUICK)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for number in (1, 2):
        sets.zip_of(downloads / f"batch_{number}.zip", [f"scans/{number}-{i}.png" for i in range(3)])
    found = fetch(given(wanted, [downloads]), tmp_path / "data", QUICK)
    assert found.images == 6
    with pytest.raises(ConfigError, match="no such file or folder"):
        given(wanted, [tmp_path / "nothing"])


# ---- licences


def test_a_licence_is_remembered_until_it_changes(spleen):
    dataset = spleen[SPLEEN]
    assert not licence.is_accepted(dataset)
    licence.accept(dataset, "typed yes")
    assert licence.is_accepted(dataset)
    known = json.loads((licence.home() / "accepted" / f"{SPLEEN}.json").read_text())
    assert known["licence"] == "CC-BY-SA-4.0" and known["how"] == "typed yes"
    assert not licence.is_accepted(replace(dataset, licence="CC-BY-NC-4.0"))
