"""What a new run takes over from an older run of the same method beside the encoder: heads, decoder, tokens.

`init_from` gives the encoder. Where it names a run folder whose objective has the same name, the objective's
own weights come from its checkpoint, so that a second phase (higher resolution, other data) does not start
from random prototypes or a random decoder. Copies of the encoder inside the objective are left as they are:
they follow from the encoder that was loaded, and adapted, before. Other sizes are left out, and named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.config import read_yaml
from .encoders.base import Encoder
from .objectives.base import Objective
from .scale import split

PREFIX = "objective."


def continue_objective(objective: Objective, init_from: str | Path) -> str | None:
    """Fill the objective in place from the run folder `init_from`.

    Returns:
        A line to log; None where `init_from` is no run of this method with a checkpoint.

    Raises:
        CheckpointError: the run has checkpoints, but none is complete.
    """
    folder = Path(init_from)
    if not (folder / "config.yaml").is_file():
        return None
    saved: dict[str, Any] = read_yaml(folder / "config.yaml").get("objective") or {}
    checkpoint = split.newest(folder) if saved.get("name") == objective.config.name else None
    if checkpoint is None:
        return None
    state = split.load(checkpoint)["state_dict"]
    copies = [f"{name}." for name, module in objective.named_modules() if isinstance(module, Encoder)]
    mine = {k: v for k, v in objective.state_dict().items() if not k.startswith(tuple(copies))}
    found = {k: state[PREFIX + k] for k in mine if PREFIX + k in state}
    fitting = {k: v for k, v in found.items() if v.shape == mine[k].shape}
    objective.load_state_dict(fitting, strict=False)
    others = sorted(found.keys() - fitting.keys())
    line = f"objective: {len(fitting)} of {len(mine)} tensors from {checkpoint}"
    return line + (f"; of another size: {', '.join(others[:4])}" if others else "")
