"""The model of a step on many devices: computing, optimiser, communication; and where each byte lies.

All of it is arithmetic on counted numbers; docs/scale.md writes it out. Computing is operations over a rate
that was measured or assumed, plus a fixed time a micro-batch where two measured batch sizes tell it.
Collectives follow the ring (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002): an all-reduce of S
bytes over N ranks moves 2 (N-1)/N · S through the slowest link, a gather or a scatter half of it; the latency
is that of a tree between nodes and a chain inside (NCCL). Not in the model: stragglers, a network that others
use, kernels that are slow on small batches, allocators' fragments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .count import Cost
from .devices import Device

BUCKET = 25 * 2**20  # bytes of DDP's gradient buckets (torch's default)
ADAM_BYTES = 40  # moved a parameter: gradient norm and clipping 12, AdamW reads 16 and writes 12
EMA_BYTES = 12  # moved a teacher's parameter
BACKWARD = 2 / 3  # of the operations of a step


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread out."""

    ranks: int
    per_node: int  # devices of a node
    strategy: str  # ddp | fsdp2
    micro: int  # samples of a micro-batch of a rank
    accumulate: int
    shard: int | None = None  # fsdp2: ranks that share one copy, where there are so many; None: all

    @property
    def nodes(self) -> int:
        """Nodes, the last perhaps in part."""
        return math.ceil(self.ranks / self.per_node)

    @property
    def parts(self) -> int:
        """Into how many the weights are split."""
        return min(self.shard or self.ranks, self.ranks) if self.strategy == "fsdp2" else 1


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one device computes: operations a second, and seconds that a micro-batch costs anyway."""

    rate: float
    fixed: float = 0.0

    def seconds(self, cost: Cost, micro: int) -> float:
        """Forward and backward pass of a micro-batch."""
        return self.fixed + cost.operations.at(micro) / self.rate


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one optimiser step."""

    compute: float
    optimiser: float
    communication: float  # of all collectives, hidden or not
    exposed: float  # of them, what training waits for

    @property
    def step(self) -> float:
        """The whole step."""
        return self.compute + self.optimiser + self.exposed


def ring(size: float, ranks: int, per_node: int, device: Device, *, passes: int, messages: int = 1) -> float:
    """Seconds of a collective of `size` bytes.

    Args:
        passes: 2 for an all-reduce, 1 for an all-gather or a reduce-scatter.
        messages: collectives that the bytes are cut into; each has its own latency.
    """
    if ranks <= 1:
        return 0.0
    local = min(ranks, per_node)
    bus = device.link_gb_s
    if ranks > per_node:  # a ring for each card: together they leave the node
        bus = min(bus, device.network_gb_s * local)
    nodes = math.ceil(ranks / per_node)
    hops = (local - 1) * device.link_us + math.ceil(math.log2(nodes)) * device.network_us
    moved = passes * (ranks - 1) / ranks * size / (1e9 * bus * device.efficiency)
    return moved + messages * passes * hops * 1e-6


def times(cost: Cost, layout: Layout, device: Device, pace: Pace, *, half_gather: bool) -> Times:
    """One optimiser step.

    Args:
        half_gather: FSDP2 gathers matrices of blocks as bfloat16.
    """
    micro = pace.seconds(cost, layout.micro)
    compute = layout.accumulate * micro
    owned = cost.trained / layout.parts
    optimiser = (ADAM_BYTES * owned + EMA_BYTES * cost.frozen / layout.parts) / (1e9 * device.memory_gb_s)
    per_node = layout.per_node
    if layout.strategy != "fsdp2":
        size = 4.0 * cost.trained
        buckets = max(1, math.ceil(size / BUCKET))
        spent = ring(size, layout.ranks, per_node, device, passes=2, messages=buckets)
        tail = ring(min(size, BUCKET), layout.ranks, per_node, device, passes=2)
        window = device.overlap * BACKWARD * micro  # gradients travel in the last micro-batch alone
    else:
        spent, tail = _sharded(cost, layout, device, half_gather)
        window = device.overlap * compute
    exposed = 0.0 if layout.ranks == 1 else min(spent, max(spent - window, tail))
    return Times(compute=compute, optimiser=optimiser, communication=spent, exposed=exposed)


def _sharded(cost: Cost, layout: Layout, device: Device, half_gather: bool) -> tuple[float, float]:
    """Seconds of FSDP2's collectives in a step, and of those with which nothing can run."""
    width = 2.0 if half_gather else 4.0
    parts, per_node, messages = layout.parts, layout.per_node, max(1, cost.units)
    gather = ring(width * cost.trained, parts, per_node, device, passes=1, messages=messages)
    teacher = ring(width * cost.frozen, parts, per_node, device, passes=1, messages=messages)
    scatter = ring(4.0 * cost.trained, parts, per_node, device, passes=1, messages=messages)
    spent = layout.accumulate * (2 * gather + (teacher if cost.frozen else 0.0) + scatter)
    copies = layout.ranks // parts
    if copies > 1:  # HSDP: the parts are summed over the copies, which lie in different nodes
        spread = max(1, per_node // parts)
        spent += ring(4.0 * cost.trained / parts, copies, spread, device, passes=2, messages=messages)
    first = ring(width * cost.unit, parts, per_node, device, passes=1)
    last = ring(4.0 * cost.unit, parts, per_node, device, passes=1)
    return spent, first + last


def memory(cost: Cost, layout: Layout, *, moments: int = 2, half_gather: bool) -> dict[str, float]:
    """Bytes on one device by part; their sum is what a step needs beside the runtime's own.

    Args:
        moments: numbers that the optimiser keeps a parameter: 2 AdamW, 1 SGD with momentum.
        half_gather: as in `times`: then a gathered block needs no copy in half precision.
    """
    parts = layout.parts
    found = {
        "weights": 4.0 * cost.trained / parts,
        "gradients": 4.0 * cost.trained / parts,
        "optimiser": 4.0 * moments * cost.trained / parts,
        "teacher": 4.0 * cost.frozen / parts,
        "buffers": float(cost.buffers),
        "activations": cost.activations.at(layout.micro),
    }
    if layout.strategy == "fsdp2":
        # What lies in no block stays gathered; of the blocks one computes, the next is fetched, one has a
        # whole gradient.
        found["gathered"] = 4.0 * (cost.trained + cost.frozen - cost.in_units + 3 * cost.unit)
        found["activations"] -= cost.copies if half_gather else 0
    return found
