"""Automatic mixed precision where torch has none: on the meta device, which knows no autocast.

The functions and their precision are those of torch's table for CUDA (docs.pytorch.org/docs/stable/amp.html,
"Op-specific behavior"); weights that are cast once are kept until the mode ends, as autocast does. Attention
goes to the fused kernel, which keeps no matrix of tokens × tokens. `torch.autocast(..., enabled=False)`, with
which views and losses ask for float32, is heard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

LOWER: frozenset[Callable[..., Any]] = frozenset({
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm,
    torch.einsum, torch.mv, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
})  # fmt: skip
UPPER: frozenset[Callable[..., Any]] = frozenset({
    F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax,
    F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.huber_loss, F.normalize, F.cosine_similarity, torch.norm, Tensor.norm, torch.exp,
    Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__, torch.cumsum, Tensor.cumsum,
    torch.prod, Tensor.prod, torch.sum, Tensor.sum, torch.cdist, torch.logsumexp, Tensor.logsumexp,
    F.softplus, torch.linalg.norm, torch.linalg.vector_norm,
})  # fmt: skip


class Halves(TorchFunctionMode):
    """Inside it, products and convolutions run in `low`, and what loses by it in float32.

    It also stands in for `torch.autocast` meanwhile, so that it is for one thread of a program that does
    nothing else.

    Args:
        low: None leaves the precision alone; attention is still the fused one.
    """

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low
        self.copies = 0  # bytes of the weights that were cast
        self._cast: dict[int, Tensor] = {}

    def __enter__(self) -> Halves:
        self._autocast = torch.autocast
        torch.autocast = self._switched  # type: ignore[misc,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.autocast = self._autocast  # type: ignore[misc]
        self._cast.clear()

    @contextlib.contextmanager
    def _switched(self, device: str, dtype: Any = None, enabled: bool = True, **_: Any) -> Any:
        before, self.low = self.low, self.low if enabled else None
        try:
            yield
        finally:
            self.low = before

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            args, kwargs = self._both(args, kwargs, self.low)
            fused = _fused(*args, **kwargs)
            return func(*args, **kwargs) if fused is None else fused
        if func in LOWER:
            args, kwargs = self._both(args, kwargs, self.low)
        elif func in UPPER and self.low is not None:
            args, kwargs = self._both(args, kwargs, torch.float32)
        return func(*args, **kwargs)

    def _both(
        self, args: Any, kwargs: dict[str, Any], dtype: torch.dtype | None
    ) -> tuple[Any, dict[str, Any]]:
        if dtype is None:
            return args, kwargs
        cast = partial(self._one, dtype=dtype)
        return tree_map(cast, args), {name: tree_map(cast, value) for name, value in kwargs.items()}

    def _one(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
            self.copies += self._cast[id(value)].nbytes
        return self._cast[id(value)]


def backward(loss: Tensor) -> None:
    """`loss.backward()` that leaves a function mode on: blocks that are computed again must meet it, too."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor | None:  # fmt: skip
    """Attention [B, heads, N, E] on the meta device as the fused kernel; None where that does not take it."""
    if attn_mask is not None or query.ndim != 4 or enable_gqa or query.device.type != "meta":
        return None
    op = torch.ops.aten._scaled_dot_product_flash_attention
    return op(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
