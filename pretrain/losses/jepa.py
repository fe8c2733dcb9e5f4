"""Prediction in the space of features: the loss of I-JEPA (Assran et al., arXiv 2301.08243)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .precision import wide


def jepa_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 (transition at 1) to the teacher's features, layer-normalised over the channels.

    The published code's choice (facebookresearch/ijepa, src/train.py); equation 1 has squared distances.

    Args:
        predicted: [..., E].
        target: [..., E], the teacher's features before the normalisation; no gradient goes into it.
    """
    target = F.layer_norm(wide(target.detach()), target.shape[-1:])
    return F.smooth_l1_loss(wide(predicted), target)
