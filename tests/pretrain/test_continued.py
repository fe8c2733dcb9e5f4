"""A second run of a method goes on with the first one's heads; another method, or no run, does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from medloom.data.config import to_yaml
from medloom.data.errors import CheckpointError
from medloom.pretrain.continued import continue_objective
from medloom.pretrain.objectives import Objective

from .small import small_encoder, small_objective


def run_of(folder: Path, objective: Objective) -> Path:
    """A folder with what a run leaves behind of its objective."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml({"objective": {"name": objective.config.name}}))
    state = {f"objective.{key}": value for key, value in objective.state_dict().items()}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    return folder


def changed(name: str, **changes: object) -> Objective:
    """An objective with other weights than `small_objective` gives."""
    objective = small_objective(name, small_encoder("vit"), **changes)
    with torch.no_grad():
        for value in objective.state_dict().values():
            value.add_(1.0)
    return objective


def test_heads_come_from_the_run_and_copies_of_the_encoder_do_not(tmp_path: Path) -> None:
    first = changed("dinov2", centring="centre")
    second = small_objective("dinov2", small_encoder("vit"), centring="centre")
    before = {key: value.clone() for key, value in second.state_dict().items()}
    line = continue_objective(second, run_of(tmp_path / "run", first))
    assert line is not None and "objective: " in line
    theirs = first.state_dict()
    for key, value in second.state_dict().items():
        copy = key.startswith(("teacher.encoder.", "anchor.teacher.encoder."))
        assert torch.equal(value, before[key] if copy else theirs[key]), key
    assert {"mask_token", "teacher.token_head.prototypes", "centre.value"} <= before.keys()


def test_other_sizes_are_left_out_and_named(tmp_path: Path) -> None:
    second = small_objective("dino", small_encoder("vit"))
    prototypes = second.state_dict()["head.prototypes"].clone()
    line = continue_objective(second, run_of(tmp_path / "run", changed("dino", prototypes=32)))
    assert line is not None and "of another size: head.prototypes" in line
    assert torch.equal(second.state_dict()["head.prototypes"], prototypes)


def test_another_method_or_no_run_gives_nothing(tmp_path: Path) -> None:
    second = small_objective("dino", small_encoder("vit"))
    before = {key: value.clone() for key, value in second.state_dict().items()}
    mae = run_of(tmp_path / "mae", changed("mae"))
    for source in (mae, tmp_path / "nothing", "timm:vit_tiny_patch16_224"):
        assert continue_objective(second, source) is None
    assert all(torch.equal(value, before[key]) for key, value in second.state_dict().items())
    damaged = run_of(tmp_path / "damaged", changed("dino"))
    (damaged / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        continue_objective(second, damaged)
