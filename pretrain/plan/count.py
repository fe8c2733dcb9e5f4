"""What one step of a configuration takes, counted without computing it.

Encoder and objective are built on torch's meta device, where tensors have shapes alone, and one micro-batch
goes through them, forward and backward: torch's own formulas add up the operations, `live` follows the bytes.
A step never reads a value back (tests hold every objective to that), so nothing is lacking. Two sizes of
batch give what a step costs once and for each sample. A network that cannot be built on the meta device
(MONAI's) is built in memory and moved there; seconds in both cases.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...data.config import polymorphic
from ...data.errors import ConfigError
from ...data.stream.config import StreamConfig
from ..config import PretrainConfig
from ..encoders import Encoder, build_encoder
from ..objectives import OBJECTIVES, Batch, Objective
from ..scale.sharding import units
from ..speed import Operations
from .halves import Halves, backward
from .live import LiveBytes

log = logging.getLogger(__name__)

HALVES = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Line:
    """A cost that has a fixed part and one for each sample of a micro-batch."""

    fixed: float
    sample: float

    def at(self, samples: float) -> float:
        """Of a micro-batch of so many samples."""
        return self.fixed + self.sample * samples

    @classmethod
    def through(cls, x: tuple[int, int], y: tuple[float, float]) -> Line:
        """The line through two points; a falling one (noise of a loss over the batch) is made flat."""
        slope = max(0.0, (y[1] - y[0]) / (x[1] - x[0]))
        return cls(max(0.0, y[0] - slope * x[0]), slope)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One shape class of a configuration. Numbers of parameters, bytes, floating-point operations."""

    trained: int  # parameters with a gradient
    frozen: int  # parameters without one: teachers
    encoder: int  # parameters of the encoder that is released
    buffers: int  # bytes
    saved: int  # bytes of the buffers that a checkpoint holds
    tensors: int  # in a checkpoint, beside the optimiser's
    trained_tensors: int
    unit: int  # parameters of the largest block that FSDP2 gathers as one
    units: int  # such blocks
    in_units: int  # parameters in all of them
    operations: Line  # of a micro-batch, forward and backward
    activations: Line  # bytes at the peak, beside weights and gradients; `copies` among them
    copies: int  # bytes of the weights' copies in half precision
    least: int = 1  # samples that a micro-batch must have


def count(config: PretrainConfig, *, precision: str) -> list[Cost]:
    """The cost of each shape class of the data.

    Args:
        config: a supervised objective without `classes` gets a stand-in of two.
        precision: Lightning's name; "bf16-..." and "16-..." as automatic mixed precision.

    Raises:
        ConfigError: the configuration leaves the encoder to `init_from`, or contradicts itself.
    """
    if not config.encoder:
        raise ConfigError(
            "the encoder is left to init_from: name it (encoder.name=... encoder.model=...), a plan reads no "
            "weights"
        )
    try:
        with torch.device("meta"):
            network = _build(config)
        return [_count(config, part, *network, precision) for part in config.data.each()]
    except (RuntimeError, NotImplementedError) as error:
        log.debug("not on the meta device (%s): built in memory", error)
    network = _build(config)
    for module in network:
        module.to("meta")
    return [_count(config, part, *network, precision) for part in config.data.each()]


def _build(config: PretrainConfig) -> tuple[Encoder, Objective]:
    section = dict(config.objective)
    if "classes" in section:  # of a run that has begun, what its shards hold
        section["classes"] = section["classes"] or {"a dataset": ["background", "structure"]}
    encoder = build_encoder(config.encoder)
    kind, chosen = polymorphic(section, OBJECTIVES, "objective")
    encoder.recompute = config.trainer.recompute
    return encoder, kind(chosen, encoder)


def _count(
    config: PretrainConfig, part: StreamConfig, encoder: Encoder, objective: Objective, precision: str
) -> Cost:
    root = nn.ModuleDict({"encoder": encoder, "objective": objective})
    parameters, buffers = list(root.parameters()), list(root.buffers())
    state, named = root.state_dict(), dict(root.named_parameters(remove_duplicate=False))
    least = max(2, objective.least_batch)
    sizes = (least, 2 * least)
    found = [_step(part, encoder, objective, size, HALVES.get(precision.split("-")[0])) for size in sizes]
    gathered = [sum(p.numel() for p in unit.parameters()) for unit in units(root)]
    return Cost(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        encoder=sum(p.numel() for p in encoder.parameters()),
        buffers=sum(b.numel() * b.element_size() for b in buffers),
        saved=sum(x.nbytes for name, x in state.items() if name not in named),
        tensors=len(state), trained_tensors=sum(p.requires_grad for p in parameters),
        unit=max(gathered, default=0), units=len(gathered), in_units=sum(gathered),
        operations=Line.through(sizes, (found[0][0], found[1][0])),
        activations=Line.through(sizes, (found[0][1], found[1][1])), copies=found[0][2],
        least=objective.least_batch,
    )  # fmt: skip


def _step(
    part: StreamConfig, encoder: Encoder, objective: Objective, count: int, low: torch.dtype | None
) -> tuple[int, int, int]:
    """Operations, peak bytes, and bytes of cast weights of one micro-batch."""
    batch = _batch(part, encoder.in_channels, count)
    device = batch.image.device.type
    with _gradients(encoder, objective) as standing, Operations() as operations, LiveBytes(device) as live:
        live.ignore([*standing, batch.image])
        with Halves(low) as halves:
            backward(objective.step(batch, encoder).loss)
    return operations.count, live.peak + batch.image.nbytes, halves.copies


@contextmanager
def _gradients(*modules: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Gradients that are there already, as behind the first micro-batch; yields all that stands."""
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    standing = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    try:
        yield [*standing, *(buffer for module in modules for buffer in module.buffers())]
    finally:
        for parameter in parameters:
            parameter.grad = None


def _batch(part: StreamConfig, channels: int, count: int, device: str = "meta") -> Batch:
    positions, crop = torch.arange(count), part.crop
    made: dict[str, Any] = {
        "image": torch.zeros(count, channels, *crop, device=device),
        "modality": torch.zeros(count, dtype=torch.int64, device=device),
        "spacing": torch.ones(count, part.ndim, device=device),
        "label": torch.zeros(count, dtype=torch.int64, device=device),
        "mask": torch.zeros(count, *crop, dtype=torch.int64, device=device),
    }
    return Batch(position=positions.to(device), host_position=positions, seed=0, step=5, steps=10, **made)
