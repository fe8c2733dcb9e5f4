"""`medloom export RUN --to onnx|monai-bundle --out DIR`: a trained network for use without medloom."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  medloom export runs/liver --to monai-bundle --out bundles/liver
  medloom export runs/busi --to onnx --out busi-onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom export`."""
    parser.epilog = EXAMPLE
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of `medloom finetune`")
    parser.add_argument("--to", required=True, choices=("onnx", "monai-bundle"), help="form")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--arm", default="pretrained", help="which network (default: pretrained)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export and say how far it is from torch."""
    from ..finetune.export import export
    from .console import say

    check = export(arguments.run_folder, arguments.to, arguments.out, arm=arguments.arm)
    inputs = f"{check['inputs']} {'images of the task' if check['real'] else 'random inputs'}"
    say(f"written: {arguments.out}")
    say(f"largest difference from torch on {inputs}: {check['max_abs_difference']:.2g}")
    return 0
