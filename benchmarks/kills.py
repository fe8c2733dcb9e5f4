"""A run of two ranks that is killed again and again, against the same run that nobody disturbed.

SIGKILL, SIGTERM and SIGUSR1, sent to the launcher, to one rank or to all processes at once, at a random
moment: while it starts, while it trains, and while a checkpoint is being written. After each kill the same
command goes on. At the end the order of samples, the rows and all weights must be those of the undisturbed
run, bit for bit, and no kill may have cost more than the checkpoint cadence allows. The network is tiny and
checkpoints are frequent, so that kills meet all moments; what is measured is correctness, not time.

    python -m benchmarks.kills --kills 100 --work runs/kills
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.kills_life import RANKS, born, preload

CADENCE = 5  # steps between two checkpoints
STEPS_A_KILL = 50  # of the run: a step takes 5 ms, and a kill comes up to 45 of them later than aimed
AIMS = ("start-up", "training", "training", "save")
TARGETS = {
    "SIGKILL": ("all", "rank 0", "rank 1"),
    "SIGTERM": ("launcher", "all", "rank 0", "rank 1"),
    "SIGUSR1": ("launcher", "all", "rank 0", "rank 1"),
}
PATIENCE = 120.0  # seconds until a process that was asked to stop counts as hanging


def main() -> None:
    """Run what is missing, write the table, and exit with 1 when anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sync", action="store_true", help="training stands still while a checkpoint is written"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; the same one goes on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    found = measure(arguments.work, arguments.kills, arguments.seed, arguments.sync)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{datetime.now(UTC):%Y-%m-%d}-kills{'-sync' if arguments.sync else ''}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(found))
    print(table(found))
    sys.exit(0 if found["passed"] else 1)


def measure(work: Path, kills: int, seed: int, sync: bool) -> dict[str, Any]:
    """The undisturbed run, the disturbed one, and what differs."""
    preload()
    work.mkdir(parents=True, exist_ok=True)
    words = [*recipe(work, kills), f"trainer.checkpoint_async={str(not sync).lower()}"]
    whole, killed = Scene(work / "whole", words), Scene(work / "killed", words)
    if not whole.finished and whole.live(None) != 0:
        raise SystemExit(f"the undisturbed run failed: see {whole.log}")
    state = work / "kills.json"
    lives: list[dict[str, Any]] = json.loads(state.read_text()) if state.is_file() else []
    while len(lives) < kills and not killed.finished:
        plan = draw(random.Random(f"{seed}:{len(lives)}"))
        lives.append(killed.killed(plan))
        state.write_text(json.dumps(lives))
        print(f"{len(lives):4d}/{kills} {lives[-1]}", flush=True)
    while not killed.finished:
        if killed.live(None) != 0:
            raise SystemExit(f"the run does not go on: see {killed.log}")
    return {"kills": kills, "seed": seed, "sync": sync, "cadence": CADENCE, "ranks": RANKS,
            "lives": lives, **verdict(whole, killed, lives, kills, sync)}  # fmt: skip


def recipe(work: Path, kills: int) -> list[str]:
    """Words of the command, over shards that are made once."""
    steps = 40 + STEPS_A_KILL * kills
    shards = work / "shards"
    if not (shards / "manifest.json").is_file() and not any(shards.glob("*")):
        make_shards(work / "pictures", shards)
    small = "img_size: 16, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2"
    return [
        "tiny-mae-2d", f"data.shards={shards}", "data.crop=[16,16]", "data.batch_size=4", "data.workers=1",
        "data.snap=4", f"encoder={{name: vit, model: vit_tiny_patch16_224, {small}}}",
        "objective.decoder_dim=12", "objective.decoder_depth=1",
        "objective.decoder_heads=2", f"trainer.steps={steps}", "trainer.accelerator=cpu",
        "trainer.log_every=2",
        f"trainer.checkpoint_every_steps={CADENCE}", "trainer.timeout_minutes=1", "probe.every_steps=0",
        "tracking.tracker=none", "panels.samples=1", "resume=true",
    ]  # fmt: skip


def make_shards(pictures: Path, shards: Path) -> None:
    """A few noisy pictures as shards."""
    import numpy as np
    from medloom.data.collection import Collection
    from medloom.data.ingest.build import build
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(40):
        path = pictures / "images" / f"case{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 90 + 60 * np.sin(np.arange(48) / (2 + number % 5))[None, :]
        Image.fromarray((wave + rng.normal(0, 8, (40, 48))).clip(0, 255).astype(np.uint8)).save(path)
    collection = pictures / "collection.yaml"
    collection.write_text(
        "name: kills\nsalt: only for this benchmark\nsources:\n- {dataset: waves, layout: image_folder, "
        "root: images, modality: ultrasound, licence: CC0-1.0}\n"
    )
    build(Collection.load(collection), shards)


def draw(rng: random.Random) -> dict[str, Any]:
    """What the next kill is: signal, whom it hits, and when."""
    name = rng.choice(sorted(TARGETS))
    return {"signal": name, "target": rng.choice(TARGETS[name]), "aim": rng.choice(AIMS),
            "steps": rng.randint(1, 2 * CADENCE), "delay": round(rng.uniform(0, 0.06), 4),
            "start": round(rng.uniform(0.0, 2.5), 3)}  # fmt: skip


class Scene:
    """A run folder, and the lives that work on it."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.run, self.notes, self.log = folder / "run", folder / "notes", folder / "log.txt"
        self.notes.mkdir(parents=True, exist_ok=True)
        self.words = ["pretrain", *words, f"out={self.run}"]

    @property
    def finished(self) -> bool:
        """Whether the encoder is there."""
        return (self.run / "encoder.json").is_file()

    @property
    def reached(self) -> int:
        """The last step that any rank has begun, in all lives."""
        return max((step for number in range(RANKS) for step, _ in self.order(number)), default=0)

    def order(self, number: int) -> list[tuple[int, list[int]]]:
        """(step, positions) that a rank has trained on, in the order of time."""
        path = self.notes / f"order-{number}.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # cut off by the kill
                entry = json.loads(line)
                entries.append((entry["step"], entry["positions"]))
        return entries

    def live(self, strike: Callable[[int], None] | None) -> int | None:
        """One life: start, let `strike` happen, wait for the end. Returns the exit status; None: it hung."""
        for path in self.notes.glob("pid-*"):
            path.unlink()
        for number in range(RANKS):  # so that what comes next begins on a line of its own
            path = self.notes / f"order-{number}.jsonl"
            if path.is_file() and not path.read_bytes().endswith(b"\n"):
                path.write_bytes(path.read_bytes() + b"\n")
        leader = born(self.words, self.notes, self.log, free_port())
        if strike is not None:
            strike(leader)
        status = wait(leader, PATIENCE if strike else 3600)
        with contextlib.suppress(ProcessLookupError):  # what a scheduler does after the grace period
            os.killpg(leader, signal.SIGKILL)
        if status is None:
            wait(leader, 10)
        return status

    def killed(self, plan: dict[str, Any]) -> dict[str, Any]:
        """A life that ends as planned; says what it cost."""
        before, hit = step_of(self.run), {"at": "", "begun": 0}

        def strike(leader: int) -> None:
            self.wait_for(plan, leader)
            saving = any(self.run.glob(".partial-*"))
            pids = self.targets(plan["target"], leader)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if pid == -leader else os.kill)(abs(pid), getattr(signal, plan["signal"]))
            started = self.reached_now()
            hit["begun"] = started
            hit["at"] = "save" if saving else "training" if started else "start-up"

        (self.notes / "before").write_text(str(self.lines()))
        status = self.live(strike)
        begun = self.reached_now()  # a signal is answered at the end of a step
        after = step_of(self.run)
        return {**{key: plan[key] for key in ("signal", "target")}, "at": hit["at"], "status": status,
                "from": before, "begun": begun or before, "kept": after,
                "lost": max(0, (begun or before) - after)}  # fmt: skip

    def lines(self) -> int:
        """How many steps rank 0 has noted."""
        return len(self.order(0))

    def reached_now(self) -> int:
        """The last step that rank 0 has begun in this life; 0 when none."""
        entries = self.order(0)[int((self.notes / "before").read_text()) :]
        return entries[-1][0] if entries else 0

    def wait_for(self, plan: dict[str, Any], leader: int) -> None:
        """Until the moment of the kill; at most a minute."""
        end = time.monotonic() + 60
        if plan["aim"] == "start-up":
            time.sleep(plan["start"])
            return
        before = int((self.notes / "before").read_text())
        while self.lines() < before + plan["steps"] and time.monotonic() < end and alive(leader):
            time.sleep(0.002)
        if plan["aim"] == "training":
            time.sleep(plan["delay"])
            return
        while not any(self.run.glob(".partial-*last.ckpt")) and time.monotonic() < end and alive(leader):
            pass
        time.sleep(plan["delay"] / 6)

    def targets(self, who: str, leader: int) -> list[int]:
        """Process ids; the negative one is the whole group."""
        if who == "launcher":
            return [leader]
        path = self.notes / f"pid-{who.removeprefix('rank ')}"
        if who.startswith("rank") and path.is_file():
            with contextlib.suppress(ValueError):
                return [int(path.read_text())]
        return [-leader]


def verdict(
    whole: Scene, killed: Scene, lives: list[dict[str, Any]], kills: int, sync: bool
) -> dict[str, Any]:
    """What is equal, and what the kills cost."""
    import torch
    from medloom.pretrain.recorder import CLOCK
    from medloom.pretrain.tracking import METRICS, read_rows

    def rows(scene: Scene) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(scene.run / METRICS)]

    def state(scene: Scene) -> dict[str, Any]:
        return torch.load(scene.run / "last.ckpt", weights_only=True)

    order = all(
        dict(killed.order(number)) == dict(whole.order(number))
        and all(dict(whole.order(number))[step] == at for step, at in killed.order(number))
        for number in range(RANKS)
    )
    ours, theirs = state(killed), state(whole)
    asked = [life for life in lives if life["signal"] != "SIGKILL" and life["at"] != "start-up"]
    checks = {
        "as many kills as planned": len(lives) == kills,
        "order of samples": order,
        "rows of metrics.jsonl": rows(killed) == rows(whole),
        "weights": same(ours["state_dict"], theirs["state_dict"]),
        "state of the optimiser": same(ours["optimizer_states"], theirs["optimizer_states"]),
        "no process hung": all(life["status"] is not None for life in lives),
    }
    if sync:
        checks["lost: at most the cadence"] = all(life["lost"] <= CADENCE for life in lives)
    else:
        checks["lost: at most the cadence, and what ran while a save was under way"] = all(
            life["lost"] <= (2 if life["at"] == "save" else 1) * CADENCE + 1 for life in lives
        )
    return {
        "checks": checks, "passed": all(checks.values()), "steps": ours["medloom"]["step"],
        "asked": len(asked), "asked_and_lost_nothing": sum(life["lost"] == 0 for life in asked),
    }  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def step_of(run: Path) -> int:
    """The step from which the run would go on."""
    from medloom.pretrain.fault_tolerance.checkpoint import newest
    from medloom.pretrain.run import step_of as of

    return of(newest(run)) if run.is_dir() else 0


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    lives = found["lives"]
    asked = f"--kills {found['kills']} --seed {found['seed']}{' --sync' if found['sync'] else ''}"
    command = f"python -m benchmarks.kills {asked} --work runs/kills"
    how = "training stands still meanwhile" if found["sync"] else "written beside training"
    lines = [
        f"# {len(lives)} kills of a run on {found['ranks']} ranks", "",
        f"{found['steps']} steps, a checkpoint every {found['cadence']} steps, {how}. CPU, "
        f"gloo, torchrun's agent; after each kill the same command goes on. `{command}`", "",
        "| what must hold | |", "|---|---|",
        *(f"| {name} | {'yes' if good else '**NO**'} |" for name, good in found["checks"].items()), "",
        "Order, rows, weights and optimiser are those of the undisturbed run, bit for bit.", "",
        "| signal | moment | kills | steps lost: median | most | lost nothing |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    groups = Counter((life["signal"], life["at"]) for life in lives)
    for (name, at), count in sorted(groups.items()):
        lost = sorted(life["lost"] for life in lives if (life["signal"], life["at"]) == (name, at))
        lines.append(f"| {name} | {at} | {count} | {lost[len(lost) // 2]} | {lost[-1]} | {lost.count(0)} |")
    by_target = Counter((life["signal"], life["target"]) for life in lives)
    hit = ", ".join(f"{name} to {who} {n}" for (name, who), n in sorted(by_target.items()))
    lines += ["", f"Hit: {hit}.", "", "Not measured: NCCL, GPUs, several hosts, a shared file system.", ""]
    return "\n".join(lines)


def alive(pid: int) -> bool:
    """Whether our child still runs."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait(pid: int, seconds: float) -> int | None:
    """Exit status of our child, negative for a signal; None when it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
