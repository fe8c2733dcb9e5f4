"""What a job is asked for, in words that every launcher has: nodes, GPUs, cores, memory, time.

A job is one command, `medloom pretrain CONFIG resume=true`, on nodes x processes. The configuration is
resolved and frozen beside the run folder when the job is made, so that a recipe that is edited while the job
waits in a queue changes nothing; `resume=true` makes every start, the first and those after a preemption, the
same command.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ...data.config import to_yaml
from ...data.errors import ConfigError
from ..config import PretrainConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DAYS = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_FLAGS = {"mem_gb": "mem", "minutes": "time", "mounts": "mount", "grace_seconds": "grace"}
_UNIT = re.compile(r"(\d+(?:\.\d+)?)([mhd])")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training job. What is None or empty is left to the cluster.

    Raises:
        ConfigError: a number below its least value, a name or a mount that no launcher takes.
    """

    config: PretrainConfig  # complete
    name: str = ""  # empty: the name of the configuration
    nodes: int = 1
    gpus: int = 1  # a node, one process each; 0: one process a node, on its CPU
    gpu_type: str | None = None  # as the cluster calls it: h100, H100, ...
    cpus: int | None = None  # cores a process; None: its loader workers and two
    mem_gb: int | None = None  # GB a node
    minutes: int | None = None  # limit of one start; on Kubernetes of all of them together
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    namespace: str | None = None
    image: str | None = None  # container that has medloom
    mounts: tuple[tuple[str, str], ...] = ()  # (source, folder in the container or on the machine)
    env: tuple[tuple[str, str], ...] = ()
    setup: tuple[str, ...] = ()  # shell lines before the run
    on_demand: bool | None = None  # True: rent no machines that may be taken away
    grace_seconds: int | None = None  # between the signal and the kill; None: see `grace`
    retries: int | None = None  # starts after a crash; preemptions do not count where they can be told apart
    master_addr: str | None = None  # of the first host; torchrun alone has to be told
    master_port: int | None = None
    directory: Path = field(default_factory=Path.cwd)  # where the job starts; relative paths mean this
    shared: bool = True  # its machines see this machine's files

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("nodes", self.nodes, 1), ("gpus", self.gpus, 0), ("cpus", self.cpus, 1), ("mem", self.mem_gb, 1),
            ("time", self.minutes, 1), ("grace", self.grace_seconds, 1), ("retries", self.retries, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"--{flag} {value}: at least {least}")
        if not self.name:
            object.__setattr__(self, "name", self.config.name)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: letters, digits, dots, dashes and underscores")

    @property
    def ranks(self) -> int:
        """Processes a node."""
        return max(1, self.gpus)

    @property
    def grace(self) -> int:
        """Seconds between the signal and the kill."""
        return 120 if self.grace_seconds is None else self.grace_seconds

    @property
    def starts(self) -> int:
        """Starts after a crash."""
        return 3 if self.retries is None else self.retries

    @property
    def port(self) -> int:
        """Port of the first host."""
        return self.master_port or 29500

    @property
    def cores(self) -> int:
        """Cores a process."""
        return self.config.data.workers + 2 if self.cpus is None else self.cpus

    @property
    def folder(self) -> Path:
        """Where the job's files and logs lie: beside the run folder, which holds nothing of the machine."""
        run = self.config.folder
        name = f"{run.name}.launch"
        return self.directory / (run.with_name(name) if self.shared else name)

    @property
    def frozen(self) -> str:
        """The resolved configuration as YAML."""
        return to_yaml(self.config)

    @property
    def python(self) -> str:
        """This interpreter, unless an image or `setup` brings another."""
        return "python" if self.image or self.setup else sys.executable

    def arguments(self, config: Path | str | None = None) -> list[str]:
        """Arguments of `medloom`; `config` is where the frozen configuration lies (None: in `folder`)."""
        return ["pretrain", str(config or self.folder / "config.yaml"), "resume=true"]

    def refuse(self, target: str, taken: tuple[str, ...]) -> None:
        """Refuse what `target` has no use for.

        Args:
            taken: which of the fields below the target does take.

        Raises:
            ConfigError: a value was given that would be dropped without a word.
        """
        optional = ("partition", "account", "qos", "namespace", "image", "mounts", "gpu_type", "mem_gb",
                    "minutes", "cpus", "master_addr", "master_port", "grace_seconds", "retries",
                    "on_demand")  # fmt: skip
        for name in optional:
            if getattr(self, name) not in (None, ()) and name not in taken:
                flag = _FLAGS.get(name, name)
                raise ConfigError(f"--{flag.replace('_', '-')}: {target} has no such thing; leave it out")


def parse_minutes(text: str) -> int:
    """Minutes of a time as sbatch writes it (90, 24:00:00, 1-12:00:00) or with a unit (36h, 90m, 2d).

    Raises:
        ConfigError: neither of them.
    """
    short = _UNIT.fullmatch(text)
    if short:
        return round(float(short[1]) * {"m": 1, "h": 60, "d": 1440}[short[2]])
    match = _DAYS.fullmatch(text)
    if match is None:
        raise ConfigError(f"--time {text}: expected e.g. 36h, 24:00:00, 1-12:00:00 or minutes")
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:  # D-HH[:MM[:SS]]
        return 1440 * int(days) + 60 * first + second + (third > 0)
    if parts[1] is None:  # minutes
        return first
    if parts[2] is None:  # MM:SS
        return first + (second > 0)
    return 60 * first + second + (third > 0)


def parse_pair(text: str, sign: str, flag: str, example: str) -> tuple[str, str]:
    """Split `text` at the last `:` or the first `=`.

    Raises:
        ConfigError: one side is empty.
    """
    left, _, right = text.rpartition(":") if sign == ":" else text.partition("=")
    if not left or not right:
        raise ConfigError(f"{flag} {text}: expected {example}")
    return left, right
