"""`predict(run, inputs, out)`: new images through a finished run -> label maps, a table, or both.

The training data is not needed: the run folder holds the record, the plan and the weights. Images are read
one by one and predicted in groups of at most a batch and 256 MiB, so memory does not grow with a folder; a
file that cannot be used is listed in failures.csv and never ends the work. The same command goes on where it
was killed. File names go into the output folder and nowhere else, into no log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.errors import ConfigError, ReadError
from ...data.ingest.ingest import reason_of
from ...data.layouts.base import Source
from ...data.sample import Sample
from ...pretrain.artefact import sha256
from ..data import Case
from ..run import ARM, MODEL, choose_device, load_arm, read_run
from ..tasks import TASKS, Task
from ..tasks.base import Member
from .dicom_seg import require_highdicom, write_segmentation
from .held import hold
from .inputs import Input, find_inputs, read_input, source_of
from .journal import Journal
from .labelmaps import write_label_map

Progress = Callable[[int, int, str], None]
Row = dict[str, Any]
ALL = "all"
_GROUP_BYTES = 256 << 20  # decoded images that wait to be predicted together


@dataclass(frozen=True, slots=True)
class Predicted:
    """What `predict` did."""

    folder: Path
    files: int  # predicted, now or before
    before: int  # of these, found done
    failed: int  # listed in failures.csv


def predict(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    arm: str = "pretrained",
    dicom_seg: bool = False,
    mirror: bool = False,
    modality: str | None = None,
    ensemble: Sequence[Path] = (),
    device: str | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """Predict files and folders.

    Args:
        run: folder of `finetune`.
        inputs: image files, DICOM folders, or folders of any of these.
        out: folder for predictions.csv, label maps (named as the inputs) and failures.csv.
        arm: which arm's network; "all" for each arm that is finished, in a folder of its own.
        dicom_seg: write DICOM Segmentations instead of NIfTI, for DICOM series.
        mirror: average segmentations over the record's flips.
        modality: of the images, where neither they nor the task record say it.
        ensemble: more runs of the same task, whose predictions are averaged with this one's, arm by arm.

    Raises:
        ConfigError: not a run, no such arm or input, or `out` holds something else.
        CheckpointError: the arm is not finished, or its weights are damaged.
    """
    runs, folder = [Path(run), *map(Path, ensemble)], Path(out)
    tasks = [task_of(one) for one in runs]
    task = _alike(runs, tasks)
    names = _arms(runs, arm)
    joined = task.record.source["layout"] == "nnunet_raw" and task.plan.fingerprint.channels > 1
    found = find_inputs([Path(path) for path in inputs], channels=joined)
    if dicom_seg:
        require_highdicom()
    place = choose_device(device or task.config.device)
    networks = {
        name: [load_arm(own, one / name)[0].to(place) for own, one in zip(tasks, runs, strict=True)]
        for name in names
    }
    journal = Journal(folder, {
        "task": task.record.name,
        "weights": {name: [sha256(one / name / MODEL) for one in runs] for name in names},
        "arm": arm, "mirror": mirror, "dicom_seg": dicom_seg, "modality": modality,
    })  # fmt: skip
    todo = [item for item in found if not journal.done(item)]
    work = _Work(tasks, networks, place, journal, dicom_seg, mirror)
    work.run(todo, source_of(task.record, folder, modality), progress)
    files, failed = journal.write_tables(found)
    return Predicted(folder, files, len(found) - len(todo), failed)


@dataclass(slots=True)
class _Work:
    """The networks, and the images on their way through them."""

    tasks: list[Task]  # of each run
    networks: dict[str, list[nn.Module]]  # by arm, one of each run
    device: torch.device
    journal: Journal
    dicom_seg: bool
    mirror: bool
    open: dict[str, tuple[Input, list[Row]]] = field(default_factory=dict)  # files with images on their way
    waiting: list[tuple[Input, Sample]] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The first run's, which says what a prediction means."""
        return self.tasks[0]

    def run(self, todo: Sequence[Input], source: Source, progress: Progress | None) -> None:
        """Read, predict and write; a file is noted as done when nothing of it is on its way."""
        for done, item in enumerate(todo, start=1):
            self.open[item.name] = item, []
            try:
                for sample in read_input(item, source):
                    _check(self.task, sample)
                    self.waiting.append((item, sample))
                    if self.full:
                        self.flush()
                    if item.name not in self.open:
                        break  # an image of it has failed: so has the file
            except Exception as error:
                self.fail(item, error)
            if done == len(todo):
                self.flush()
            if not self.waiting:
                for finished, rows in self.open.values():
                    self.journal.add(finished, rows)
                self.open.clear()
            if progress:
                progress(done, len(todo), f"predict {self.task.record.name}")

    @property
    def full(self) -> bool:
        """Whether enough images wait."""
        size = sum(sample.image.nbytes for _, sample in self.waiting)
        return len(self.waiting) >= self.task.plan.batch or size >= _GROUP_BYTES

    def fail(self, item: Input, error: Exception) -> None:
        """Note that a file cannot be used."""
        reason = "not enough memory" if isinstance(error, MemoryError) else reason_of(error)
        self.waiting = [(other, sample) for other, sample in self.waiting if other is not item]
        if self.open.pop(item.name, None) is not None:
            self.journal.add(item, [], reason)

    def flush(self) -> None:
        """Predict what waits; where a group fails, its images are tried one by one to find the culprit."""
        group, self.waiting = self.waiting, []
        try:
            found = self.rows(group)
        except Exception as error:
            if len(group) > 1:
                for one in group:
                    self.waiting = [one] if one[0].name in self.open else []
                    self.flush()
            elif group[0][0].name in self.open:
                self.fail(group[0][0], error)
            return
        for (item, _), rows in zip(group, found, strict=True):
            self.open[item.name][1].extend(rows)

    def rows(self, group: Sequence[tuple[Input, Sample]]) -> list[list[Row]]:
        """Rows of the table for each image of a group; label maps are written."""
        task = self.task
        data = hold([sample for _, sample in group], list(task.record.structures))
        for one in self.tasks:
            one.data = data
        rows: list[list[Row]] = [[] for _ in group]
        for arm, networks in self.networks.items():
            predictions = self.predictions(networks, data.cases)
            for number, (case, prediction) in enumerate(zip(data.cases, predictions, strict=True)):
                item = group[number][0]
                labels = task.label_map(prediction)
                output = {} if labels is None else {"output": self.write(arm, item, case, labels)}
                first: Row = {"file": item.name, "image": case.meta["frame"], "arm": arm, **output}
                rows[number] += [first | answer for answer in task.answers(case, prediction)]
        return rows

    def predictions(self, networks: Sequence[nn.Module], cases: Sequence[Case]) -> Iterator[Any]:
        """One prediction a case, of one network or of all together."""
        if len(networks) == 1:
            yield from self.task.predictions(networks[0], cases, self.device, mirror=self.mirror)
            return
        for case in cases:
            members = [Member(task, one, case) for task, one in zip(self.tasks, networks, strict=True)]
            yield self.task.together(members, self.device, mirror=self.mirror)

    def write(self, arm: str, item: Input, case: Case, labels: np.ndarray) -> str:
        """Write a label map; returns its path below the output folder."""
        folder, frame = self.journal.folder, case.meta["frame"]
        name = item.name if frame is None else f"{item.name}-{frame}"
        stem = (folder / arm if len(self.networks) > 1 else folder) / name
        if self.dicom_seg:
            path = write_segmentation(
                stem, labels, case.meta, item.paths, self.task.record.structures, self.task.record.name
            )
        else:
            path = write_label_map(stem, labels, case.meta, item.paths[0])
        return path.relative_to(folder).as_posix()


def task_of(run: Path) -> Task:
    """The task of a run without its data."""
    config, plan, _ = read_run(run)
    kind = TASKS[config.task.kind]
    if not kind.standalone:
        raise ConfigError(
            f"{run}: a {config.task.kind} task answers with its own cases: use `medloom evaluate`"
        )
    return kind(replace(config, features=None), hold([], []), plan, {})  # nothing of new images is kept


def _alike(runs: Sequence[Path], tasks: Sequence[Task]) -> Task:
    """The first task; refuses an ensemble of runs that predict different things."""
    first = tasks[0].record
    for run, task in zip(runs, tasks, strict=True):
        other = task.record
        if (other.kind, other.names, sorted(other.structures)) != (
            first.kind, first.names, sorted(first.structures)
        ):  # fmt: skip
            raise ConfigError(f"{run}: predicts other things than {runs[0]} ({other.name}, {first.name})")
    return tasks[0]


def _arms(runs: Sequence[Path], arm: str) -> list[str]:
    finished = sorted(
        set.intersection(*({path.parent.name for path in run.glob(f"*/{ARM}")} for run in runs))
    )
    if arm == ALL and finished:
        return finished
    if arm not in finished:
        listed = ", ".join(finished) or "none"
        raise ConfigError(
            f"{runs[0]}: arm {arm!r} is not finished (finished: {listed}); see `medloom finetune`"
        )
    return [arm]


def _check(task: Task, sample: Sample) -> None:
    """Refuse an image that the network cannot take."""
    ndim, wanted = int(sample.meta["ndim"]), task.plan.fingerprint.ndim
    if ndim != wanted:
        raise ReadError(f"is a {ndim}D image, the task {task.record.name} was trained on {wanted}D ones")
