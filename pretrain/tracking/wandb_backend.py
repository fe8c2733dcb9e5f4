"""Weights & Biases: online only when somebody logged in, otherwise offline: nothing touches the network.

One run a job: its id is in wandb.json before W&B starts, and a requeued job continues it. Offline, two
segments under one id would erase each other at sync, so each has its own id in one group. A server that does
not answer at the start makes the segment an offline one; one that dies later costs nothing either, because
W&B keeps the log on disk, and a line says how to `wandb sync` it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from .base import Artifact, Backend, Segment
from .config import TrackingConfig

log = logging.getLogger(__name__)

WANDB = "wandb.json"
STEP = "trainer/global_step"
START_SECONDS = 30  # that a server may take to answer the first time


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


class Wandb(Backend):
    """A run of W&B."""

    title = "W&B"

    def __init__(self, config: TrackingConfig, segment: Segment, mode: str) -> None:
        self.config, self.segment, self.mode = config, segment, mode
        self.run: Any = None
        self._id = next_segment(segment.folder, mode, segment.group)

    def start(self) -> str | None:
        """Start the run, offline where the server does not answer."""
        try:
            self.run = self._init()
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning("W&B does not answer (%s): this segment is kept offline", str(error).splitlines()[:1])
            self.mode = "offline"
            self._id = next_segment(self.segment.folder, self.mode, self.segment.group)
            self.run = self._init()
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        if self.mode == "offline":
            return f"W&B is offline; to upload this run: {self._sync()}"
        return f"W&B: {self.run.url}"

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Log a row against its step; what is no number (alarms) goes along as text."""
        import wandb

        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        values[STEP] = row["step"]
        self.run.log(values | {key: wandb.Image(str(path)) for key, path in images.items()})

    def alert(self, name: str, text: str, step: int) -> None:
        """An alert, which W&B sends by mail or Slack as its user chose."""
        self.run.alert(f"medloom: {name}", f"step {step}: {text}", level="WARN", wait_duration=0)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        """A W&B table."""
        import wandb

        columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
        table = wandb.Table(columns=columns)
        for row in rows:
            shown = dict(row)
            if "image" in shown:
                path = images.get(str(shown["image"]))
                shown["image"] = None if path is None else wandb.Image(str(path))
            table.add_data(*(shown.get(column) for column in columns))
        self.run.log({name: table})

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        """An artifact that holds the facts as lineage.json; files are one of their own beside it.

        The facts alone decide its digest: the server makes what two runs tell of one and the same version.
        """
        import wandb

        made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=artifact.facts)
        with made.new_file("lineage.json") as file:
            file.write(artifact.text())
        if not used:
            self.run.log_artifact(made)
        elif self.mode == "online":
            self.run.use_artifact(made)
        else:  # use_artifact refuses offline, although its record is uploaded by `wandb sync` all the same
            self.run._log_artifact(made, is_user_created=True, use_after_commit=True)
        if artifact.files:
            files = wandb.Artifact(f"{artifact.name}-files", type=f"{artifact.kind}-files")
            for path in artifact.files:
                files.add_file(str(path))
            self.run.log_artifact(files)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the summary and wait until all is uploaded."""
        if self.run is None:
            return
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=int(failed))
        self.run = None

    def abandon(self) -> str | None:
        """End W&B's own process, which the end of Python would wait for; its log stays on disk."""
        import psutil

        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "wandb-core" in child.name():
                    child.kill()
        return None if self.run is None else f"to upload what is left: {self._sync()}"

    def _sync(self) -> str:
        folder = Path(self.run.dir).parent if self.run.dir else self.segment.folder / "wandb"
        return f"wandb sync {folder}"

    def _init(self) -> Any:
        import wandb

        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, host="unknown", username="unknown",
            email="", program="medloom", init_timeout=START_SECONDS, x_disable_meta=True,
            x_disable_stats=False, x_disable_machine_info=True,
        )  # fmt: skip
        segment, count = self.segment, self._id["segment"]
        return wandb.init(
            dir=segment.folder, project=self.config.project, entity=self.config.entity, id=self._id["id"],
            group=self._id["group"], job_type=segment.job, config=segment.values, mode=self.mode,  # type: ignore[arg-type]
            name=segment.name if self.mode == "online" or not count else f"{segment.name}-{count}",
            resume="allow" if self.mode == "online" else None, settings=quiet,
        )  # fmt: skip


def group_of(folder: Path) -> str | None:
    """Group of the W&B runs of a run folder; None where it has none."""
    path = folder / WANDB
    return json.loads(path.read_text()).get("group") if path.is_file() else None


def next_segment(folder: Path, mode: str, group: str | None = None) -> dict[str, Any]:
    """Id of this segment, in wandb.json before W&B starts: one id a run online, one a segment offline.

    Under a sweep the agent has chosen the id.
    """
    path = folder / WANDB
    if path.is_file():
        known = json.loads(path.read_text())
    else:
        chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        known = {"id": chosen or secrets.token_hex(4), "segments": []}
        known["group"] = group or known["id"]
    count = len(known["segments"])
    suffix = f"-{count}" if mode == "offline" and count else ""
    segment = {"id": f"{known.get('id', known['group'])}{suffix}", "mode": mode, "segment": count}
    known["segments"].append(segment)
    write_json(path, known)
    return {**segment, "group": known["group"]}
