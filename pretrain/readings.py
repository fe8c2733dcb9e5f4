"""How the loss of each method is to be read, and the level that knowing nothing reaches."""

from __future__ import annotations

import math
from typing import Any

READINGS = {
    "mae": "1 is guessing the mean of each hidden patch (norm_pixels); 0.4 to 0.8 is usual, and a lower "
    "loss is "
    "an easier picture, not a better encoder",
    "mdae": "as for mae; the mask ratio changes from image to image, so that single rows jump",
    "simmim": "mean absolute error of standardised pixels; 0.8 is guessing the mean",
    "spark": "1 is guessing the mean of each hidden patch; convolutional networks stay above transformers",
    "genesis": "squared error of restored pixels; 1 is guessing the mean of the image",
    "dino": "starts near log(prototypes), and falls and rises with the teacher's entropy: read the "
    "entropies, not "
    "the level",
    "dinov2": "the sum of dino, ibot and koleo; each starts near log(prototypes) and follows the teacher's "
    "entropy: read the terms and the entropies, not the level",
    "ijepa": "distance to features of the teacher, which grow meanwhile: a loss that rises slowly may "
    "be healthy, "
    "one near 0 is a collapse",
    "lejepa": "invariance + sigreg: sigreg falls first (features become Gaussian), then invariance; "
    "this loss "
    "does follow the quality",
    "mocov3": "log(batch) is guessing which image it is; the gap to it is what was learnt",
    "simclr": "log(2 · batch - 1) is guessing which image it is; the gap to it is what was learnt",
    "voco": "error of predicted overlaps, and how alike different base crops are",
    "swinunetr": "the sum of rotation (log 4 is guessing), in-painting and contrast (log(2 · batch - 1))",
    "supervised": "cross-entropy (log(classes) is guessing) or Dice and cross-entropy of label maps",
}

# Losses whose rise or fall is no sign: the target moves with the teacher.
MOVING = ("dino", "dinov2", "ijepa")


def chance(config: dict[str, Any]) -> tuple[float, str] | None:
    """The loss of an encoder that knows nothing, and how it comes about; None where no number is certain.

    Args:
        config: of a run, as config.yaml holds it.
    """
    objective, data = config.get("objective") or {}, config.get("data") or {}
    accumulate = (config.get("trainer") or {}).get("accumulate") or 1
    batch = int(data.get("batch_size") or 0) // int(accumulate)  # the rows of a micro-batch on all ranks
    name = objective.get("name")
    if name in ("mae", "mdae", "spark") and objective.get("norm_pixels"):
        return 1.0, "the mean of each hidden patch"
    if data.get("classes") or batch < 2:
        return None
    if name == "simclr":
        return math.log(2 * batch - 1), "guessing among the views of the batch"
    if name == "mocov3":
        # Both directions, each scaled by twice the temperature.
        scale = 4 * float(objective.get("temperature") or 0.2)
        return scale * math.log(batch), "guessing among the images of the batch"
    return None
