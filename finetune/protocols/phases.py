"""What share of its peak rate the encoder and the head have at a step: a protocol with steps is one of these.

All are pure functions of the step, so that a resumed run needs nothing. A share of 0 means frozen: no
gradient is computed for the encoder and its batch statistics and stochastic depth are off.
"""

from __future__ import annotations

from collections.abc import Callable

from ...pretrain.schedules import rate
from ..config import FinetuneConfig

Phases = Callable[[int, FinetuneConfig], tuple[float, float]]  # step -> share of the encoder, of the head


def together(step: int, config: FinetuneConfig) -> tuple[float, float]:
    """One ramp and one decay for both."""
    share = _ramp_and_decay(step, config.steps, config)
    return share, share


def head_alone(step: int, config: FinetuneConfig) -> tuple[float, float]:
    """The encoder stays frozen."""
    return 0.0, _ramp_and_decay(step, config.steps, config)


def unfreeze(step: int, config: FinetuneConfig) -> tuple[float, float]:
    """The head learns as it would alone; the encoder joins after `optim.freeze_fraction` with its own ramp.

    Linear probing first keeps a random head from pulling good features apart (arXiv 2202.10054).
    """
    frozen = freeze_steps(config)
    head = _ramp_and_decay(step, config.steps, config)
    return (0.0 if step < frozen else _ramp_and_decay(step - frozen, config.steps - frozen, config)), head


def sawtooth(step: int, config: FinetuneConfig) -> tuple[float, float]:
    """Two teeth: the head alone ramps up and decays, then everything ramps up and decays.

    As in the fine-tuning of OpenMind (arXiv 2412.17041), whose first tooth and second ramp take 5 % of 1000
    epochs each and whose decay is `optim.decay=poly`.
    """
    frozen = freeze_steps(config)
    if step < frozen:
        decay = config.optim.decay
        return 0.0, rate(decay, step, steps=frozen, warmup=(frozen + 1) // 2, peak=1.0)
    share = _ramp_and_decay(step - frozen, config.steps - frozen, config)
    return share, share


def freeze_steps(config: FinetuneConfig) -> int:
    """Steps of the first phase; never all of them."""
    return min(round(config.optim.freeze_fraction * config.steps), config.steps - 1)


def _ramp_and_decay(step: int, steps: int, config: FinetuneConfig) -> float:
    warmup = min(int(config.optim.warmup_fraction * config.steps), steps)
    return rate(config.optim.decay, step, steps=steps, warmup=warmup, peak=1.0)
