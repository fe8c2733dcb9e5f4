"""`medloom predict RUN INPUT --out DIR`: label maps and tables of new images."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  medloom predict runs/liver new-scans --out predictions
  medloom predict runs/liver study/series3 --out predictions --dicom-seg
  medloom predict runs/busi pictures a.png --out predictions --arm all"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom predict`."""
    parser.epilog = EXAMPLE
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of `medloom finetune`")
    parser.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT", help="image file, DICOM series, or folder of these"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the same command continues")
    parser.add_argument("--arm", default="pretrained", help="which network, or all (default: pretrained)")
    parser.add_argument(
        "--dicom-seg", action="store_true", help="DICOM Segmentations in place of NIfTI, for DICOM series"
    )
    parser.add_argument("--mirror", action="store_true", help="average over the task's flips; slower")
    parser.add_argument(
        "--ensemble",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="another run to average with",
    )
    parser.add_argument("--modality", help="of the images, where neither they nor the task record say it")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the run's)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict; 1 when files could not be used."""
    from ..finetune.prediction import predict
    from .console import progress_bar, say

    with progress_bar() as progress:
        done = predict(
            arguments.run_folder, arguments.inputs, arguments.out, arm=arguments.arm,
            dicom_seg=arguments.dicom_seg, mirror=arguments.mirror, modality=arguments.modality,
            ensemble=arguments.ensemble, device=arguments.device, progress=progress,
        )  # fmt: skip
    before = f" ({done.before} of them before)" if done.before else ""
    say(f"predicted: {done.files} files{before}, table: {done.folder / 'predictions.csv'}")
    if done.failed:
        say(f"not usable: {done.failed} files, reasons: {done.folder / 'failures.csv'}")
    return 1 if done.failed else 0
