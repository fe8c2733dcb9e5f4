"""Running a convolutional encoder with hidden places left out, as masked pretraining of CNNs does.

With holes in its input a dense convolution computes other statistics than on a whole image, and after a few
layers the holes are filled by their surroundings. SparK (arXiv 2301.03580, section 3.1) therefore uses sparse
convolutions; the same result comes from dense ones when the mask is applied again behind each of them, and
when normalisation, pooling and the global mean count visible places only. The price: no arithmetic is saved,
and masked norms are slower than fused ones: a step takes 1.0 (ConvNeXt), 1.12 (ResNet-18) or 1.2 (ResEnc,
SegResNet) of a dense step on a CPU. In return it runs on every device, in 2D and 3D.

    with sparse(encoder, visible):
        features = encoder(image, pyramid=True)   # hidden places are zero in all maps

What the encoder computes is known by its modules, so only networks made of known ones can run this way;
`unfit` says which module stands in the way (a squeeze-and-excitation gate, attention, blur pooling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.utils.checkpoint import checkpoint

from ...data.errors import ConfigError
from .. import ranks
from .base import Encoder

Forward = Callable[[Tensor], Tensor]

# Modules that act on each place by itself and keep zero at zero, beside activations.
_PLACEWISE = ("Identity", "Dropout", "Dropout2d", "Dropout3d", "DropPath", "Flatten")

# The encoders that run so just now, and their visible places.
_VISIBLE: WeakKeyDictionary[Encoder, Tensor] = WeakKeyDictionary()


@contextmanager
def sparse(encoder: Encoder, visible: Tensor) -> Iterator[None]:
    """Within this context `encoder` leaves hidden places out of everything that it computes.

    Args:
        encoder: one with `convolutional` True. In batch norms the running statistics follow visible places.
        visible: bool [B, *grid] over the token grid, the grid of the coarsest map; at least one a sample.
            Each finer map is hidden where the cell of the coarsest map is.

    Raises:
        ConfigError: an encoder that cannot, or (in its forward) an image of another grid.
    """
    if not encoder.convolutional:
        raise ConfigError(
            f"encoder {encoder.config.name} cannot leave hidden places out: {unfit(encoder) or 'no CNN'}; "
            "choose convnet with a convnext*, resnet* or regnetx* model, resenc, segresnet or convnext3d"
        )
    run = _Run(visible)
    outer = _VISIBLE.get(encoder)
    _VISIBLE[encoder] = visible
    replaced: list[tuple[nn.Module, Any]] = []
    handle = encoder.register_forward_pre_hook(run.hide_image)
    # Compiled code knows nothing of the replaced methods, and compiling anew in each step would cost minutes.
    compiled = {module: module._compiled_call_impl for module in encoder.modules()}
    try:
        for module in compiled:
            module._compiled_call_impl = None
            forward = run.forward_of(module)
            if forward is not None:
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = forward
        yield
    finally:
        for module, implementation in compiled.items():
            module._compiled_call_impl = implementation
        del _VISIBLE[encoder]
        if outer is not None:
            _VISIBLE[encoder] = outer
        handle.remove()
        for module, before in replaced:
            del module.__dict__["forward"]
            if before is not None:
                module.forward = before


def recomputed(encoder: Encoder, stage: Forward, x: Tensor) -> Tensor:
    """stage(x), computed again in the backward pass (arXiv 1604.06174) under the mask of this pass."""
    visible = _VISIBLE.get(encoder)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), nullcontext() if visible is None else sparse(encoder, visible)

    return cast(Tensor, checkpoint(stage, x, use_reentrant=False, context_fn=contexts))


def unfit(network: nn.Module) -> str | None:
    """The module that keeps a network from running with hidden places left out; None: it can."""
    for name, module in network.named_modules():
        kind = type(module).__name__
        leaf = next(module.children(), None) is None
        if (leaf and not _known(module)) or "attention" in kind.lower() or "attn" in kind.lower():
            return f"its {kind} ({name}) mixes places in a way that is not known"
    return None


def _known(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm | _InstanceNorm):
        batch = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        return module.momentum is not None and (batch or not module.track_running_stats)
    if isinstance(module, _AdaptiveAvgPoolNd):
        return set(_tuple(cast(Any, module).output_size)) == {1}
    if isinstance(module, _ConvNd | nn.Linear | nn.GroupNorm | nn.LayerNorm | _MaxPoolNd | _AvgPoolNd):
        return not getattr(module, "transposed", False)
    kind = type(module)
    if kind.__module__ in ("torch.nn.modules.activation", "timm.layers.activations"):
        return isinstance(module, nn.PReLU) or not module(torch.zeros(1)).any()
    empty = isinstance(module, nn.Sequential | nn.ModuleList)
    return empty or kind.__name__ in (*_PLACEWISE, "GlobalResponseNorm", "GlobalResponseNorm3d")


class _Run:
    """One set of visible places, at all resolutions, and the forward methods that keep to it."""

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible.unsqueeze(1)  # [B, 1, *grid]
        self.grid = tuple(visible.shape[1:])
        self.masks: dict[tuple[int, ...], Tensor] = {self.grid: self.visible}
        self.counts: dict[tuple[int, ...], Tensor] = {}

    def hide_image(self, encoder: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Blank the hidden part of the image before anything sees it."""
        grid = cast(Encoder, encoder).grid(args[0].shape[2:])
        if grid != self.grid:
            raise ConfigError(f"the mask is over a grid of {self.grid}, the image has one of {grid}")
        return args[0].masked_fill(~self.at(args[0].shape[2:]), 0.0), *args[1:]

    def at(self, size: Sequence[int]) -> Tensor:
        """bool [B, 1, *size]: True where visible."""
        size = tuple(size)
        if size not in self.masks:
            if any(s % g for s, g in zip(size, self.grid, strict=True)):
                raise ConfigError(f"a map of {size} does not lie on the mask's grid of {self.grid}")
            mask = self.visible
            for axis, (s, g) in enumerate(zip(size, self.grid, strict=True), start=2):
                mask = mask.repeat_interleave(s // g, dim=axis)
            self.masks[size] = mask
        return self.masks[size]

    def count(self, size: Sequence[int]) -> Tensor:
        """Visible places of a map in the mean over all ranks, as all batch norms count (norms.py)."""
        size = tuple(size)
        if size not in self.counts:
            self.counts[size] = ranks.mean(self.at(size).sum().clamp(min=1).float())
        return self.counts[size]

    def hide(self, x: Tensor, last: bool = False) -> Tensor:
        """Zero at hidden places of a map [B, C, *size], or [B, *size, C] where `last`; others as they are."""
        size = x.shape[1:-1] if last else x.shape[2:]
        if len(size) != len(self.grid) or (set(size) == {1} and set(self.grid) != {1}):
            return x  # pooled already
        mask = self.at(size)
        return x * (mask.movedim(1, -1) if last else mask).to(x.dtype)

    def forward_of(self, module: nn.Module) -> Forward | None:
        """The method that replaces `module.forward`; None where it needs none."""
        plain = module.forward
        if isinstance(module, _BatchNorm):
            return lambda x: _activate(module, self.batch_norm(module, x))
        if isinstance(module, _InstanceNorm):
            return lambda x: self.group_norm(module, x, x.shape[1])
        if isinstance(module, nn.GroupNorm):
            return lambda x: _activate(module, self.group_norm(module, x, module.num_groups))
        if isinstance(module, _ConvNd):
            return lambda x: self.hide(plain(x))
        if isinstance(module, nn.Linear):
            return lambda x: self.hide(plain(x), last=True)
        if isinstance(module, nn.LayerNorm):
            last = not any(mark in type(module).__name__ for mark in ("2d", "3d"))
            return lambda x: self.hide(plain(x), last)
        if type(module).__name__.startswith("GlobalResponseNorm") and hasattr(module, "spatial_dim"):
            last = cast(Any, module).channel_dim == -1
            # Its sums over space: hidden places add nothing when they are zero.
            return lambda x: self.hide(plain(self.hide(x, last)), last)
        if isinstance(module, _MaxPoolNd):
            return lambda x: self.hide(plain(x.masked_fill(~self.at(x.shape[2:]), torch.finfo(x.dtype).min)))
        if isinstance(module, _AvgPoolNd):
            return lambda x: self.average(plain, x)
        if isinstance(module, _AdaptiveAvgPoolNd):
            return lambda x: self.average(plain, x, everywhere=True)
        return None

    def average(self, pool: Forward, x: Tensor, everywhere: bool = False) -> Tensor:
        """Average pooling in which hidden places do not count."""
        mask = self.at(x.shape[2:]).float()
        share = pool(mask) / pool(torch.ones_like(mask))  # of the window that is visible; edges count as ever
        pooled = pool(self.hide(x)) / share.clamp(min=1e-6).to(x.dtype)
        return pooled if everywhere else self.hide(pooled)

    def batch_norm(self, module: _NormBase, x: Tensor) -> Tensor:
        """Batch norm with the mean and variance of the visible places of the batch."""
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = x.float()
        if not (module.training or module.running_mean is None):
            assert module.running_mean is not None and module.running_var is not None
            mean, variance = module.running_mean.reshape(shape), module.running_var.reshape(shape)
        else:
            mask = self.at(x.shape[2:])
            count = self.count(x.shape[2:])
            mean = ranks.mean((y * mask).sum(dims, keepdim=True)) / count
            variance = ranks.mean(((y - mean).square() * mask).sum(dims, keepdim=True)) / count
            count = count * ranks.world()
            if module.running_mean is not None and module.running_var is not None:
                assert module.num_batches_tracked is not None and module.momentum is not None
                with torch.no_grad():
                    module.num_batches_tracked.add_(1)
                    unbiased = variance * (count / (count - 1).clamp(min=1))
                    module.running_mean.lerp_(mean.flatten().to(module.running_mean.dtype), module.momentum)
                    module.running_var.lerp_(unbiased.flatten().to(module.running_var.dtype), module.momentum)
        return self.hide(_affine(module, (y - mean) * (variance + module.eps).rsqrt(), shape)).to(x.dtype)

    def group_norm(self, module: Any, x: Tensor, groups: int) -> Tensor:
        """Group norm (instance norm: as many groups as channels) over the visible places of each sample."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mask = self.at(x.shape[2:]).flatten(1).unsqueeze(1)  # [B, 1, places]
        y = x.float().reshape(x.shape[0], groups, x.shape[1] // groups, -1)
        mask = mask.unsqueeze(1).to(y.dtype)  # [B, 1, 1, places]
        count = mask.sum((2, 3), keepdim=True).clamp(min=1) * y.shape[2]
        mean = (y * mask).sum((2, 3), keepdim=True) / count
        variance = ((y - mean).square() * mask).sum((2, 3), keepdim=True) / count
        y = ((y - mean) * (variance + module.eps).rsqrt()).reshape(x.shape)
        return self.hide(_affine(module, y, shape)).to(x.dtype)


def _affine(module: Any, y: Tensor, shape: Sequence[int]) -> Tensor:
    if module.weight is None:
        return y
    return y * module.weight.reshape(shape) + module.bias.reshape(shape)


def _activate(module: nn.Module, y: Tensor) -> Tensor:
    """What timm's norms with a built-in activation do behind the norm; nothing for torch's own."""
    for name in ("drop", "act"):
        part = getattr(module, name, None)
        y = part(y) if isinstance(part, nn.Module) else y
    return y


def _tuple(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, list | tuple) else (size,)
