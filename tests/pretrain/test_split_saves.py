"""Saves in parts on two ranks of which one cannot write: both say so, and the next save is sound."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.scale import split

from .ranks_steps import on_two_ranks


def trainer_of(rank: int, ranks: int) -> Any:
    """What `split.save` asks of a trainer, with a state of one weight."""
    state = {
        "state_dict": {"weight": torch.arange(6.0).view(2, 3)},
        "optimizer_states": [{"state": {0: {"step": 3, "mean": torch.ones(2, 3)}}, "param_groups": []}],
        "medloom": {"step": 4},
    }
    connector = SimpleNamespace(dump_checkpoint=lambda weights_only: state)
    return SimpleNamespace(
        is_global_zero=rank == 0, global_rank=rank, world_size=ranks, strategy=SimpleNamespace(whole=True),
        _checkpoint_connector=connector,
    )  # fmt: skip


def saves(folder: str, fails: str, at: int, rank: int, ranks: int) -> list[str]:
    """A save in which rank `at` meets a full disk in `fails`, then one that nothing disturbs."""
    from torch.distributed.checkpoint import filesystem

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer, told = trainer_of(rank, ranks), []
    with pytest.MonkeyPatch.context() as patch:
        if rank == at and fails == "data":
            patch.setattr(filesystem, "_write_item", full)
        elif rank == at:
            patch.setattr(split.files, "write" if fails == "rest" else "sha256", full)
        try:
            split.save(trainer, Path(folder), 4)
        except CheckpointError as error:
            told.append(str(error))
    return [*told, split.save(trainer, Path(folder), 5).name]


@pytest.mark.parametrize(("fails", "rank"), [("data", 0), ("rest", 0), ("sums", 1)])
def test_a_full_disk_is_said_on_all_ranks_and_the_next_save_is_sound(
    fails: str, rank: int, tmp_path: Path
) -> None:
    told, name = on_two_ranks(saves, str(tmp_path), fails, rank)
    assert "a checkpoint cannot be written" in told and "free space" in told
    assert ("No space left" in told) == (rank == 0)
    assert [path.name for path in (tmp_path / "split").iterdir()] == [name] == ["step-5"]
    assert split.fault(tmp_path / "split" / name) is None
    assert torch.equal(split.read(tmp_path / "split" / name)["state_dict"]["weight"][1], torch.arange(3.0, 6))
