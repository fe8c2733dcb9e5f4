"""`medloom demo`: phantoms -> shards -> pretraining (2D, 3D) -> two held-out tasks -> report, on any machine.

Every stage continues where a stopped demo left it, so running it again costs seconds. The numbers show that
the machinery works; phantoms are not patients, and nothing is learnt here about real tasks.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Track:
    """One dimension of the demo: the recipe that pretrains and the held-out task that scores it."""

    recipe: str
    task: str
    overrides: tuple[str, ...]


TRACKS = (
    Track("phantom-mae-2d", "phantom-ultrasound", ("protocol=logistic",)),
    Track("phantom-mae-3d", "phantom-ct-lesion", ("protocol=full",)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom demo`."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to write (default: runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of phantoms and training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: for the tests")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the stages and end with one line that a person can act on."""
    from ..finetune.report import write_report
    from .console import print_table, say
    from .evaluate import summary_rows

    begin = time.monotonic()
    out: Path = arguments.out
    collection = _phantoms(out, arguments.seed, quick=arguments.quick)
    shards = _shards(collection, out)
    runs, evaluations = [], []
    for track in TRACKS:
        encoder = _pretrain(track, shards, out, arguments.seed, quick=arguments.quick)
        runs.append(encoder)
        evaluations.append(
            _evaluate(track, encoder, collection.parent, out, arguments.seed, quick=arguments.quick)
        )
    page = write_report(
        out / "report.html", evaluations=evaluations, pretrain_runs=runs, title="medloom demo on phantoms"
    )
    print_table([row for folder in evaluations for row in summary_rows(folder)])
    minutes = (time.monotonic() - begin) / 60
    say(f"done in {minutes:.1f} minutes; open {page.resolve()} in a browser")
    return 0


def _phantoms(out: Path, seed: int, *, quick: bool) -> Path:
    from ..data.phantoms.phantoms import generate
    from .console import progress_bar

    folder = out / "phantoms"
    collection = folder / "collection.yaml"
    if not collection.exists():  # written last: its presence means that the images are complete
        with progress_bar() as progress:
            collection = generate(folder, seed=seed, subjects=12 if quick else 24, progress=progress)
    return collection


def _shards(collection: Path, out: Path) -> Path:
    from ..data.collection import Collection
    from ..data.ingest.build import build
    from ..data.inspect.gallery import contact_sheet
    from ..data.shards.reader import Shards
    from .console import progress_bar

    folder = out / "shards"
    with progress_bar() as progress:
        build(Collection.load(collection), folder, workers=2, progress=progress)
    contact_sheet(Shards.open(folder), folder / "contact-sheet.png")
    return folder


def _pretrain(track: Track, shards: Path, out: Path, seed: int, *, quick: bool) -> Path:
    from ..pretrain.config import load_config
    from ..pretrain.run import pretrain
    from .console import progress_bar

    folder = out / track.recipe
    overrides = [
        f"data.shards={shards}",
        f"out={folder}",
        f"seed={seed}",
        f"resume={str(folder.exists()).lower()}",
    ]
    if quick:
        overrides += ["trainer.steps=6", "trainer.log_every=2", "probe.every_steps=3"]
    with progress_bar() as progress:
        return pretrain(load_config(track.recipe, overrides), progress=progress)


def _evaluate(track: Track, encoder: Path, root: Path, out: Path, seed: int, *, quick: bool) -> Path:
    from ..finetune.config import load_config
    from ..finetune.evaluation import evaluate
    from ..finetune.run import finetune
    from .console import progress_bar

    overrides = [
        f"encoder={encoder}",
        f"root={root}",
        f"out={out / track.task}",
        f"seed={seed}",
        *track.overrides,
    ]
    if quick:
        overrides.append("steps=4")
    with progress_bar() as progress:
        folder = finetune(load_config(track.task, overrides), progress=progress)
        return evaluate(folder, progress=progress)
