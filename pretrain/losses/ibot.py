"""Masked image modelling by self-distillation: the student guesses the teacher's prototypes of hidden tokens.

Zhou et al., iBOT, arXiv 2111.07832, equation 2, with the weights of DINOv2 (arXiv 2304.07193): each masked
image counts once, however many of its tokens are hidden, and images without a mask count as 0.
"""

from __future__ import annotations

from torch import Tensor

from .dino import soft_cross_entropy
from .precision import wide


def ibot_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, images: int, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy at hidden tokens, mean within an image, then over all images.

    Args:
        student: logits [M, K] of the hidden tokens of this rank.
        teacher: probabilities [M, K] of the same tokens, seen.
        weight: [M], 1 / hidden tokens of the image of each; 0: the row does not count.
        images: on this rank, masked or not.
        temperature: of the student.
    """
    return (soft_cross_entropy(student, teacher, temperature) * wide(weight)).sum() / images
