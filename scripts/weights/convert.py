"""`medloom weights convert`: an encoder in another form, for other channels, or as the start of a 3D one."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """forms:
  artefact    folder with encoder.safetensors and encoder.json, e.g. out of a training checkpoint
  timm        folder that timm.create_model("local-dir:FOLDER", pretrained=True) reads (2D)
  state-dict  one .safetensors file with the tensors under their library's names
  nnunet      checkpoint and adaptation plan for nnU-Net's fine-tuning, as nnssl writes them (resenc, primus)
  onnx        model.onnx (image in, pooled and tokens out) and preprocessing.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights convert`."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "name", help="anything that load_encoder takes: a released name, hf-hub:, a run, .ckpt"
    )
    parser.add_argument("--to", required=True, metavar="FORM", help="see below")
    parser.add_argument("--out", required=True, type=Path, help="new folder or file")
    parser.add_argument("--in-channels", type=int, help="channels of the images (default: as trained)")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="N",
        help="pixels H W or D H W of the input of onnx (default: as trained, at most 224 or 64 a side)",
    )  # fmt: skip
    parser.add_argument(
        "--patch-depth", type=int, metavar="D",
        help="make a 2D network 3D, with patches of D slices: a start for training on volumes",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print what was loaded and adapted."""
    from ...pretrain.hub.convert import convert
    from ..console import say

    report = convert(
        arguments.name, arguments.to, arguments.out,
        in_channels=arguments.in_channels, patch_depth=arguments.patch_depth, size=arguments.size,
    )  # fmt: skip
    say(report)
    say(f"{arguments.out}: {arguments.to}")
    return 0
