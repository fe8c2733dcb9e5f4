"""`medloom shards import`: shards of webdataset, LitData or nnU-Net become shards of medloom."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  medloom shards import 'wds/train-{000..099}.tar' --out shards/derm --modality dermoscopy --organ skin \\
      --licence CC-BY-4.0 options.subject=patient options.label=diagnosis
  medloom shards import nnUNet_preprocessed/Dataset001_Liver --from nnunet --out shards/liver --modality ct \\
      options.configuration=3d_fullres

key=value words are fields of the source as in a collection's YAML; docs/interop.md lists the options.
What the shards say of persons is only kept when an option names it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "source", nargs="+", help="folder; or tars, 'train-{000..099}.tar', a .txt with one a line"
    )
    parser.add_argument(
        "--from", dest="kind", choices=("webdataset", "litdata", "nnunet"), help="default: guessed"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--modality", required=True, help="e.g. ct, mri, x-ray, dermoscopy")
    parser.add_argument("--organ", help="e.g. brain, chest, skin")
    parser.add_argument(
        "--licence", default="unknown", help="SPDX where there is one; travels with the shards"
    )
    parser.add_argument("--dataset", help="identifier, a-z 0-9 _ - (default: the folder's name)")
    parser.add_argument("--workers", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--shard-mb", type=int, default=256, help="source megabytes planned per shard")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Import, then say what was written and refused."""
    from ...data.ingest.build import build
    from ...data.interop.imports import collection_of
    from ..console import progress_bar, say, size

    words = [word for word in arguments.source if "=" in word and not Path(word).exists()]
    collection = collection_of(
        [word for word in arguments.source if word not in words],
        kind=arguments.kind, modality=arguments.modality, organ=arguments.organ, licence=arguments.licence,
        dataset=arguments.dataset, overrides=[*words, *arguments.overrides],
    )  # fmt: skip
    with progress_bar() as progress:
        result = build(
            collection, arguments.out, workers=arguments.workers,
            shard_bytes=arguments.shard_mb << 20, progress=progress,
        )  # fmt: skip
    manifest = result.manifest
    files, stored = len(manifest.shards), size(sum(shard.bytes for shard in manifest.shards))
    say(f"{arguments.out}: {manifest.count} samples of {collection.name}, {files} files, {stored}")
    if result.failures:
        say(f"refused: {len(result.failures)} images, with reasons in {arguments.out / 'failures.jsonl'}")
    say(f"next: medloom shards show {arguments.out}")
    return 0
