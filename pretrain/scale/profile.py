"""Where the time of a step goes: `medloom pretrain CONFIG --profile`.

After some steps of warm-up a few are timed as they are (parts of a step, data wait, MFU against the measured
peak of a matrix product), then a few more are run under torch's profiler, which slows them down: from these
come the operators, the device's idle time and the places where the host waits for the device. RUN/profile
holds profile.txt, profile.json and trace.json.gz (for ui.perfetto.dev or chrome://tracing). The run goes on
as if nothing had happened. Only rank 0 is looked at.
"""

from __future__ import annotations

import gzip
import logging
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytorch_lightning as pl
import torch

from ...data.atomic import replacing, write_json, write_text
from ..speed import Speed

log = logging.getLogger(__name__)

WARM_UP = 3  # steps: first shapes, compilation, counting of operations
TOP = 20  # operators in the table
# What the host waits in, by the profiler's names: of the CUDA runtime, and of torch.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
SCALARS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
PARTS = ("forward", "backward", "update")
# Of a trace: others name the machine and its folders.
KEPT = ("schemaVersion", "deviceProperties", "displayTimeUnit", "baseTimeNanoseconds", "traceEvents")


@dataclass
class Operator:
    """A row of the table; times are by themselves, without what they call."""

    name: str
    calls: float  # a step
    milliseconds: float  # a step: of the device, or of the host on a CPU
    share: float


@dataclass
class Profile:
    """What was found; seconds are of one optimiser step."""

    device: str
    precision: str
    steps: int
    seconds: float  # wall clock
    parts: dict[str, float]  # data wait, forward (with views and masks), backward, update, other
    data_wait: float  # share of the wall clock
    tera_operations: float  # floating-point, of a step on this rank
    peak_tera: float  # a second, measured; 0: not known
    mfu: float
    memory_gib: float | None  # peak of what was allocated on the device
    busy: float | None  # share of the traced time in which the device computed
    launches: float | None  # kernels a step
    waits: dict[str, float] = field(default_factory=dict)  # calls a step in which the host waits
    operators: list[Operator] = field(default_factory=list)

    def text(self) -> str:
        """The profile for a terminal."""
        work = f"{self.tera_operations:.3g} TFLOP a step, measured peak {self.peak_tera:.3g} TFLOP/s"
        lines = [
            f"{self.device}, {self.precision}: {1000 * self.seconds:.1f} ms a step, "
            f"MFU {100 * self.mfu:.1f} % ({work})",
            *(
                f"  {name:<10} {1000 * spent:9.1f} ms  {100 * spent / self.seconds:5.1f} %"
                for name, spent in self.parts.items()
            ),
        ]
        if self.memory_gib is not None:
            lines.append(f"  peak memory {self.memory_gib:.2f} GiB")
        if self.busy is not None:
            busy = f"device busy {100 * self.busy:.1f} % of the traced time"
            lines.append(f"  {busy}, {self.launches:.0f} kernels a step")
        waits = ", ".join(f"{name} {count:g}" for name, count in self.waits.items()) or "none"
        lines += [f"  the host waits (calls a step): {waits}", ""]
        lines.append(f"  {'operator (calls and time of a step)':<52} {'calls':>8} {'ms':>9} {'share':>8}")
        for row in self.operators:
            times = f"{row.calls:8.1f} {row.milliseconds:9.2f} {100 * row.share:6.1f} %"
            lines.append(f"  {row.name[:52]:<52} {times}")
        return "\n".join(lines) + "\n"


class Clock:
    """Times between marks: of the device where it is CUDA (without waiting for it), else of the host."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What ends here is called `name`."""
        if self.cuda:
            at: Any = torch.cuda.Event(enable_timing=True)
            at.record()
        else:
            at = time.perf_counter()
        self.marks.append((name, at))

    def sums(self) -> dict[str, float]:
        """Seconds by name; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            seconds = begin.elapsed_time(end) / 1000 if self.cuda else end - begin
            found[name] = found.get(name, 0.0) + seconds
        return found


class Profiling(pl.Callback):
    """Goes first among the callbacks: what the others do is no work of the step.

    Args:
        folder: of the run.
        steps: optimiser steps to time, and as many to trace.
        speed: of the recorder, which counts the operations of each shape of batch.
    """

    def __init__(self, folder: Path, steps: int, speed: Speed) -> None:
        self.folder, self.steps, self.speed = folder / "profile", steps, speed
        self.result: Profile | None = None
        self._first = self._step = 0
        self._timed: Clock | None = None  # while steps are timed
        self._parts: dict[str, float] = {}
        self._tracer: Any = None
        self._waited = self._began = self._seconds = 0.0
        self._shapes: list[Any] = []  # of the batches that were timed

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note where the run starts."""
        self._first = self._step = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The data have come."""
        if self._timed is not None:
            self._waited += time.perf_counter() - pl_module.idle_since
            self._shapes.append(batch["image"].shape)
            self._timed.mark("between")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Any) -> None:
        """The loss is there."""
        if self._timed is not None:
            self._timed.mark("forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The gradients are there."""
        if self._timed is not None:
            self._timed.mark("backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on to what comes next: timing, tracing, the end."""
        if self.result is not None:
            return
        if self._timed is not None:
            self._timed.mark("update")
        if trainer.global_step == self._step:
            return  # a micro-batch of an unfinished step
        self._step = trainer.global_step
        done, device = self._step - self._first, pl_module.device
        if done == WARM_UP:
            _settle(device)
            self._timed, self._began = Clock(device), time.perf_counter()
            self._timed.mark("")
        elif done == WARM_UP + self.steps and self._timed is not None:
            self._parts, self._timed = self._timed.sums(), None
            self._seconds = time.perf_counter() - self._began
            self._tracer, self._began = _tracer(device), time.perf_counter()
        elif done == WARM_UP + 2 * self.steps and self._tracer is not None:
            _settle(device)
            self._finish(trainer, device, time.perf_counter() - self._began)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say so when the run was too short."""
        self._stop()
        if self.result is None:
            done = trainer.global_step - self._first
            log.warning(
                "profile: the run ended after %d steps; it takes %d: raise trainer.steps, or lower "
                "trainer.profile_steps", done, WARM_UP + 2 * self.steps,
            )  # fmt: skip

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave no profiler behind."""
        self._stop()

    def _stop(self) -> Any:
        tracer, self._tracer, self._timed = self._tracer, None, None
        if tracer is not None:
            tracer.stop()
        return tracer

    def _finish(self, trainer: pl.Trainer, device: torch.device, traced: float) -> None:
        tracer = self._stop()
        self.result = self._profile(str(trainer.precision), device, tracer, traced)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "profile.json", asdict(self.result))
        write_text(self.folder / "profile.txt", self.result.text())
        write_trace(tracer, self.folder / "trace.json.gz")
        log.info("profile, in %s:\n%s", self.folder, self.result.text())

    def _profile(self, precision: str, device: torch.device, tracer: Any, traced: float) -> Profile:
        """From what was timed and what was traced."""
        cuda, each = device.type == "cuda", self._seconds / self.steps
        wait = min(self._waited, self._parts["between"])
        parts = {"data wait": wait, **{name: self._parts[name] for name in PARTS}}
        parts["other"] = max(0.0, self._seconds - sum(parts.values()))
        operations = sum(self.speed.operations(shape) for shape in self._shapes) / self.steps
        name = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
        return Profile(
            device=name, precision=precision, steps=self.steps, seconds=each,
            parts={part: seconds / self.steps for part, seconds in parts.items()},
            data_wait=wait / self._seconds, tera_operations=operations / 1e12,
            peak_tera=self.speed.peak / 1e12,
            mfu=operations / each / self.speed.peak if self.speed.peak else 0.0,
            memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
            **_traced(tracer, self.steps, traced, cuda=cuda),
        )  # fmt: skip


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tracer(device: torch.device) -> Any:
    """torch's profiler, running."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it says what it does on the terminal
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    tracer = profile(activities=kinds)
    tracer.start()
    return tracer


def _traced(tracer: Any, steps: int, seconds: float, *, cuda: bool) -> dict[str, Any]:
    """Fields of `Profile` that the profiler tells."""
    from torch.autograd import DeviceType

    events = tracer.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA] if cuda else []
    busy = sum(e.self_device_time_total for e in kernels) / 1e6  # from microseconds
    host = [e for e in events if e.device_type == DeviceType.CPU]
    times = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e) for e in host]
    whole = sum(spent for spent, _ in times) or 1.0
    largest = sorted(((t, e) for t, e in times if t > 0), key=lambda pair: -pair[0])[:TOP]
    waits = {e.key: e.count / steps for e in host if e.key in SCALARS or e.key in WAITS}
    return {
        "busy": min(1.0, busy / seconds) if cuda else None,
        "launches": sum(e.count for e in kernels) / steps if cuda else None,
        "waits": dict(sorted(waits.items())),
        "operators": [Operator(e.key, e.count / steps, t / 1000 / steps, t / whole) for t, e in largest],
    }


def write_trace(tracer: Any, path: Path) -> None:
    """The Chrome trace, compressed, without what names the machine or its folders."""
    with replacing(path) as temporary:
        tracer.export_chrome_trace(str(temporary))
        trace = orjson.loads(gzip.decompress(temporary.read_bytes()))
        kept = {key: trace[key] for key in KEPT if key in trace}
        temporary.write_bytes(gzip.compress(orjson.dumps(kept), compresslevel=5))
