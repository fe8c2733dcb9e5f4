"""MLflow: the server that MLFLOW_TRACKING_URI names, else a store of files in the folder above the run's.

Through MlflowClient and not through `mlflow.start_run`, which adds the user's name, the command line and its
folder as tags. The run's id is in mlflow.json before anything is logged; a resumed run continues it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.atomic import csv_text, write_json
from .base import Artifact, Backend, Segment, numbers
from .config import TrackingConfig

RECORD = "mlflow.json"
STORE = "mlruns"
_LONGEST = 500  # characters of a parameter; what is longer is cut


class Mlflow(Backend):
    """A run of MLflow."""

    title = "MLflow"

    def __init__(self, config: TrackingConfig, segment: Segment) -> None:
        self.config, self.segment = config, segment
        self.client: Any = None
        self.id = ""
        self._step = segment.start

    def start(self) -> str | None:
        """Create the run, or open it again."""
        # Files need no database and no server; MLflow asks for an explicit yes since it prefers a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient  # pyright: ignore

        said = os.environ.get("MLFLOW_TRACKING_URI")
        store = (self.segment.folder.parent / STORE).absolute()
        self.client = MlflowClient(tracking_uri=said or store.as_uri())
        record = self.segment.folder / RECORD
        if record.is_file():
            self.id = json.loads(record.read_text())["run"]
            self.client.update_run(self.id, status="RUNNING")
        else:
            experiment = self.client.get_experiment_by_name(self.config.project)
            number = experiment.experiment_id if experiment else self._experiment()
            tags = {"medloom.job": self.segment.job, "medloom.group": self.segment.group or ""}
            made = self.client.create_run(number, tags=tags, run_name=self.segment.name)
            self.id = made.info.run_id
            write_json(record, {"run": self.id})
            self._parameters()
        return None if said else f"MLflow: mlflow ui --backend-store-uri {store}"

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """All numbers of a row in one call; pictures as artifacts."""
        from mlflow.entities import Metric  # pyright: ignore

        self._step, now = int(row["step"]), int(1000 * time.time())
        # A store of files cannot hold `grad_norm` and `grad_norm/embedding`: one is a file, one a folder.
        found = [Metric(key.replace("/", "."), value, now, self._step) for key, value in numbers(row).items()]
        self.client.log_batch(self.id, metrics=found)
        for key, path in images.items():
            self._picture(path, f"{key}/step-{self._step:07d}.png")

    def alert(self, name: str, text: str, step: int) -> None:
        """A tag, by which runs can be searched."""
        self.client.set_tag(self.id, f"alarm.{name}", f"step {step}: {text}"[:_LONGEST])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        """A CSV file; the pictures beside it."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        self.client.log_text(self.id, csv_text(rows, columns), f"{name}.csv")
        for key, path in images.items():
            self._picture(path, f"{name}/{key}.png")

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        """The facts as a file, the name as a tag; files beside them."""
        verb = "reads" if used else "makes"
        self.client.set_tag(self.id, f"{verb}.{artifact.kind}", artifact.name)
        self.client.log_text(self.id, artifact.text(), f"lineage/{verb}-{artifact.name}.json")
        for path in artifact.files:
            self.client.log_artifact(self.id, str(path), artifact_path=artifact.name)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Write the summary and the status."""
        if not self.id:
            return
        self.client.log_dict(self.id, {**summary, "failed": failed}, "summary.json")
        self.client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")
        self.id = ""

    def _picture(self, path: Path, name: str) -> None:
        """A picture without the name of its file."""
        from PIL import Image

        with Image.open(path) as picture:
            self.client.log_image(self.id, picture.convert("RGB"), name)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException  # pyright: ignore

        try:
            return self.client.create_experiment(self.config.project)
        except MlflowException:  # another run made it in the same moment
            return self.client.get_experiment_by_name(self.config.project).experiment_id

    def _parameters(self) -> None:
        from mlflow.entities import Param  # pyright: ignore

        flat = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(self.segment.values)]
        for at in range(0, len(flat), 100):  # the most that a call takes
            self.client.log_batch(self.id, params=flat[at : at + 100])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
