"""A run over damaged shards: it goes on with substitutes, says so in its folder, and stops at the budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ShardError
from medloom.data.shards.reader import Shards
from medloom.data.stream.quarantine import QUARANTINE
from medloom.pretrain.run import pretrain

Make = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def damaged(tiny_shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards in which six of the grey pictures are damaged."""
    folder = shutil.copytree(tiny_shards, tmp_path / "damaged")
    shards = Shards.open(folder)
    places = [shards._handle(ref.shard) for ref in shards.refs("tiny_pictures-2d")]
    for handle, ref in list(zip(places, shards.refs("tiny_pictures-2d"), strict=True))[:6]:
        member = handle.index.members_of(ref.ordinal)[1]
        path = folder / Path(str(handle.path)).name
        data = bytearray(path.read_bytes())
        data[member.offset + member.size // 2] ^= 8
        path.write_bytes(data)
    return folder


def listed(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / QUARANTINE).read_text().splitlines()]


def test_damage_is_listed_in_the_run_folder_and_a_resumed_run_is_the_same(
    damaged: Path, tmp_path: Path, tiny_config: Make, rows_of: Rows
) -> None:
    whole = pretrain(tiny_config(tmp_path / "whole", shards=damaged))
    assert len(listed(whole)) == 6 and {line["shard"] for line in listed(whole)} == {
        "tiny_pictures-2d-00000.tar"
    }

    class Killed(BaseException):
        pass

    def progress(done: int, total: int, what: str) -> None:
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        pretrain(tiny_config(tmp_path / "cut", "data.workers=1", shards=damaged), progress=progress)
    resumed = pretrain(tiny_config(tmp_path / "cut", "resume=true", shards=damaged))
    assert rows_of(resumed) == rows_of(whole)
    assert sorted(map(str, listed(resumed))) == sorted(map(str, listed(whole)))


def test_the_budget_stops_the_run(damaged: Path, tmp_path: Path, tiny_config: Make) -> None:
    with pytest.raises(ShardError, match=r"tiny_pictures-2d: 4 samples .*failure_budget is 3.*shards repair"):
        pretrain(tiny_config(tmp_path / "run", "data.failure_budget=3", shards=damaged))
