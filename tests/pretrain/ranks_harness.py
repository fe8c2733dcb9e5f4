"""A loss on two gloo ranks: its value and gradients, to be compared with one process and the whole batch."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "medloom.pretrain.objectives"])


def one_process(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """(value, gradients of the floating inputs) with the whole batch."""
    inputs = tuple(_leaf(x) for x in inputs)
    value = loss(*inputs, **options)
    value.backward()
    return value.detach(), [_gradient(x) for x in inputs if x.requires_grad]


def on_two_ranks(
    loss: Callable[..., Tensor], *inputs: Tensor, dims: Sequence[int] = (), **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The same on two ranks, each with its half of every input, as distributed training sees it.

    Args:
        loss: (*inputs, **options) -> scalar, at the top level of a test module (it is sent by name).
        dims: the axis along which each input is split, default 0; -1: every rank gets the whole of it.
        options: plain values, handed on.

    Returns:
        The mean of the ranks' losses; for each floating input the gradient of that mean, in one piece.
    """
    split = [*dims, *[0] * (len(inputs) - len(dims))]
    with tempfile.TemporaryDirectory() as folder:
        results = _CONTEXT.Queue()
        processes = []
        for rank in range(2):
            parts = [x if d == -1 else x.chunk(2, d)[rank] for x, d in zip(inputs, split, strict=True)]
            arrays = [p.detach().numpy().copy() for p in parts]
            arguments = (rank, folder, loss, arrays, options, results)
            processes.append(_CONTEXT.Process(target=_work, args=arguments))
            processes[-1].start()
        found = dict(results.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(timeout=60)
    failed = [answer for answer in found.values() if isinstance(answer, str)]
    if failed:
        raise AssertionError(failed[0])
    value = torch.stack([torch.from_numpy(found[rank][0]) for rank in range(2)]).mean()
    kept = [d for x, d in zip(inputs, split, strict=True) if x.is_floating_point()]
    gradients = []
    for i, dim in enumerate(kept):
        pair = [torch.from_numpy(found[rank][1][i]) / 2 for rank in range(2)]
        gradients.append(pair[0] + pair[1] if dim == -1 else torch.cat(pair, dim))
    return value, gradients


def _work(
    rank: int,
    folder: str,
    loss: Callable[..., Tensor],
    arrays: list[Any],
    options: dict[str, Any],
    results: Any,
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        inputs = [_leaf(torch.from_numpy(a)) for a in arrays]
        value = loss(*inputs, **options)
        value.backward()
        gradients = [_gradient(x).numpy() for x in inputs if x.requires_grad]
        results.put((rank, (value.detach().numpy(), gradients)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        import traceback

        results.put((rank, f"rank {rank}: {error!r}\n{traceback.format_exc()}"))
        raise


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.is_floating_point())


def _gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad
