"""Volume overlap of two masks: Dice and IoU, as plain fractions of counted pixels.

Both are undefined (nan) when both masks are empty; what a report makes of that is decided by `EmptyPolicy`,
never here. Counts are exact integers, so the value does not depend on the order of summation.
"""

from __future__ import annotations

import numpy as np


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient 2|A∩B| / (|A|+|B|) of two boolean masks of equal shape; nan when both are empty.

    Raises:
        ValueError: the shapes differ or a mask is not boolean.
    """
    shared, total = _counts(prediction, reference)
    return 2 * shared / total if total else float("nan")


def iou(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Intersection over union |A∩B| / |A∪B| of two boolean masks; nan when both are empty.

    Raises:
        ValueError: the shapes differ or a mask is not boolean.
    """
    shared, total = _counts(prediction, reference)
    return shared / (total - shared) if total else float("nan")


def check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Raise ValueError unless both are boolean arrays of one shape."""
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(f"masks must be boolean, not {prediction.dtype} and {reference.dtype}")


def _counts(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    check_masks(prediction, reference)
    shared = int(np.count_nonzero(prediction & reference))
    return shared, int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
