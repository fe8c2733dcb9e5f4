"""The tracker of a run: a bounded queue and one thread, behind which anything may hang, fail or be slow.

Training only appends to the queue (microseconds). A full queue loses its oldest row, never an alert, an
artifact or a table; what was lost is counted and said at the end, and metrics.jsonl has every row. The end of
a run waits `tracking.finish_seconds` for delivery, a run that is being preempted far less, and then leaves.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.errors import first_line
from .base import Artifact, Backend, Segment
from .config import TrackingConfig
from .privacy import public

log = logging.getLogger(__name__)

QUEUE = 1000  # rows that wait for a slow tracker: some hours of a run
FAILURES = 10  # calls in a row that raise before a tracker is left alone


class Tracker:
    """One segment (from a start or a resume to its end) of a run, on rank 0 only. Never raises, never waits.

    `log`, `alert`, `table`, `uses` and `made` return at once; `finish` waits as long as it is told to.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        *,
        name: str,
        values: dict[str, Any],
        job: str = "pretrain",
        start: int = 0,
        group: str | None = None,
    ) -> None:
        """Write the segment's id, then start the tracker in its thread.

        Args:
            values: the resolved configuration; folders are cut out before it is handed on.
            job: pretrain, finetune, evaluate or benchmark.
            start: step from which a resumed run goes on.
            group: id of the run that this one belongs to; see `group_of`.
        """
        self.config = config
        self.dropped = self.failed = 0
        segment = Segment(folder, name, job, public(values), start, group)
        self._backend = _safely(lambda: make_backend(config, segment))
        self._queue: deque[tuple[bool, str, Callable[[Backend], None]]] = deque()
        self._change = threading.Condition()
        self._closing = self._left = False
        self._thread: threading.Thread | None = None
        if self._backend is not None:
            # A daemon: the process can end while a server hangs.
            self._thread = threading.Thread(target=self._work, name="medloom-tracker", daemon=True)
            self._thread.start()

    @property
    def active(self) -> bool:
        """Whether anything listens."""
        return self._thread is not None

    def log(self, row: Mapping[str, Any], images: Mapping[str, Path] | None = None) -> None:
        """Mirror one row, and pictures by name."""
        shown = dict(images or {}) if self.config.images else {}
        self._put("row", lambda backend: backend.row(row, shown), droppable=True)

    def alert(self, name: str, text: str, step: int) -> None:
        """Tell of an alarm; `text` holds no sample key."""
        self._put("alert", lambda backend: backend.alert(name, text, step))

    def table(
        self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path] | None = None
    ) -> None:
        """Show a table; a cell of the column `image` names one of `images`."""
        shown = dict(images or {}) if self.config.images else {}
        if not self.config.images:
            rows = [{key: value for key, value in row.items() if key != "image"} for row in rows]
        self._put("table", lambda backend: backend.table(name, rows, shown))

    def uses(self, artifact: Artifact) -> None:
        """The run reads `artifact`."""
        self._put("artifact", lambda backend: backend.artifact(artifact, used=True))

    def made(self, artifact: Artifact) -> None:
        """The run made `artifact`; its files go along where `tracking.weights` says so."""
        shown = artifact if self.config.weights else Artifact(artifact.kind, artifact.name, artifact.facts)
        self._put("artifact", lambda backend: backend.artifact(shown, used=False))

    def finish(
        self, summary: Mapping[str, Any], *, failed: bool = False, seconds: float | None = None
    ) -> None:
        """End the segment, waiting at most `seconds` (default: tracking.finish_seconds) for delivery."""
        thread, backend = self._thread, self._backend
        if thread is None or backend is None:
            return
        self._put("finish", lambda backend: backend.finish(summary, failed=failed))
        with self._change:
            self._closing = True
            self._change.notify()
        thread.join(self.config.finish_seconds if seconds is None else seconds)
        if thread.is_alive():
            with self._change:
                self.dropped += sum(droppable for droppable, _, _ in self._queue)
                self._queue.clear()
                self._left = True
            left = _safely(lambda: backend.abandon(thread.is_alive))
            log.warning(
                "%s did not answer in time; metrics.jsonl is complete%s",
                backend.title, f"; {left}" if left else "",
            )  # fmt: skip
        if self.dropped or self.failed:
            log.warning(
                "%s: %d rows were dropped because it was slow, %d calls failed; metrics.jsonl has every row",
                backend.title, self.dropped, self.failed,
            )  # fmt: skip
        self._thread = None

    def _put(self, kind: str, call: Callable[[Backend], None], *, droppable: bool = False) -> None:
        if self._thread is None:
            return
        with self._change:
            if len(self._queue) >= QUEUE:
                self._drop()
            self._queue.append((droppable, kind, call))
            self._change.notify()

    def _drop(self) -> None:
        """Lose the oldest row; what is no row waits on."""
        for index, (droppable, _, _) in enumerate(self._queue):
            if droppable:
                del self._queue[index]
                self.dropped += 1
                return

    def _work(self) -> None:
        """The thread: start the tracker, then deliver in order until the segment is closed."""
        backend = self._backend
        assert backend is not None
        told, running = self._try(backend, "start", backend.start)
        if told:
            log.info(told)
        misses = 0 if running else FAILURES
        while True:
            with self._change:
                while not self._queue and not self._closing:
                    self._change.wait()
                if not self._queue or self._left:
                    return
                droppable, kind, call = self._queue.popleft()
            if misses >= FAILURES and kind != "finish":
                self.dropped += droppable
                continue
            _, good = self._try(backend, kind, lambda call=call: call(backend))
            misses = 0 if good else misses + 1

    def _try(self, backend: Backend, kind: str, call: Callable[[], Any]) -> tuple[Any, bool]:
        try:
            return call(), True
        except Exception as error:  # trackers raise many kinds; none may cost a run
            self.failed += 1
            said = not self._left and (self.failed == 1 or kind == "finish")
            level = logging.WARNING if said else logging.DEBUG
            log.log(
                level, "%s: %s failed (%s); metrics.jsonl goes on", backend.title, kind, first_line(error)
            )
            return None, False


def make_backend(config: TrackingConfig, segment: Segment) -> Backend | None:
    """The backend that `config` names; None for none. Imports only what it needs."""
    if config.tracker == "wandb":
        from .wandb_backend import Wandb, choose_mode

        mode = choose_mode(config.wandb)
        return None if mode == "disabled" else Wandb(config, segment, mode)
    if config.tracker == "tensorboard":
        from .tensorboard_backend import TensorBoard

        return TensorBoard(segment)
    if config.tracker == "mlflow":
        from .mlflow_backend import Mlflow

        return Mlflow(config, segment)
    return None


def group_of(folder: Path) -> str | None:
    """Group of the W&B runs of a run folder; None where it has none."""
    from .wandb_backend import WANDB

    path = folder / WANDB
    return json.loads(path.read_text()).get("group") if path.is_file() else None


def _safely(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        log.warning("the tracker failed (%s); metrics.jsonl is complete without it", first_line(error))
        return None
