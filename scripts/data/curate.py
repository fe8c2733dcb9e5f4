"""`medloom data curate`: which images of a collection not to train on, and why."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...data.curate.curate import Result

NOTES = """rules (each drops or flags; change it with --drop and --flag):
{rules}

A killed run continues when the same command is given again. Other thresholds cost seconds: images are not
read again. Sheets show pixels: keep them to yourself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from ...data.curate.findings import RULES

    lines = (f"  {rule:<14} {action:<5} {words}" for rule, (action, words) in RULES.items())
    parser.epilog = NOTES.format(rules="\n".join(lines))
    parser.add_argument("collection", help="YAML of the collection (a path, or the name of a shipped one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for curation.json, sheets and work")
    parser.add_argument("--root", type=Path, help="folder that holds the datasets (overrides the YAML)")
    parser.add_argument("--workers", type=int, default=2, help="processes (0: this one)")
    parser.add_argument(
        "--memory-gb", type=float, help="memory for all workers (default: 80%% of what is free)"
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="RULE", help="rules that drop what they find"
    )
    parser.add_argument("--flag", nargs="+", default=[], metavar="RULE", help="rules that only list it")
    parser.add_argument(
        "--threshold",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="e.g. near_2d=0.98; see docs/curation.md",
    )
    parser.add_argument(
        "--clean-for", nargs="+", default=[], metavar="TASK",
        help="leave out the data of these tasks and all their relatives in the catalogue",
    )  # fmt: skip
    parser.add_argument(
        "--catalogue", nargs="+", default=[], metavar="SOURCE=ID", help="what a source is in the catalogue"
    )
    parser.add_argument("--no-sheets", action="store_true", help="draw no contact sheets")
    parser.add_argument("--list", action="store_true", help="print every finding with its path (here only)")


def run(arguments: argparse.Namespace) -> int:
    """Curate, then say what was found."""
    from ...data.collection import Collection
    from ...data.config import find_config
    from ...data.curate.curate import SHEETS, curate
    from ...data.curate.findings import Settings
    from ...data.curate.sheets import draw
    from ...data.errors import ConfigError
    from ...data.ingest.needs import SHARE, free_memory
    from ..console import progress_bar, say

    if wrong := [word for word in arguments.threshold if "=" not in word]:
        raise ConfigError(f"--threshold {wrong[0]!r}: expected NAME=VALUE")
    settings = Settings.of(
        arguments.drop, arguments.flag, dict(word.split("=", 1) for word in arguments.threshold)
    )
    collection = Collection.load(find_config("collections", arguments.collection), root=arguments.root)
    memory = int(arguments.memory_gb * 1e9) if arguments.memory_gb else int(SHARE * free_memory())
    with progress_bar() as progress:
        result = curate(
            collection, arguments.out, settings=settings, workers=arguments.workers, memory=memory,
            clean_for=arguments.clean_for, ids=arguments.catalogue, progress=progress,
        )  # fmt: skip
    sheets = [] if arguments.no_sheets else draw(result, arguments.out / SHEETS)
    _show(result)
    if arguments.list:
        _list(result)
    if sheets:
        say(f"look at what was found: {arguments.out / SHEETS} ({len(sheets)} sheets; they show pixels)")
    shards = f"--curation {result.path} --out shards/{collection.name}"
    say(f"next: medloom shards build {arguments.collection} {shards}")
    return 0


def _show(result: Result) -> None:
    """Counts by rule and dataset, leaks between splits, refused files."""
    from ...data.curate.findings import RULES
    from ..console import print_table, say

    counts: Counter[tuple[str, str, str]] = Counter()
    for finding in result.findings:
        counts[finding.rule, result.action(finding), result.table.records[finding.record][0].dataset] += 1
    for (source, _), rule, _ in result.unseen:
        counts[rule, result.settings.actions[rule], source.dataset] += 1
    order = list(RULES)
    rows = sorted(counts.items(), key=lambda item: (order.index(item[0][0]), item[0][2], item[0][1]))
    print_table(
        [
            {"rule": rule, "action": action, "dataset": dataset, "images": count}
            for (rule, action, dataset), count in rows
        ]
    )
    for dataset, splits in result.leaks.items():
        words = ", ".join(f"{count} between {name}" for name, count in splits.items())
        say(f"{dataset}: images that show the same stand in different splits: {words}")
    records = result.table.records
    say(f"{result.path}: {len(records) + len(result.unseen)} records, {len(result.table)} images looked at")
    if result.failures:
        first = result.failures[0]
        say(f"refused: {len(result.failures)} files; the first, {first.path}: {first.reason}")


def _list(result: Result) -> None:
    from ..console import say

    for finding in result.findings:
        source, record = result.table.records[finding.record]
        numbers = " ".join(f"{name}={value}" for name, value in finding.numbers.items())
        other = ""
        if finding.of is not None:
            theirs = result.table.source(finding.of)
            other = f" of {theirs.dataset}/{theirs.relative(result.table.record(finding.of).paths[0])}"
        where = source.relative(record.paths[0])
        say(f"{result.action(finding)} {finding.rule}: {source.dataset}/{where} {numbers}{other}")
    for (source, record), rule, numbers in result.unseen:
        words = " ".join(f"{name}={value}" for name, value in numbers.items())
        action = result.settings.actions[rule]
        say(f"{action} {rule}: {source.dataset}/{source.relative(record.paths[0])} {words}")
