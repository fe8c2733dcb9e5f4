"""TensorBoard: event files in RUN/tensorboard; `tensorboard --logdir runs` shows all runs below a folder.

Written with TensorBoard's own record writer and not with torch's SummaryWriter, which puts the name of the
machine into the name of the file. A resumed run says from which step on earlier values no longer count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Artifact, Backend, Segment, numbers

FOLDER = "tensorboard"


class TensorBoard(Backend):
    """One event file."""

    title = "TensorBoard"

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.folder = segment.folder / FOLDER
        self._file: Any = None
        self._writer: Any = None
        self._step = segment.start

    def start(self) -> str | None:
        """Open an event file of its own: several segments are read as one run."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore

        self.folder.mkdir(parents=True, exist_ok=True)
        count = len(list(self.folder.glob("events.out.tfevents.*")))
        self._file = (self.folder / f"events.out.tfevents.{int(time.time())}.{count}").open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if self.segment.start:
            begun = SessionLog(status=SessionLog.START)
            self._write(Event(step=self.segment.start + 1, session_log=begun))
        values = json.dumps(self.segment.values, indent=1, default=str)
        self._text("config", f"```\n{values}\n```", self.segment.start)
        return f"TensorBoard: tensorboard --logdir {self.folder}"

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Scalars and pictures of one step."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        self._step = int(row["step"])
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers(row).items()]
        for key, path in images.items():
            with Image.open(path) as picture:
                width, height = picture.size
            image = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
            )
            values.append(Summary.Value(tag=key, image=image))
        self._summary(values, self._step)

    def alert(self, name: str, text: str, step: int) -> None:
        """A text under `alarms`."""
        self._text(f"alarms/{name}", text, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        """A text in Markdown; the pictures as images of their own."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(str(row.get(key, "")) for key in columns) + " |" for row in rows]
        self._text(name, "\n".join(lines), self._step)
        self.row({"step": self._step}, {f"{name}/{key}": path for key, path in images.items()})

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        """A text under `lineage`; TensorBoard keeps no files."""
        verb = "reads" if used else "makes"
        self._text(f"lineage/{verb}/{artifact.name}", f"```\n{artifact.text()}```", self._step)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the summary, close the file."""
        if self._file is None:
            return
        shown = json.dumps({**summary, "failed": failed}, indent=1, default=str)
        self._text("summary", f"```\n{shown}\n```", self._step)
        self._file.close()
        self._file = None

    def _text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=7, string_val=[text.encode()])  # 7: DT_STRING
        tensor.tensor_shape.dim.add(size=1)
        self._summary([Summary.Value(tag=tag, metadata=metadata, tensor=tensor)], step)

    def _summary(self, values: list[Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._file.flush()
