"""Loaders of medical images, side by side: the same voxels, the same machine, turn by turn.

    python -m benchmarks.loader                 # everything, about ten minutes on two cores
    python -m benchmarks.loader --quick         # smaller images, about two minutes
    python -m benchmarks.loader --only ct --peers medloom,nnssl

Every peer runs in a process of its own and is stopped while another has its turn; rounds are interleaved
(ABAB...), so that what else the machine does meets all of them. Medians and spreads go to the terminal and,
with versions, CPU and command, into `benchmarks/results/`. Only ratios within a run mean anything elsewhere.
What was not measured is in the table too, with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import material
from .limits import host, limits, versions
from .material import Case
from .peers import PEERS
from .peers.base import Load
from .runner import Failed, Runner

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = {"full": 3, "quick": 2, "tiny": 2}
SECONDS = {"full": 1.5, "quick": 0.6, "tiny": 0.1}  # a turn, at least
COLD = {"full": 8, "quick": 4, "tiny": 2}  # crops with a cold cache
LEAST = 3  # batches in a turn


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns 0, also when a peer failed: that is in the table."""
    arguments = _parser().parse_args(argv)
    scale = "tiny" if arguments.tiny else "quick" if arguments.quick else "full"
    real = _real(arguments.real)
    work = arguments.work or Path(tempfile.gettempdir()) / f"medloom-bench-{scale}"
    work.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in material.cases(scale, real) if not arguments.only or c.name in arguments.only]
    peers = arguments.peers or list(PEERS)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": _told(argv if argv is not None else sys.argv[1:]),
        "scale": scale, "workers": arguments.workers, "rounds": ROUNDS[scale], "host": host(),
        "versions": versions(), "load_before": _load(),
    }  # fmt: skip
    started = time.perf_counter()
    _say("physical limits")
    result["limits"] = limits(work, 64 if scale == "tiny" else 512)
    if scale == "tiny":
        importlib.import_module("torch")  # once, for all the processes that are forked from this one
    result["cases"] = _cases(chosen, peers, work, real, scale, arguments)
    if not arguments.only or "properties" in arguments.only:
        from .properties import properties

        result["properties"] = properties(work, scale, real, _say)
    result["seconds"] = round(time.perf_counter() - started)
    result["load_after"] = _load()
    from .report import show, write

    show(result)
    for path in write(result, arguments.out):
        _say(f"written: {path}")
    return 0


def _told(argv: Sequence[str]) -> str:
    """The command as somebody else would give it: without the folders of this machine."""
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        if word not in ("--work", "--out") and before not in ("--work", "--out"):
            words.append("REALDATA" if before == "--real" else word)
    return shlex.join(["python", "-m", "benchmarks.loader", *words])


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in material.cases("full", Path())] + ["properties"]

    def listed(known: list[str]) -> Any:
        def parse(text: str) -> list[str]:
            words = text.split(",")
            unknown = [word for word in words if word not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
            return words

        return parse

    parser = argparse.ArgumentParser(prog="benchmarks.loader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller images, fewer rounds")
    parser.add_argument("--tiny", action="store_true", help="for tests: runs all of it, measures nothing")
    parser.add_argument("--only", type=listed(names), metavar="CASE,...", help=", ".join(names))
    parser.add_argument("--peers", type=listed(list(PEERS)), metavar="PEER,...", help=", ".join(PEERS))
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each peer (default: 2)")
    parser.add_argument("--work", type=Path, help="folder for the images, kept (default: below /tmp)")
    parser.add_argument("--real", type=Path, help="the real collection (default: MEDLOOM_REALDATA)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the results")
    parser.add_argument("--resume", action="store_true", help="keep the cases of an interrupted run")
    return parser


def _cases(
    chosen: list[Case], peers: list[str], work: Path, real: Path | None, scale: str, arguments: Any
) -> dict[str, Any]:
    """Measure case after case; after each the results so far are kept in the working folder."""
    kept = work / "cases-measured.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if arguments.resume and kept.exists() else {}
    runners: dict[str, Runner] = {}
    reasons: dict[str, str] = {}
    try:
        for case in chosen:
            if case.name in done:
                _say(f"{case.name}: measured before")
                continue
            _say(f"{case.name}: images")
            stored = material.make(case, work, real)
            if not stored.names:
                continue
            load = Load(case.crop, case.batch, arguments.workers, decode=case.decode)
            turn = _Turn(case, stored, load, scale)
            for name in peers:
                turn.open(name, runners, reasons)
            turn.rounds(runners, reasons)
            turn.finish(runners)
            done[case.name] = turn.result()
            kept.write_text(json.dumps(done))
    finally:
        for runner in runners.values():
            runner.close()
    return {case.name: done[case.name] for case in chosen if case.name in done}


class _Turn:
    """All peers on one case."""

    def __init__(self, case: Case, stored: Any, load: Load, scale: str) -> None:
        self.case, self.stored, self.load, self.scale = case, stored, load, scale
        self.rows: dict[str, dict[str, Any]] = {}
        self.live: dict[str, Runner] = {}

    def open(self, name: str, runners: dict[str, Runner], reasons: dict[str, str]) -> None:
        """Start the peer's process if need be, let it store the images, and start its loader."""
        row = self.rows[name] = {"rounds": []}
        _say(f"{self.case.name}: {name}")
        try:
            if name in reasons:
                raise Failed(reasons[name])
            if name not in runners:
                runners[name] = Runner(name, fresh=self.scale != "tiny")
            facts = runners[name].ask("open", self.stored, self.load, timeout=600)
            if facts is None:
                row["reason"] = f"is no peer for a {self.case.kind}"
                return
            row |= facts
            runner = runners[name]
            if self.case.kind == "volume":
                row |= runner.ask("cold", COLD[self.scale])
            starts = [runner.ask("start") for _ in range(1 if row["ends_slowly"] else 2)]
            row["first_start_s"], row["start_s"] = starts[0], starts[-1]
            if self.case.decode:
                row["verified"] = runner.ask("verify")
            self.live[name] = runner
        except Failed as error:
            self._failed(name, error, runners, reasons)

    def rounds(self, runners: dict[str, Runner], reasons: dict[str, str]) -> None:
        """Interleaved rounds; a peer that fails on the way is out, with the reason."""
        for number in range(ROUNDS[self.scale]):
            for name in list(self.live):
                _say(f"{self.case.name}: round {number + 1}, {name}")
                try:
                    row = self.live[name].ask("measure", SECONDS[self.scale], LEAST)
                    self.rows[name]["rounds"].append(row)
                except Failed as error:
                    self._failed(name, error, runners, reasons)
                    del self.live[name]

    def finish(self, runners: dict[str, Runner]) -> None:
        """Count the shards in a batch (pictures), and end the loaders."""
        for name, runner in self.live.items():
            try:
                if self.case.kind == "picture" and self.case.decode:
                    self.rows[name]["mixing"] = runner.ask("mixing", 20)
                if self.rows[name]["ends_slowly"]:
                    runners.pop(name).close(patience=0)
                else:
                    runner.ask("stop")
            except Failed as error:
                self.rows[name]["note"] = str(error)
                runners.pop(name, runner).close(patience=0)

    def result(self) -> dict[str, Any]:
        """The case as JSON."""
        sizes = [self.stored.source(name).stat().st_size for name in self.stored.names]
        shape = self.stored.raw(self.stored.names[0]).shape
        return {
            "title": self.case.title, "kind": self.case.kind, "images": len(sizes), "shape": list(shape),
            "crop": list(self.case.crop), "batch": self.case.batch, "source_bytes": sum(sizes),
            "peers": self.rows,
        }  # fmt: skip

    def _failed(self, name: str, error: Failed, runners: dict[str, Runner], reasons: dict[str, str]) -> None:
        self.rows[name]["reason"] = str(error)
        runner = runners.pop(name, None)
        if runner is not None:
            runner.close(patience=0)
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            reasons[name] = str(error)


def _real(given: Path | None) -> Path | None:
    folder = given or Path(os.environ.get("MEDLOOM_REALDATA", ROOT.parent / "shared" / "realdata"))
    return folder if (folder / "index.json").is_file() else None


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
