"""The cells of a benchmark: what is computed once, in an order that shares features and shards.

A baseline belongs to an architecture and not to an encoder: two encoders of one network meet the same random
weights, so these are one cell. `random` is frozen, so it stands beside the frozen protocols; `scratch` is the
whole network from random weights, once a task. Price: architectures are compared by their section and their
training crop, which takes a look into every encoder's record, but not at its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.errors import ConfigError
from ..config import FinetuneConfig
from .config import BenchmarkConfig, encoder_name, run_config, task_name


@dataclass(frozen=True, slots=True)
class Cell:
    """One fine-tuning run with its evaluation."""

    task: str  # as `load_config` takes it
    encoder: str  # name of the row: an encoder's, or <family>.random and <family>.scratch of a baseline
    family: str  # the first encoder of the same architecture, which the baselines are named after
    source: str  # as `load_encoder` takes it
    arm: str  # pretrained, random or scratch
    protocol: str
    fraction: float
    seed: int
    draw: int = 0  # of the labels, where they are a share

    @property
    def name(self) -> str:
        """Folder below `cells/`."""
        drawn = f"-d{self.draw}" if self.draw else ""
        run = f"{self.protocol}-{100 * self.fraction:g}-s{self.seed}{drawn}"
        return f"{task_name(self.task)}/{self.encoder}/{run}"

    def folder(self, out: Path) -> Path:
        """Folder of the cell."""
        return out / "cells" / self.name

    def config(self, benchmark: BenchmarkConfig) -> FinetuneConfig:
        """The run's configuration."""
        named = {
            "encoder": self.source, "arm": self.arm, "protocol": self.protocol, "seed": self.seed,
            "fraction": self.fraction, "draw": self.draw, "out": str(self.folder(benchmark.folder) / "run"),
        }  # fmt: skip
        return run_config(benchmark, self.task, named)


def grid(config: BenchmarkConfig) -> list[Cell]:
    """Every cell, in the order of work: by task, then by encoder, frozen protocols first.

    Raises:
        ConfigError: no protocol goes with any task, or two encoders would have one name.
        CheckpointError: an encoder that is not there.
    """
    rows = rows_of(config)
    cells = [cell for task in config.tasks for row in rows for cell in _cells(config, task, *row)]
    if not cells:
        raise ConfigError(f"protocols: none of {config.protocols} goes with the tasks {config.tasks}")
    return cells


def rows_of(config: BenchmarkConfig) -> list[tuple[str, str, str, str]]:
    """(name, family, source, arm) of the encoders and of the baselines of their architectures."""
    rows: list[tuple[str, str, str, str]] = []
    families: dict[str, str] = {}
    for name, source in config.encoders.items():
        random = source.startswith("random:")
        family = families.setdefault(architecture(source), name)
        rows.append((name, family, source, "random" if random else "pretrained"))
        if family == name:
            bare = f"random:{source.removeprefix('random:')}"
            wanted = [arm for arm in config.baselines if not (random and arm == "random")]
            rows += [(f"{name}.{arm}", family, bare, arm) for arm in wanted]
    names = [row[0] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"encoders: {twice!r} is also the name of a baseline: choose another")
    return rows


def architecture(source: str) -> str:
    """Hash of the network behind a source and of the crop that it was trained on."""
    from ...pretrain.sources import read_source

    section, _, record = read_source(source.removeprefix("random:"), weights=False)
    section = {key: value for key, value in section.items() if key != "pretrained"}
    crop = (record.get("input") or {}).get("crop")
    text = json.dumps([section, crop], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def share(cells: Sequence[Cell], number: int, of: int) -> list[Cell]:
    """The part `number` (from 0) of `of` parts: whole groups of task and encoder where there are enough.

    Raises:
        ConfigError: no such part.
    """
    if not 0 <= number < of:
        raise ConfigError(f"--array {number}/{of}: the first number runs from 0 to {of - 1}")
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.encoder), []).append(cell)
    if len(groups) >= of:
        return [cell for group in list(groups.values())[number::of] for cell in group]
    return list(cells[number::of])


def encoders_of(items: Sequence[str]) -> dict[str, str]:
    """`NAME=SOURCE` or `SOURCE` words of the command line as a mapping.

    Raises:
        ConfigError: one name for two encoders.
    """
    found: dict[str, str] = {}
    for item in items:
        name, sign, source = item.partition("=")
        name, source = (name, source) if sign else (encoder_name(item), item)
        if found.get(name, source) != source:
            raise ConfigError(f"--encoder {item}: {name!r} is taken: write OTHERNAME={source}")
        found[name] = source
    return found


def _cells(
    config: BenchmarkConfig, task: str, name: str, family: str, source: str, arm: str
) -> Iterator[Cell]:
    for protocol in _protocols(config, task, arm):
        for fraction in config.fractions:
            for draw in config.draws if fraction < 1 else config.draws[:1]:
                for seed in config.seeds:
                    yield Cell(task, name, family, source, arm, protocol, fraction, seed, draw)


def _protocols(config: BenchmarkConfig, task: str, arm: str) -> list[str]:
    """The protocols of the benchmark that go with the task's kind and with what the row is."""
    from ..config import load_config
    from ..protocols import PROTOCOLS
    from ..tasks import TASKS

    kind = TASKS[load_config(task, ["encoder=none"]).task.kind]
    fitting = [name for name in config.protocols if PROTOCOLS[name].head in kind.heads]
    if arm == "scratch":  # whole: a frozen probe has nothing to offer to random weights
        return ["full"] if fitting else []
    if arm == "random":
        fitting = [name for name in fitting if PROTOCOLS[name].frozen]
    return sorted(fitting, key=lambda name: (not PROTOCOLS[name].frozen, config.protocols.index(name)))
