"""`medloom data fetch`: a public dataset onto this disk, or the exact steps where a person has to act."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...data.catalog import Dataset
    from ...data.fetch.fetch import Fetched
    from ...data.fetch.plan import Plan

EXAMPLE = """examples:
  medloom data fetch msd-task09-spleen                  the Decathlon's spleens, into datasets/
  medloom data fetch pathmnist --size 224 --to /data    MedMNIST at 28 (default), 64, 128 or 224
  medloom data fetch amos22                             cannot be fetched: prints the steps
  medloom data fetch amos22 --from ~/Downloads/amos22.zip"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("id", help="dataset of the catalogue; see `medloom catalog search`")
    parser.add_argument(
        "--to", type=Path, default=Path("datasets"), help="folder of your datasets (default: datasets)"
    )
    parser.add_argument("--size", type=int, help="of MedMNIST's images: 28, 64, 128 or 224 (default: 28)")
    parser.add_argument(
        "--from", dest="given", type=Path, nargs="+", metavar="PATH", default=[],
        help="files or a folder that you have already, instead of downloading",
    )  # fmt: skip
    parser.add_argument(
        "--accept-licence", action="store_true", help="you have read the licence and accept it (for scripts)"
    )
    parser.add_argument(
        "--accept-changed", action="store_true", help="take a file that is not that of the first fetch"
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="do not remove archives when they are unpacked"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fetch; 2 where the user has to act first."""
    from ...data.catalog import load
    from ...data.fetch.fetch import Options, fetch
    from ...data.fetch.plan import given, plan
    from ..console import progress_bar, say

    wanted = plan(load(), arguments.id, arguments.size)
    if arguments.given:
        wanted = given(wanted, [path.expanduser() for path in arguments.given])
    if not wanted.parts:
        _show_steps(wanted, arguments.to)
        return 2
    if not _licence(wanted.dataset, yes=arguments.accept_licence):
        say("not accepted; nothing was fetched")
        return 2
    command = ["medloom", "data", "fetch", wanted.dataset.id]
    command += ["--size", str(wanted.size)] if wanted.size else []
    options = Options(
        keep_archives=arguments.keep_archives,
        accept_changed=arguments.accept_changed,
        command=shlex.join(command),
    )
    with progress_bar() as progress:
        found = fetch(wanted, arguments.to, options, progress)
    _show(wanted, found, arguments.to)
    return 0


def _licence(dataset: Dataset, *, yes: bool) -> bool:
    """Show the terms; ask, unless they were accepted before or by an option. Raises ConfigError."""
    from ...data.errors import ConfigError
    from ...data.fetch import licence
    from ..console import say

    for line in licence.notice(dataset):
        say(line)
    if licence.is_accepted(dataset):
        say("accepted before, on this account")
        return True
    how = "--accept-licence"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{dataset.id}: its licence is not accepted yet; read {dataset.homepage or 'its page'}, then "
                "run the same command with --accept-licence"
            )
        say("Read the licence on that page. Type yes to accept it:")
        if sys.stdin.readline().strip().lower() != "yes":
            return False
        how = "typed yes"
    licence.accept(dataset, how)
    return True


def _show_steps(wanted: Plan, to: Path) -> None:
    from ...data.fetch import licence
    from ...data.fetch.steps import steps
    from ..console import say

    for line in licence.notice(wanted.dataset):
        say(line)
    say(f"cannot be fetched by this command: {wanted.reason}. By hand:")
    for number, step in enumerate(steps(wanted.dataset, to.as_posix()), 1):
        say(f"{number:>3}. {step}")


def _show(wanted: Plan, found: Fetched, to: Path) -> None:
    from ...data.config import CONFIGS
    from ..console import say

    identifier = wanted.dataset.id
    folder = to / wanted.folder
    say(f"{folder}: fetched, verified" if not wanted.parts[0].given else f"{folder}: ready")
    if found.collection is None:
        say(f"no collection was written: {found.reason}")
        say("next: write one by hand, docs/collections.md lists the layouts")
        return
    collection = folder / "collection.yaml"
    kept = ", left as it was" if found.kept else ""
    refused = f", {found.refused:,} refused" if found.refused else ""
    say(f"{collection}: {found.images:,} images{refused}{kept}")
    shards = f"shards/{wanted.folder}"
    say(f"next: medloom shards build {shlex.quote(str(collection))} --out {shards}")
    say(f"      medloom shards show {shards}")
    say(f"      medloom catalog related {identifier}   which datasets share its cases")
    if wanted.folder == identifier and (CONFIGS / "tasks" / f"{identifier}.yaml").exists():
        root = shlex.quote(str(to))
        say(f"      medloom finetune {identifier} --root {root} --encoder ENCODER   its task here")
