"""`medloom plan` as a user meets it."""

from __future__ import annotations

import json

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
        (["--nodes", "7"], "does not divide by 7 nodes"),
        (["--measured", "/nowhere"], "has no rows"),
    ],
)
def test_refusals(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny-mae-2d", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
