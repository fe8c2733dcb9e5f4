"""Images whose decoder kills the process: found, listed, and nothing else is different.

The reader is patched by a `sitecustomize` on the path, which every Python runs when it starts, spawned
workers too; and it is a real signal that ends them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ReadError, ShardError
from medloom.data.ingest import ingest, work
from medloom.data.ingest.build import build
from medloom.data.ingest.crashes import UNEXPLAINED, Crash, isolate
from medloom.data.ingest.units import Receipt, Unit
from medloom.data.shards.check import check

# At the file POISON names, or AFTER reads later (heap corruption is found out late), ends the process by HOW.
PATCH = """
import os
from medloom.data.ingest import ingest, work

real, left = ingest.each, None

def read(paths, **options):
    global left
    if os.path.basename(paths[0]) == os.environ["POISON"]:
        left = int(os.environ["AFTER"])
    elif left is not None:
        left -= 1
    if left == 0:
        how = os.environ["HOW"]
        os._exit(3) if how == "exit" else os.kill(os.getpid(), int(how))
    return real(paths, **options)

ingest.each = work.each = read
"""


@pytest.fixture
def poison(tmp_path, monkeypatch):
    """`poison("a.png", how="11", after=0)` makes workers die of that file from now on."""

    def set_up(name: str, how: str = "11", after: int = 0) -> None:
        (tmp_path / "patch").mkdir()
        (tmp_path / "patch" / "sitecustomize.py").write_text(PATCH)
        old = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "patch"), *([old] if old else [])]))
        for key, value in {"POISON": name, "HOW": how, "AFTER": str(after)}.items():
            monkeypatch.setenv(key, value)

    return set_up


def refused(collection: Collection, out: Path, name: str, reason: str, **options) -> None:
    """Build here with a reader that refuses the file `name` for `reason`."""
    real = ingest.each

    def read(paths, **how):
        if paths[0].name == name:
            raise ReadError(reason)
        return real(paths, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "each", read)
        patch.setattr(work, "each", read)
        build(collection, out, **options)


@pytest.mark.parametrize(
    ("how", "after", "reason"),
    [
        ("11", 0, "the reader crashed (signal 11)"),
        ("11", 3, "the reader crashed (signal 11)"),  # while another image is being read
        ("9", 0, "the reader crashed (signal 9, as a rule for want of memory)"),
        ("exit", 0, "the reader crashed (exit status 3)"),
    ],
)
def test_the_image_at_fault_is_listed_and_the_rest_is_built(
    tmp_path, make_collection, poison, files_of, how, after, reason
):
    collection = Collection.load(make_collection(tmp_path / "in"))
    refused(collection, tmp_path / "refused", "Mustermann-3.png", reason)
    poison("Mustermann-3.png", how, after)
    result = build(collection, tmp_path / "out", workers=2)
    assert [(failure.path, failure.reason) for failure in result.failures] == [("Mustermann-3.png", reason)]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "refused")
    assert check(tmp_path / "out") == []
    row = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert row["reason"] == reason


def test_held_out_images_that_crash_are_not_checked_and_said_to_be(
    tmp_path, make_collection, poison, files_of
):
    yaml = make_collection(tmp_path / "in", held_out="[{dataset: ct, splits: [test]}]")
    collection = Collection.load(yaml)
    name, reason = "Mustermann_5.nii.gz", "the reader crashed (signal 11)"
    refused(collection, tmp_path / "refused", name, reason, shard_bytes=20_000)
    poison(name)
    result = build(collection, tmp_path / "out", workers=1, shard_bytes=20_000)
    assert result.manifest.held_out.checked == 1
    assert len(result.manifest.held_out.not_checked) == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "refused")


class Machine:
    """Stands in for fresh processes: dies, `strikes` times at most, when `last` is read after `first`."""

    def __init__(self, first: int, last: int, strikes: int = 10**9) -> None:
        self.first, self.last, self.strikes, self.calls = first, last, strikes, 0

    def __call__(self, unit, crashed, only):
        self.calls += 1
        numbers = [n for n in only or range(len(unit.records)) if n not in crashed]
        if self.strikes and self.first in numbers and self.last in numbers:
            self.strikes -= 1
            return Crash(-11, self.last)
        return None if only is not None else Receipt(unit.name, "", failures=sorted(crashed.items()))


@pytest.fixture
def unit() -> Unit:
    return Unit(name="a-00000", source=None, records=tuple(range(1000)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (999, 999), (0, 999), (421, 437), (500, 501)])
def test_bisection_finds_the_cause_of_a_late_crash(unit, first, last):
    machine = Machine(first, last)
    receipt = isolate(unit, machine)
    assert receipt.failures == [(first, "the reader crashed (signal 11)")]
    assert machine.calls <= 4 + 10  # log2(1000)


def test_a_process_that_died_for_another_reason_is_done_again(unit):
    assert isolate(unit, Machine(3, 3, strikes=1)).failures == []


def test_deaths_without_a_cause_end_the_build(unit):
    class Cursed(Machine):
        def __call__(self, unit, crashed, only):
            return Crash(-9, 5) if only is None else None

    with pytest.raises(ShardError, match=f"died {UNEXPLAINED} times.*no image is at fault.*run the same"):
        isolate(unit, Cursed(0, 0))


def test_workers_that_cannot_start_are_an_error_and_not_a_loop(tmp_path, make_collection, monkeypatch):
    collection = Collection.load(make_collection(tmp_path / "in"))
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))
    with pytest.raises(ShardError, match=r"before it began \(exit status 7\)"):
        build(collection, tmp_path / "out", workers=2)
