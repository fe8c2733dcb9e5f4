"""Where numbers go: metrics.jsonl is the authority, Weights & Biases mirrors it.

Rows are JSON objects with `step` and `samples`, one row a step, appended and flushed; a resumed run first
cuts the rows beyond its checkpoint, so that no step is there twice. W&B is online only when somebody logged
in, and otherwise offline: nothing touches the network, and one line says how to sync. Offline, two segments
under one id would erase each other at sync, so each segment of a run gets its own id in one group. What
leaves the machine: numbers, panels, the configuration without folders. No host name, user name, path or
sample key.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import secrets
from pathlib import Path
from typing import Any, TextIO

from ..data.atomic import write_json, write_text
from ..data.errors import ConfigError
from .config import TrackingConfig

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
WANDB = "wandb.json"


class Journal:
    """metrics.jsonl of a run, open for appending."""

    def __init__(self, folder: Path, *, keep_until: int) -> None:
        """Open; rows with a step above `keep_until`, and a last row that was cut off, are removed first."""
        self.path = folder / METRICS
        rows = [row for row in read_rows(self.path) if row["step"] <= keep_until]
        write_text(self.path, "".join(_line(row) for row in rows))
        self._file: TextIO = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; numbers that are not finite become null (JSON has none)."""
        self._file.write(_line(row))
        self._file.flush()

    def sync(self) -> None:
        """Make the rows durable; a checkpoint must not be ahead of its rows."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, in order; a line that a kill cut off is left out. Missing file: no rows."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value
             for key, value in row.items()}  # fmt: skip
    return json.dumps(clean, allow_nan=False) + "\n"


def choose_mode(wanted: str) -> str:
    """online | offline | disabled for `tracking.wandb`; WANDB_MODE of the environment binds `auto`."""
    if wanted != "auto":
        return wanted
    said = os.environ.get("WANDB_MODE", "").lower()
    if said in ("offline", "disabled", "online"):
        return said
    if said == "dryrun":
        return "offline"
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment or for its host in the netrc file. Asks no network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = (
        os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    )
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and netrc.netrc(str(path)).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False


class Tracker:
    """The W&B run of one segment (from a start or a resume to its end), on rank 0 only."""

    def __init__(self, folder: Path, config: TrackingConfig, *, name: str, values: dict[str, Any]) -> None:
        """Write wandb.json, then start W&B. A failure of W&B is logged and never stops a run.

        Args:
            values: the resolved configuration; folders are cut out before it is handed on.
        """
        self.folder = folder
        self.run: Any = None
        self.mode = choose_mode(config.wandb)
        if self.mode == "disabled":
            return
        segment = _next_segment(folder, self.mode)
        try:
            self.run = _start(folder, config, segment, name=name, values=public(values))
        except Exception as error:  # W&B raises many kinds; a tracker must not cost a run
            log.warning(
                "W&B did not start (%s); metrics.jsonl is complete without it", str(error).splitlines()[:1]
            )
            return
        if self.mode == "offline":
            synced = Path(self.run.dir).parent if self.run.dir else folder / "wandb"
            log.info("W&B is offline; to upload this run: wandb sync %s", synced)

    def log(self, row: dict[str, Any], images: dict[str, Path] | None = None) -> None:
        """Mirror one row, and pictures by name."""
        if self.run is None:
            return
        import wandb

        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        values["trainer/global_step"] = row["step"]
        for key, path in (images or {}).items():
            values[key] = wandb.Image(str(path))
        self._safely("log", values)

    def finish(self, summary: dict[str, Any], *, failed: bool = False) -> None:
        """End the segment."""
        if self.run is None:
            return
        self.run.summary.update(summary)
        self._safely("finish", exit_code=int(failed))
        self.run = None

    def _safely(self, method: str, *arguments: Any, **named: Any) -> None:
        try:
            getattr(self.run, method)(*arguments, **named)
        except Exception as error:
            log.warning("W&B stopped (%s); metrics.jsonl goes on", str(error).splitlines()[:1])
            self.run = None


def _next_segment(folder: Path, mode: str) -> dict[str, Any]:
    """Id of this segment, in wandb.json before W&B starts: one id a run online, one a segment offline."""
    path = folder / WANDB
    known = (
        json.loads(path.read_text()) if path.is_file() else {"group": secrets.token_hex(4), "segments": []}
    )
    count = len(known["segments"])
    suffix = f"-{count}" if mode == "offline" and count else ""
    segment = {"id": f"{known['group']}{suffix}", "mode": mode, "segment": count}
    known["segments"].append(segment)
    write_json(path, known)
    return {**segment, "group": known["group"]}


def _start(folder: Path, config: TrackingConfig, segment: dict[str, Any], *, name: str,
           values: dict[str, Any]) -> Any:  # fmt: skip
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("wandb is not installed: pip install wandb, or tracking.wandb=disabled") from error
    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, host="unknown", username="unknown",
        email="", program="medloom pretrain", init_timeout=30, x_disable_meta=True, x_disable_stats=False,
        x_disable_machine_info=True,
    )  # fmt: skip
    run = wandb.init(
        dir=folder, project=config.project, entity=config.entity, id=segment["id"], group=segment["group"],
        name=name if segment["segment"] == 0 else f"{name}-{segment['segment']}", config=values,
        mode=segment["mode"], resume="allow" if segment["mode"] == "online" else None, settings=quiet,
    )  # fmt: skip
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")
    return run


def public(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration without folders: absolute and relative paths are cut to their last part."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cut(item) for item in value]
        if isinstance(value, str) and ("/" in value or "\\" in value):
            return Path(value.replace("\\", "/")).name
        return value

    return cut(values)
