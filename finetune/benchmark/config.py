"""What a benchmark is asked: encoders by name, tasks, protocols, seeds, shares of the labels, baselines.

The choice: everything that moves a score is common to all encoders (`options`, and `task_options` of one task
for all of them); there is no key for one encoder, so that none is tuned alone. A finished cell is never
computed again, so what would change it is refused in a folder that has cells; encoders, tasks, protocols,
seeds and shares may be added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.atomic import write_text
from ...data.config import find_config, read_yaml, structured, to_dict, to_yaml
from ...data.errors import ConfigError, nearest
from ...pretrain.hub.registry import registry
from ..config import PROTOCOLS, FinetuneConfig, load_config

FILE = "benchmark.yaml"
BASELINES = ("random", "scratch")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIXED = ("options", "task_options")  # what must stay in a folder that has cells

_OWN = ("out", "encoder", "protocol", "seed", "fraction", "draw", "shots", "baseline", "arm", "task")


@dataclass
class BenchmarkConfig:
    """A benchmark. Paths may be relative to where the command is given."""

    # Name -> what `medloom finetune --encoder` takes: a run folder, timm:NAME, random:NAME, hf:ORG/NAME, ...
    encoders: dict[str, str] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)  # shipped records or YAML files
    protocols: list[str] = field(default_factory=lambda: ["logistic", "full"])
    seeds: list[int] = field(default_factory=lambda: [0])  # of heads, examples and random weights
    fractions: list[float] = field(default_factory=lambda: [1.0])  # shares of the training subjects, nested
    draws: list[int] = field(default_factory=lambda: [0])  # of the labels, for shares below 1
    # Once for each architecture among the encoders: frozen random features, and everything trained from
    # random weights. An empty list leaves them out, and the page says so.
    baselines: list[str] = field(default_factory=lambda: [*BASELINES])
    out: str = "runs/benchmark"  # folder of the cells and the page
    root: str | None = None  # folder of the tasks' sources, as of `medloom finetune`
    cache: str | None = None  # of task shards; None: $XDG_CACHE_HOME/medloom/tasks
    features: str | None = None  # of frozen features; None: OUT/features
    features_gib: float = 20.0  # bound of that folder
    device: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)  # keys of `medloom finetune` for all cells
    task_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> the same for one task

    def __post_init__(self) -> None:
        for name in self.encoders:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"encoders: {name!r}: a name is letters, digits, dots, dashes, underscores")
        for key, values, known in (
            ("protocols", self.protocols, PROTOCOLS), ("baselines", self.baselines, BASELINES),
        ):  # fmt: skip
            for value in values:
                if value not in known:
                    raise ConfigError(f"{key}: unknown {value!r}{nearest(value, known)}")
        for key in ("tasks", "protocols", "seeds", "fractions", "draws", "baselines"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ConfigError(f"{key}: {values}: something is listed twice")
        for key in _OWN:
            if key in self.options:
                raise ConfigError(f"options.{key}: is the grid's own: give it outside of `options`")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.out)


def load_benchmark(
    path: Path | str | None, values: Mapping[str, Any], dotlist: Sequence[str] = ()
) -> BenchmarkConfig:
    """Read a benchmark's YAML, or what its folder holds, and merge `values` and the command line over it.

    Args:
        path: YAML file, or None: `benchmark.yaml` of the folder `values["out"]`, if there is one.
        values: keys that were given as flags.

    Raises:
        ConfigError: unknown key or name, nothing to do, or another benchmark in the same folder.
    """
    layers: list[Any] = []
    if path is not None:
        layers.append(Path(path))
    elif (Path(str(values.get("out", BenchmarkConfig.out))) / FILE).is_file():
        layers.append(Path(str(values.get("out", BenchmarkConfig.out))) / FILE)
    config = structured(BenchmarkConfig, *layers, dict(values), list(dotlist), where=str(path or "benchmark"))
    for key in ("encoders", "tasks", "protocols", "seeds", "fractions", "draws"):
        if not getattr(config, key):
            raise ConfigError(f"benchmark: {key}: is empty: give at least one (in the YAML, or --{key[:-1]})")
    config.encoders = {name: resolve(source) for name, source in config.encoders.items()}
    config.tasks = [_task(task) for task in config.tasks]
    names = [task_name(task) for task in config.tasks]
    if len(set(names)) != len(names):
        raise ConfigError(f"tasks: {names}: two have one name: rename a file")
    unknown = [name for name in config.task_options if name not in names]
    if unknown:
        raise ConfigError(f"task_options: {unknown[0]!r} is not among the tasks{nearest(unknown[0], names)}")
    config.out = str(Path(config.out).expanduser().absolute())
    for key in ("root", "cache", "features"):
        value = getattr(config, key)
        if value is not None:
            setattr(config, key, str(Path(value).expanduser().absolute()))
    return config


def resolve(source: str) -> str:
    """What `load_encoder` takes, for the name of an encoder as a benchmark gives it; paths become whole.

    A released name stays one where a folder here has it, too, as everywhere (`./NAME` is the folder).
    """
    prefix = "random:" if source.startswith("random:") else ""
    name = source.removeprefix(prefix)
    path = Path(name).expanduser()
    return f"{prefix}{path.absolute()}" if path.exists() and name not in registry() else source


def encoder_name(source: str) -> str:
    """A name for an encoder that was given without one: the last part of its path or of its name."""
    rest = Path(source.removeprefix("random:").rpartition(":")[2])
    last = rest.stem if rest.suffix in (".safetensors", ".ckpt", ".json") else rest.name
    random = "random-" if source.startswith("random:") else ""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{random}{last}")


def task_name(task: str) -> str:
    """The record's name, of a path or of a shipped name."""
    return Path(task).stem


def record_folder(config: BenchmarkConfig) -> Path:
    """Write benchmark.yaml, after a look at the one that is there; returns the folder.

    Raises:
        ConfigError: the folder has cells of other options, or a name stands for another encoder.
    """
    folder, path = config.folder, config.folder / FILE
    if path.is_file():
        before, now = read_yaml(path), to_dict(config)
        for key in _FIXED:
            if _plain(before.get(key)) != _plain(now[key]) and any(folder.glob("cells/*/*/*")):
                raise ConfigError(
                    f"{folder}: its cells were computed with {key} {before.get(key)}, now {now[key]}: choose "
                    "another --out"
                )
        for name, source in (before.get("encoders") or {}).items():
            if config.encoders.get(name, source) != source:
                raise ConfigError(f"{folder}: {name} stands for another encoder there: choose another name")
    elif folder.is_dir() and any(entry.name != "features" for entry in folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is no benchmark: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, to_yaml(config))
    return folder


def run_config(config: BenchmarkConfig, task: str, named: Mapping[str, Any]) -> FinetuneConfig:
    """Configuration of a fine-tuning run of the benchmark: its options under what the cell itself names."""
    common: dict[str, Any] = {
        "root": config.root, "cache": config.cache, "device": config.device,
        "features": config.features or str(config.folder / "features"), "features_gib": config.features_gib,
    }  # fmt: skip
    items = [*_flat(config.options), *_flat(config.task_options.get(task_name(task), {}))]
    values = {key: value for key, value in common.items() if value is not None} | dict(named)
    return load_config(task, [*items, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


def _task(task: str) -> str:
    path = find_config("tasks", task)
    return str(path.absolute()) if Path(task).is_file() else path.stem


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested options as a dot-list."""
    items: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append(f"{prefix}{key}={json.dumps(value)}")
    return items


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value or None, default=str))
