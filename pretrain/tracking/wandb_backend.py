"""Weights & Biases: online only when somebody logged in, otherwise offline: nothing touches the network.

One run a job: its id is in wandb.json before W&B starts, and a requeued job continues it. The sync of an
offline segment replaces all that has its id, so each has its own, in one group. A server that does
not answer at the start makes the segment an offline one; one that dies later costs nothing either, because
W&B keeps the log on disk, and a line says how to `wandb sync` it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import netrc
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from ...data.errors import first_line
from .base import Artifact, Backend, Segment
from .config import TrackingConfig

log = logging.getLogger(__name__)

WANDB = "wandb.json"
STEP = "trainer/global_step"
START_SECONDS = 30  # that a server may take to answer the first time
END_SECONDS = 5  # that giving up may take


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
        self._left = False
        self._staging = ""
        self._place: Path | None = None  # where W&B keeps this run's log
        self._id = next_segment(segment.folder, mode, segment.group)

    def start(self) -> str | None:
        """Start the run, offline where the server does not answer."""
        try:
            self.run = self._init()
        except Exception as error:
            if self.mode != "online" or self._left:
                raise
            log.warning("W&B does not answer (%s): this segment is kept offline", first_line(error))
            self.mode = "offline"
            self._id = next_segment(self.segment.folder, self.mode, self.segment.group)
            self.run = self._init()
        self._place = Path(self.run.dir).parent if self.run.dir else None
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        if self.mode == "offline":
            return f"W&B is offline; to upload this run: {self._sync()}"
        return f"W&B: {self.run.url}"

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Log a row against its step; what is no number (alarms) goes along as text."""
        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        values[STEP] = row["step"]
        self.run.log(values | {key: _picture(path) for key, path in images.items()})

    def alert(self, name: str, text: str, step: int) -> None:
        """An alert, which W&B sends by mail or Slack as its user chose."""
        self.run.alert(f"medloom: {name}", f"step {step}: {text}", level="WARN", wait_duration=0)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        """A W&B table; offline a page of HTML, because a table's files lie outside the run until a sync."""
        import wandb

        columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
        if self.mode != "online":
            self.run.log({name: wandb.Html(page(columns, rows, images), inject=False)})
            return
        table = wandb.Table(columns=columns)
        for row in rows:
            shown = dict(row)
            if "image" in shown:
                path = images.get(str(shown["image"]))
                shown["image"] = None if path is None else _picture(path)
            table.add_data(*(shown.get(column) for column in columns))
        self.run.log({name: table})

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        """An artifact whose metadata are the facts; files are one of their own beside it, online alone.

        It has no file: a manifest of W&B tells the server where on this machine each file lay. The name,
        which has a hash, makes what two runs tell of one and the same version.
        """
        import wandb

        made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=artifact.facts)
        if not used:
            self.run.log_artifact(made)
        elif hasattr(self.run, "_log_artifact"):
            # What use_artifact does, without its refusal of offline runs and its wait for the server.
            self.run._log_artifact(made, is_user_created=True, use_after_commit=True)
        else:
            self.run.use_artifact(made)
        if artifact.files and self.mode != "online":
            log.info("W&B is offline: %s is not kept for the upload, only its facts are", artifact.name)
        elif artifact.files:
            files = wandb.Artifact(f"{artifact.name}-files", type=f"{artifact.kind}-files")
            for path in artifact.files:
                files.add_file(str(path))
            self.run.log_artifact(files)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the summary and wait until all is uploaded."""
        if self.run is None:
            return
        try:
            self.run.summary.update(dict(summary))
            self.run.finish(exit_code=int(failed))
        except Exception as error:  # W&B's own process is gone
            left = self.abandon(lambda: False)
            raise RuntimeError(f"{error or type(error).__name__}; {left}") from error
        finally:
            self.run = None
            self._unstage()

    def abandon(self, alive: Callable[[], bool]) -> str | None:
        """End W&B's own process, which the end of Python would wait for; its log stays on disk."""
        self._left = True
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # it would tell where it was torn off
        reaper = threading.Thread(target=_reap, args=(alive,), name="medloom-wandb-end", daemon=True)
        reaper.start()
        reaper.join(END_SECONDS)
        self._unstage()
        return f"to upload what is left: {self._sync()}" if self._place else None

    def _sync(self) -> str:
        return f"wandb sync {self._place or self.segment.folder / 'wandb'}"

    def _stage(self) -> None:
        """A place for copies of files that names nobody: W&B tells the server where they lay."""
        if self.mode == "online" and "WANDB_DATA_DIR" not in os.environ:
            shared = Path("/var/tmp")
            place = tempfile.mkdtemp(prefix="medloom-", dir=shared if os.access(shared, os.W_OK) else None)
            self._staging = os.environ["WANDB_DATA_DIR"] = place

    def _unstage(self) -> None:
        if self._staging:
            os.environ.pop("WANDB_DATA_DIR", None)
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = ""

    def _init(self) -> Any:
        self._stage()
        # W&B's reports on itself, which the end of Python would wait for. They are read at the import.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, host="unknown", username="unknown",
            email="", program="medloom", init_timeout=START_SECONDS, x_disable_meta=True,
            x_disable_stats=False, x_disable_machine_info=True,
        )  # fmt: skip
        wandb.setup(settings=quiet)  # else a login says so between the progress bars
        segment, count = self.segment, self._id["segment"]
        return wandb.init(
            dir=segment.folder, project=self.config.project, entity=self.config.entity, id=self._id["id"],
            group=self._id["group"], job_type=segment.job, config=segment.values, mode=self.mode,  # type: ignore[arg-type]
            name=segment.name if self.mode == "online" or not count else f"{segment.name}-{count}",
            resume="allow" if self.mode == "online" else None, settings=quiet,
        )  # fmt: skip


def _reap(alive: Callable[[], bool]) -> None:
    """Kill W&B's own process, and any that a thread which is still starting W&B brings up."""
    import psutil
    import wandb

    going = True
    while going:
        going = alive()
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "wandb-core" in child.name():
                    child.kill()
        time.sleep(0.1 if going else 0)
    # Finds nobody to talk to, and may want to end Python for that, but takes its hook at exit away.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def page(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> str:
    """A table as one HTML text, its pictures inside."""

    def cell(key: str, value: Any) -> str:
        path = images.get(str(value)) if key == "image" else None
        if path is None:
            return escape("" if value is None else str(value))
        return f'<img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'

    head = "".join(f"<th>{escape(key)}</th>" for key in columns)
    lines = ("".join(f"<td>{cell(key, row.get(key))}</td>" for key in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(path: Path) -> Any:
    """A picture without the name of its file."""
    import wandb
    from PIL import Image

    with Image.open(path) as picture:
        return wandb.Image(picture.convert("RGB"))


def next_segment(folder: Path, mode: str, group: str | None = None) -> dict[str, Any]:
    """Id of this segment, in wandb.json before W&B starts: one for all that is online, one a segment offline.

    An offline segment shares its id with none: its sync would replace what the server has under that id.
    Under a sweep the agent has chosen the id.
    """
    path = folder / WANDB
    if path.is_file():
        known = json.loads(path.read_text())
    else:
        chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        known = {"id": chosen or secrets.token_hex(4), "segments": []}
        known["group"] = group or known["id"]
    count, first = len(known["segments"]), known.get("id", known["group"])
    name = f"{first}-{count}" if count else first
    if mode == "online":
        name = next((segment["id"] for segment in known["segments"] if segment["mode"] == mode), name)
    segment = {"id": name, "mode": mode, "segment": count}
    known["segments"].append(segment)
    write_json(path, known)
    return {**segment, "group": known["group"]}
