"""Time and memory of one training step: medloom beside lightly, stable-pretraining and plain timm code.

    python -m benchmarks.steps

The same method, transformer, heads, batch and sizes of views for all; AdamW without clipping as each calls
it (medloom fuses its update, the others' examples leave it as torch has it). Each contender is a process of
its own on the same threads; rounds are interleaved, and only the one whose turn it is runs. Two figures a
contender: the step on views that lie ready (network, loss, backward, optimiser, teacher), and the step that
makes its views from pictures first (medloom on the batch, the rivals one picture at a time, as their
transforms do). Memory, too, is two figures: the most that torch's allocator gave out in a step, and on the
CPU the highest resident size of the process less that after its imports, in which lies what malloc keeps.

medloom's MAE runs as the rivals' here: masks at random, all hidden pixels count. Its own default, masks that
prefer tissue and a loss without air, looks at the pictures first and costs a hundredth or two more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# method: medloom's objective section, and what the rivals are told of the same sizes
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "mae": (
        {"decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4, "foreground": 0.0, "skip_air": False},
        {"decoder": (128, 2, 4), "locals": 0},
        ("lightly/mae", "stable-pretraining/mae", "timm/mae"),
    ),
    "simclr": (
        {"hidden_dim": 512, "out_dim": 128},
        {"projector": (512, 128), "locals": 0},
        ("lightly/simclr", "stable-pretraining/simclr", "timm/simclr"),
    ),
    "dino": (
        {"head_hidden": 512, "head_bottleneck": 128, "prototypes": 4096},
        {"head": (512, 128, 4096), "locals": 4},
        ("lightly/dino", "stable-pretraining/dino", "timm/dino"),
    ),
    "dinov2": (
        {"head_hidden": 512, "head_bottleneck": 128, "prototypes": 4096, "shared_head": True},
        {"head": (512, 128, 4096), "locals": 4},
        ("lightly/dinov2",),
    ),
    "lejepa": (
        {"hidden_dim": 2048, "out_dim": 512, "directions": 1024},
        {"locals": 4},
        ("stable-pretraining/lejepa",),
    ),
}
VIEWS = {"mae": 1}  # global views; 2 where nothing is said
Figures = dict[str, dict[str, list[float]]]  # contender -> quantity -> one value a round


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(CASES), help="separated by commas")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dim", type=int, default=192, help="width of the transformer (heads of 64)")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument(
        "--picture", type=int, default=64, help="pixels of a global view; a local one has half"
    )
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", nargs=2, metavar=("CONTENDER", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        from .steps_child import serve

        serve(*options.serve, options)
        return
    measured: dict[str, Figures | dict[str, str]] = {}
    failed: dict[str, str] = {}
    for method in options.methods.split(","):
        measured[method] = interleaved(method, options, failed)
        print("\n".join(table(method, measured[method])), flush=True)
    write(measured, failed, options)


def interleaved(method: str, options: argparse.Namespace, failed: dict[str, str]) -> Figures:
    """Rounds of all contenders of a method; one that fails is named in `failed` and left out."""
    names = [f"medloom/{method}", *CASES[method][2]]
    children = {name: start(name, method, options) for name in names}
    figures: Figures = {name: {} for name in names}
    try:
        for name in list(children):
            ask(name, "warm", children, figures, failed)
        for turn in range(options.rounds):
            for work in ("given", "made", *(["memory"] if options.device == "cpu" else [])):
                order = names[turn % len(names) :] + names[: turn % len(names)]
                for name in order:
                    ask(name, work, children, figures, failed)
        # Last and once: the profiler takes memory of its own, and the answer is always the same.
        for name in list(children):
            ask(name, "tensors", children, figures, failed)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return {name: values for name, values in figures.items() if values}


def start(name: str, method: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A child that waits for orders on its standard input."""
    keys = ("batch", "steps", "threads", "device", "dim", "depth", "picture", "patch")
    given = [word for key in keys for word in (f"--{key}", str(getattr(options, key)))]
    threads = {key: str(options.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.steps", "--serve", name, method, *given],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **threads},
    )  # fmt: skip


def ask(
    name: str, work: str, children: dict[str, subprocess.Popen[str]], figures: Figures, failed: dict[str, str]
) -> None:
    """Give one order and keep the answer."""
    child = children.get(name)
    if child is None:
        return
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(work + "\n")
        child.stdin.flush()
        answer = child.stdout.readline()
    except BrokenPipeError:
        answer = ""
    values = json.loads(answer) if answer.startswith("{") else {"error": "ended without an answer"}
    if "error" in values:
        failed[name] = values["error"]
        figures[name].clear()
        child.kill()
        child.wait()
        del children[name]
        return
    for key, value in values.items():
        figures[name].setdefault(key, []).append(value)


def table(method: str, figures: Figures) -> list[str]:
    """Rows of one method; ratios are medloom's over the contender's, by round, then the median."""
    own = figures.get(f"medloom/{method}")
    heads = ["step on given views, ms", "with views made, ms", "tensors at the peak, MB", "resident, MB"]
    rows = [
        f"### {method}", "",
        "| contender | " + " | ours / theirs | ".join(heads) + " | ours / theirs |",
        "|---|" + "---|---|" * len(heads),
    ]  # fmt: skip
    for name, values in figures.items():
        cells = [name]
        for key, factor in (("given", 1e3), ("made", 1e3), ("tensors", 1e-6), ("memory", 1e-6)):
            if key not in values:
                cells += ["", ""]
                continue
            low, middle, high = min(values[key]), statistics.median(values[key]), max(values[key])
            cells.append(f"{factor * middle:.0f} ({factor * low:.0f}–{factor * high:.0f})")
            same = own is None or values is own
            cells.append("" if same else f"{ratio(own[key], values[key]):.2f}")  # type: ignore[index]
        rows.append("| " + " | ".join(cells) + " |")
    return [*rows, ""]


def ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of own / other."""
    return statistics.median(a / b for a, b in zip(own, other, strict=False))


def write(measured: dict[str, Any], failed: dict[str, str], options: argparse.Namespace) -> None:
    """results/DATE-steps-DEVICE.{md,json}."""
    import torch

    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)"
    lines = [
        "# Time and memory of a training step", "",
        f"`python -m benchmarks.steps --device {options.device} --batch {options.batch} --dim {options.dim} "
        f"--depth {options.depth} --picture {options.picture} --patch {options.patch} "
        f"--rounds {options.rounds}`: {where}, {platform.machine()}, torch {torch.__version__}. Median of "
        f"{options.rounds} interleaved rounds (lowest–highest); "
        + ("wall time" if options.device == "cuda" else "CPU time") + "; ratios by round.", "",
        *[row for method, figures in measured.items() for row in table(method, figures)],
        *[f"- {name}: failed: {reason}" for name, reason in failed.items()],
    ]  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{datetime.date.today().isoformat()}-steps-{options.device}"
    stem.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    stem.with_suffix(".json").write_text(json.dumps({"figures": measured, "failed": failed}, indent=1))
    print(f"written to {stem}.md")


if __name__ == "__main__":
    main()
