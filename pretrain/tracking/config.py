"""Configuration of tracking: which tracker mirrors metrics.jsonl, and what it may see."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ...data.errors import ConfigError, nearest

TRACKERS = {  # name -> what it needs beside medloom: (module, extra)
    "wandb": ("wandb", ""), "tensorboard": ("tensorboard", "tensorboard"), "mlflow": ("mlflow", "mlflow"),
    "none": ("", ""),
}  # fmt: skip
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(kw_only=True)
class TrackingConfig:
    """A tracker beside metrics.jsonl, which is always written. docs/tracking.md."""

    tracker: str = "wandb"  # wandb | tensorboard | mlflow | none
    wandb: str = "auto"  # auto: online when logged in, else offline | online | offline | disabled
    project: str = "medloom"  # of W&B; the experiment of MLflow
    entity: str | None = None  # of W&B: team or user
    images: bool = True  # show panels and overlays to the tracker; false: numbers alone
    weights: bool = False  # upload the released encoder, too; false: its facts and its hash
    finish_seconds: float = 60.0  # how long the end of a run waits for a tracker that is slow
    stall_minutes: float = 10.0  # say so when the loader has given no batch for that long

    def check(self) -> None:
        """Refuse what no tracker understands.

        Raises:
            ConfigError: an unknown word, or a time that is not above 0.
        """
        for key, word, known in (
            ("tracker", self.tracker, tuple(TRACKERS)), ("wandb", self.wandb, WANDB_MODES),
        ):  # fmt: skip
            if word not in known:
                raise ConfigError(f"tracking.{key} is {word!r}{nearest(word, known)}")
        for key, value in (("finish_seconds", self.finish_seconds), ("stall_minutes", self.stall_minutes)):
            if value <= 0:
                raise ConfigError(f"tracking.{key} is {value}; it must be above 0")

    def require(self) -> None:
        """Refuse a tracker whose package is missing, on every rank and before anything is written.

        Raises:
            ConfigError: with the command that installs it.
        """
        module, extra = TRACKERS[self.tracker]
        if module and find_spec(module) is None:
            how = f"pip install 'medloom[{extra}]'" if extra else f"pip install {module}"
            raise ConfigError(f"tracking.tracker={self.tracker} needs {module}: {how}, or take none")
