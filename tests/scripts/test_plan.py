"""`medloom plan` as a user meets it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from medloom.scripts import cli


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "tiny-mae-2d", "--nodes", "2", "--gpus", "4", "--price", "3", "data.batch_size=64"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for text in (
        "h100: NVIDIA H100", "assumed 35 % of 989 TFLOP/s", "memory of a device, GB, 8 devices",
        "8 devices on 2 nodes", "give data.shards=FOLDER", "left out: 128", "lost by a kill",
    ):  # fmt: skip
        assert text in shown, f"{text!r} is not in\n{shown}"
    rows = [line.split() for line in shown.splitlines() if line[:1].isdigit() and "×" in line]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32", "64"]
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(("ddp", "fsdp2"))] == [
        "ddp",
        "fsdp2",
    ]


@pytest.mark.parametrize(
    ("split", "says"), [("false", "written aside"), ("true", "in parts of 8 ranks: a step")]
)
def test_a_checkpoint_in_parts_holds_up_the_step(
    split: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny-mae-2d", "trainer.strategy=fsdp2", f"trainer.checkpoint_split={split}"]
    assert cli.main(["plan", *words]) == 0
    assert says in " ".join(capsys.readouterr().out.split())


def test_steps_and_classes_are_those_of_a_run_on_these_shards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = SimpleNamespace(classes={"derm": [f"class {n}" for n in range(500)]}, structures={})
    data = SimpleNamespace(steps_for=lambda epochs: int(3 * epochs), targets=targets)
    words = [
        "plan",
        "tiny-supervised-2d",
        "--gpus",
        "2",
        "--json",
        "data.epoch=cover",
        "trainer.epochs=2",
        "trainer.steps=null",
    ]
    trained = []
    for shards in (data, SimpleNamespace(**{**vars(data), "targets": None})):
        monkeypatch.setattr(
            "medloom.pretrain.plan.demand.open_samples", lambda _, found=shards: (found, None)
        )
        assert cli.main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["steps"] == 6
        trained.append(found["costs"][0]["trained"])
    assert trained[0] > trained[1]


def test_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny-mae-2d", "--gpus", "2", "--device", "a100-80gb", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["assumptions"]["device"]["name"] == "a100-80gb"
    assert found["lines"][0]["step_seconds"] > 0 and found["checkpoint_bytes"] > 1e6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "h10"], "did you mean h100"),
        (["--strategy", "fsdp"], "did you mean fsdp2"),
        (["--nodes", "0"], "--nodes is 0"),
        (["--nodes", "7"], "7 nodes x 8 devices"),
        (["--measured", "/nowhere"], "has no rows"),
    ],
)
def test_refusals(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny-mae-2d", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
