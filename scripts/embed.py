"""`medloom embed NAME IMAGES --out features.parquet`: an encoder's features of images, and a map of them."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  medloom embed runs/mae-2d pictures --out features.parquet --map map.png
  medloom embed hf-hub:ORG/NAME scans --out features.parquet --map map.png --thumbnails
  medloom embed runs/mae-3d shards/mine --out features.parquet --map map.png --method tsne"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom embed`."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "name",
        help="encoder: a name of `medloom weights list`, hf-hub:ORG/NAME, a run or encoder folder, timm:NAME",
    )
    parser.add_argument(
        "images", metavar="IMAGES", help="folder of images, an image, or shards (path or URL)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE",
        help="parquet file to write; the same command continues, and adds what is new",
    )  # fmt: skip
    parser.add_argument("--map", type=Path, metavar="PNG", help="also draw the images on two axes")
    parser.add_argument("--method", choices=("pca", "tsne"), default="pca", help="of the map (default: pca)")
    parser.add_argument(
        "--colour", choices=("group", "modality"), default="group",
        help="of the points: group is the folder, or the dataset of shards (default: group)",
    )  # fmt: skip
    parser.add_argument("--thumbnails", action="store_true", help="show some of the images on the map")
    parser.add_argument(
        "--views", type=int, default=27, help="windows or slices of a volume at most (default: 27)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="views encoded at once (default: 32)")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB",
        help="leave files out, e.g. '*_mask.png'; may be repeated",
    )  # fmt: skip
    parser.add_argument("--modality", help="of the images, where they do not say it, e.g. ct")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or mps (default: CUDA where there is one)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Embed, draw; 1 when files could not be used."""
    from ..finetune.embedding import draw_map, embed
    from .console import progress_bar, say

    with progress_bar() as progress:
        done = embed(
            arguments.name, arguments.images, arguments.out, modality=arguments.modality,
            exclude=arguments.exclude, views=arguments.views, batch=arguments.batch_size,
            device=arguments.device, progress=progress,
        )  # fmt: skip
    before = f" ({done.before} of them before)" if done.before else ""
    width = len(done.rows[0].feature) if done.rows else 0
    say(f"embedded: {done.files} files{before}, {len(done.rows)} images x {width} features: {done.table}")
    if done.failures:
        say(f"not usable: {done.failed} files, reasons: {done.failures}")
    if arguments.map:
        draw_map(
            arguments.map, done.rows, method=arguments.method, colour=arguments.colour,
            items=done.items if arguments.thumbnails else (),
        )  # fmt: skip
        say(f"map: {arguments.map}")
    return 1 if done.failed else 0
