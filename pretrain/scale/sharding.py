"""Weights, gradients, optimiser state and teachers split over the ranks (FSDP2), and put together again.

Each block of an encoder, of its teachers and of a transformer decoder is gathered for as long as it runs;
embeddings and norms stay gathered from the forward to the backward pass of a step, heads and the rest for the
whole step. What this costs against DDP: half as much communication again (PyTorch's FSDP, arXiv 2304.11277),
and one more reduction of a block for each further size of crops. What it saves: of the 16 bytes that a
trained parameter takes with AdamW (a teacher's takes 4) each rank keeps its share.

Arithmetic is that of DDP. In bf16-mixed the matrices and kernels of blocks travel as bfloat16, which is what
autocast makes of them anyway and halves the traffic (torch 2.15 or newer; older ones send float32). Masters,
teachers' averages, norms and reductions are float32.

A checkpoint holds whole tensors, in the layout that plain training writes: any number of ranks reads it, with
or without sharding (`full_state`, `placed`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.conv import _ConvNd

from ..encoders.base import Encoder
from ..encoders.blocks import run_parts


def shard(root: nn.Module, mesh: Any, *, method: str, precision: str, compiled: bool = False) -> None:
    """Split the weights of `root` over the ranks of `mesh`, in place (a collective call).

    Args:
        root: holds encoders and what is trained beside them.
        mesh: one axis: the ranks among which weights are split; two: (copies, split), HSDP.
        method: name of the method of `root` that computes the loss; it gathers what is its own.
        precision: Lightning's name; see the module docstring.
        compiled: compile the blocks of transformers (convolutional stages stay as they are).
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Said of what encoders return: nothing here writes into it, and their weights stay gathered.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    half = half_gather(precision)
    for unit in units(root):
        unit.plain_kind = type(unit)  # type: ignore[assignment]
        parts = partial(run_parts, unit)
        if compiled:
            parts = torch.compile(parts)
            unit.compile()
        unit.whole = parts  # type: ignore[assignment]
        fully_shard(unit, mesh=mesh, mp_policy=_policy(unit, half))
        register_fsdp_forward_method(unit, "whole")
    for encoder in [module for module in root.modules() if isinstance(module, Encoder)]:
        fully_shard(encoder, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(encoder, "last")
    fully_shard(root, mesh=mesh)
    register_fsdp_forward_method(root, method)


def units(root: nn.Module) -> list[nn.Module]:
    """What is gathered as one: blocks of all encoders in `root`, teachers included, and of its decoders."""
    from timm.models.vision_transformer import Block

    found: list[nn.Module] = []
    for module in root.modules():
        if isinstance(module, Encoder):
            found += module.units()
        elif isinstance(module, nn.ModuleList):
            found += [block for block in module if isinstance(block, Block)]
    return list(dict.fromkeys(found))


def half_gather(precision: str) -> bool:
    """Whether this torch sends the matrices of blocks as bfloat16; see the module docstring."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    names = {field.name for field in dataclasses.fields(MixedPrecisionPolicy)}
    return precision.startswith("bf16-mixed") and "param_dtype_override_fn" in names


def _policy(unit: nn.Module, half: bool) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if not half:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    products = [module for module in unit.modules() if isinstance(module, nn.Linear | _ConvNd)]
    cast = {id(module.weight) for module in products}
    return MixedPrecisionPolicy(
        torch.bfloat16, torch.float32, cast_forward_inputs=False,
        param_dtype_override_fn=lambda parameter: None if id(parameter) in cast else parameter.dtype,
    )  # fmt: skip


@contextmanager
def whole(root: nn.Module) -> Iterator[None]:
    """Within it every rank holds all weights, so that one of them may run what the others do not.

    Entering and leaving are collective; without sharding nothing happens. Not in the middle of a step.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        blocks = {id(unit) for unit in units(root)} if sharded else set()
        for module in sharded:
            module.set_reshard_after_forward(id(module) in blocks, recurse=False)
            module.reshard()


def local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; another tensor itself."""
    return x.to_local() if isinstance(x, DTensor) else x


def norm_over_shards(norms: Tensor, like: Tensor) -> Tensor:
    """Norms of whole tensors from those of this rank's parts, where `like` is sharded (then collective)."""
    if not isinstance(like, DTensor):
        return norms
    squares = norms.square()
    for axis, placement in enumerate(like.placements):
        if placement.is_shard():
            dist.all_reduce(squares, group=like.device_mesh.get_group(axis))
    return squares.sqrt()


def full_state(state: Any, keep: bool = True) -> Any:
    """`state` (nested dicts and lists) with every sharded tensor whole and on the CPU (a collective call).

    With `keep` False this rank helps the others and gets None for each of these.
    """
    if isinstance(state, DTensor):
        full: Tensor = state.full_tensor().detach()  # pyright: ignore[reportAttributeAccessIssue]
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: full_state(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(full_state(value, keep) for value in state)
    return state


def placed(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` holds it: on its device, and sharded where `like` is (no communication)."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    whole = full.detach().to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def load_weights(root: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """`root.load_state_dict(state)` of whole tensors into sharded parameters.

    Raises:
        RuntimeError: as `load_state_dict`.
    """
    own = root.state_dict()
    root.load_state_dict(
        {name: placed(x, own[name]) if name in own else x for name, x in state.items()}, strict=strict
    )


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimiser.load_state_dict(state)` of whole tensors over sharded parameters."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=True))
    moments = {
        number: {
            name: placed(x, of_number[number]) if isinstance(x, Tensor) else x for name, x in values.items()
        }
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": moments})


def gathered(encoder: Encoder) -> Encoder:
    """The encoder, or where it is sharded a plain copy with all of its weights, on the CPU; collective.

    Only the copy can be written to a file by one rank.
    """
    from ..encoders import build_encoder

    tensors = encoder.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return encoder
    copy = build_encoder(encoder.config, download=False)
    copy.load_state_dict(full_state(tensors))
    copy.config = encoder.config
    return copy
