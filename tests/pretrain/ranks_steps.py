"""Whole training steps on two gloo ranks, plain (DDP) and sharded (FSDP2), to compare with one process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.gradients import GradientNorms
from medloom.pretrain.norms import count_all_ranks
from medloom.pretrain.objectives import Batch, Objective
from torch import Tensor, nn

from .small import small_batch, small_encoder, small_objective

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed.fsdp", "medloom.pretrain.objectives"])

RATE = 0.1  # of plain gradient descent: the difference of the weights is the gradient


@dataclasses.dataclass(frozen=True)
class Case:
    """One pair of the cross table, and how it is trained."""

    objective: str
    family: str
    ndim: int
    changes: tuple[tuple[str, Any], ...] = ()  # of the objective
    encoder: tuple[tuple[str, Any], ...] = ()  # changes of the encoder
    count: int = 4  # images over all ranks
    micro: int = 1  # micro-batches a rank
    recompute: bool = False
    precision: str = "32-true"
    steps: int = 1

    def __str__(self) -> str:
        parts = [self.objective, self.family, f"{self.ndim}d"]
        parts += [f"micro{self.micro}"] * (self.micro > 1) + ["recompute"] * self.recompute
        parts += [self.precision] * (self.precision != "32-true")
        return "-".join(parts)


@dataclasses.dataclass
class Result:
    """What a step gave: plain arrays, whole, the same on all ranks."""

    loss: float  # mean over the ranks
    norms: dict[str, float]  # of the gradient, whole and by part, before clipping
    state: dict[str, Any]  # weights, teachers' weights and buffers afterwards (arrays)
    sharded: float = 0.0  # share of the weights that this rank does not hold


class Whole(nn.Module):
    """Encoder and objective with the method that computes the loss."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder = small_encoder(case.family, **dict(case.encoder))
        self.objective = small_objective(case.objective, self.encoder, **dict(case.changes))
        self.encoder.recompute = case.recompute
        count_all_ranks(self)

    def forward(self, batch: Batch) -> Tensor:
        objective: Objective = self.objective
        encoder: Encoder = self.encoder
        return objective.step(batch, encoder).loss


def part_of(batch: Batch, index: int, parts: int) -> Batch:
    """Rows of a batch that a rank (or a micro-batch) gets."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.chunk(parts)[index]
        if isinstance(value, tuple):
            return type(value)(*(cut(v) for v in value))
        return value

    fields = {f.name: cut(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return Batch(**fields)


def train(case: Case, kind: str, rank: int = 0, world: int = 1) -> Result:
    """Steps of gradient descent under `kind`: one | ddp | fsdp2."""
    from medloom.pretrain.scale import sharding

    whole = Whole(case)
    run: nn.Module = whole
    if kind == "ddp":
        run = nn.parallel.DistributedDataParallel(whole, broadcast_buffers=False)
    elif kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh

        sharding.shard(whole, init_device_mesh("cpu", (world,)), method="forward", precision=case.precision)
    gradients = GradientNorms(whole.encoder, whole.objective)
    optimiser = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=RATE)
    losses, norms = [], {}
    for step in range(case.steps):
        batch = part_of(small_batch(whole.encoder, case.ndim, case.count), rank, world)
        for index in range(case.micro):
            torch.manual_seed(step)
            last = index == case.micro - 1
            late = run.no_sync() if kind == "ddp" and not last else nullcontext()  # type: ignore[operator]
            cast = torch.autocast("cpu", torch.bfloat16, enabled=case.precision.startswith("bf16"))
            with late:
                with cast:
                    loss = run(part_of(batch, index, case.micro)) / case.micro
                loss.backward()
            losses.append(loss.detach())
        total, parts = gradients.clip(1.0 if case.steps > 1 else None)
        norms = {"all": float(total), **{name: float(norm) for name, norm in parts.items()}}
        optimiser.step()
        optimiser.zero_grad()
        whole.objective.after_update(batch.step, batch.steps, whole.encoder)
    held = sum(sharding.local(p).numel() for p in whole.parameters())
    state = sharding.full_state(whole.state_dict())
    full = sum(state[name].numel() for name, _ in whole.named_parameters())
    value = torch.stack(losses).sum()
    if world > 1:
        torch.distributed.all_reduce(value)
    plain = {name: x.detach().float().numpy().copy() for name, x in state.items()}
    return Result(float(value) / world, norms, plain, 1 - held / full)


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments, rank, 2) on two processes joined by gloo; returns what rank 0 returns.

    Raises:
        AssertionError: one of them failed; says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = _CONTEXT.Queue()
        processes = [
            _CONTEXT.Process(target=_work, args=(folder, function, arguments, rank, results))
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        found: dict[int, tuple[bool, Any]] = {}
        try:
            while len(found) < 2:
                rank, good, value = results.get(timeout=250)
                found[rank] = (good, value)
                if not good:
                    raise AssertionError(value)
        finally:
            for process in processes:
                if len(found) < 2 or not all(good for good, _ in found.values()):
                    process.kill()
                process.join(timeout=60)
    return found[0][1]


def _work(
    folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, results: Any
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        value = function(*arguments, rank, 2)
        results.put((rank, True, value if rank == 0 else None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        results.put((rank, False, f"rank {rank}: {error!r}\n{traceback.format_exc()}"))
        raise
