"""Another range of intensities in front of a network: x -> clip(scale · x + shift, low, high).

Networks that others trained met their own range, CT in a window brought to 0..1 for example, and batch norm
or zero padding do not forgive another. Hounsfield units arrive here as HU / 1000 within -1..1, so that any
window within is a line. It is a part of the encoder's section, and so of every artefact made from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...data.errors import ConfigError


def check_rescale(numbers: Sequence[float] | None) -> None:
    """Refuse what is not [scale, shift] or [scale, shift, low, high]."""
    if numbers is None:
        return
    if len(numbers) not in (2, 4) or not numbers[0] or (len(numbers) == 4 and numbers[2] >= numbers[3]):
        raise ConfigError(
            f"encoder.rescale: {list(numbers)}: expected [scale, shift] or [scale, shift, low, high], with a "
            "scale that is not 0 and low below high"
        )


def rescaled(x: Tensor, numbers: Sequence[float] | None) -> Tensor:
    """Images of any shape in the network's range; None: as they are."""
    if numbers is None:
        return x
    x = x * numbers[0] + numbers[1]
    return x.clamp(numbers[2], numbers[3]) if len(numbers) == 4 else x
