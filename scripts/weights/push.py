"""`medloom weights push RUN`: the release gate, then a folder, and one commit on the hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...pretrain.release.push import Pushed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights push`."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="finished run, or an artefact")
    parser.add_argument("--to", metavar="ORG/NAME", help="repository of the hub")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="put the artefact here (default: RUN/release)"
    )
    parser.add_argument(
        "--scores", type=Path, action="append", default=[], metavar="DIR",
        help="folder of `medloom evaluate` or `medloom benchmark` with scores for the card; may be repeated",
    )  # fmt: skip
    parser.add_argument("--licence", default="", help="of the weights, e.g. Apache-2.0; stated in the card")
    parser.add_argument(
        "--licence-override", metavar="REASON",
        help="release although a licence of the data stands against it; the reason is recorded",
    )  # fmt: skip
    parser.add_argument("--private", action="store_true", default=None, help="create a private repository")
    parser.add_argument("--dry-run", action="store_true", help="all but the upload")
    parser.epilog = (
        "Uploads with HF_TOKEN or the login of `hf auth login`. Refuses on other features or probe scores\n"
        "than recorded, and where a licence of the training data stands against sharing or is not known."
    )


def run(arguments: argparse.Namespace) -> int:
    """Stage, verify in a clean process, upload; print what was found and what to do next."""
    from ...data.errors import ConfigError
    from ...finetune.released import scores_of
    from ...pretrain.release.push import finished, push
    from ..console import say
    from .verify import show

    if arguments.to is None and arguments.folder is None:
        raise ConfigError("say where the release goes: --to ORG/NAME, of the hub, or --folder DIR")
    record = finished(arguments.run_folder)
    pushed = push(
        arguments.run_folder, arguments.to, folder=arguments.folder, licence=arguments.licence,
        override=arguments.licence_override, scores=scores_of(arguments.scores, record["sha256"]),
        private_repo=arguments.private, dry_run=arguments.dry_run,
    )  # fmt: skip
    show(pushed.verdict.checks)
    for sentence in pushed.record["licences"]["forbids"]:
        say(f"overridden: {sentence}")
    say(f"artefact and card: {pushed.folder}")
    if pushed.repo is not None and pushed.commit is None:
        say("dry run: nothing was uploaded")
        return 0
    if pushed.commit is not None:
        say(f"released: {pushed.repo} at commit {pushed.commit}")
        say(f'load_encoder("hf-hub:{pushed.repo}@{pushed.commit}")')
    say("to give it a name, add to configs/weights.yaml (or a file that MEDLOOM_WEIGHTS names):")
    say(_lines(pushed, arguments.licence or "not stated"))
    return 0


def _lines(pushed: Pushed, licence: str) -> str:
    """The lines of a registry; a name there has small letters, and begins with one or with a digit."""
    from ...pretrain.hub.registry import entry

    name = (pushed.repo or pushed.folder.name).rpartition("/")[2]
    name = re.sub(r"[^a-z0-9._-]", "-", name.lower()).lstrip("._-")
    objective = ((pushed.record.get("training") or {}).get("objective") or {}).get("name", "")
    return entry(
        name or "encoder", pushed.record, title=f"{objective} encoder".strip(), licence=licence,
        repo=pushed.repo, commit=pushed.commit, folder=None if pushed.repo else str(pushed.folder),
    ).rstrip()  # fmt: skip
