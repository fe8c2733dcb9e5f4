"""What encoder.json says of an encoder that is taken out of a training checkpoint.

A run that ended wrote the record itself. For one that still runs or was stopped it is made again here, from
config.yaml beside the checkpoint and from the shards. Where either is missing, the record says nothing of
training, and an evaluation will call leakage unknown: half a list of sources would read as if nothing else
had been seen.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ...data.config import polymorphic, read_yaml, structured
from ...data.errors import MedloomError, ShardError
from ..config import PretrainConfig, complete
from ..encoders import build_encoder
from ..folder import CONFIG, ENVIRONMENT
from ..objectives import OBJECTIVES
from ..sources import read_source

log = logging.getLogger(__name__)


def record_of(checkpoint: Path) -> dict[str, Any]:
    """Provenance for `save_encoder`: input, training, held_out as far as they are known, and `checkpoint`."""
    import torch

    ours = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["medloom"]
    step, prefix = int(ours.get("step", 0)), str(ours.get("released", "encoder."))
    said = {"checkpoint": {"step": step, "weights": "trained" if prefix == "encoder." else "teacher"}}
    try:
        return _made_again(checkpoint.parent, step) | said
    except MedloomError as error:
        log.warning("the record will not say what it was trained on: %s", error)
        return said


def _made_again(run: Path, step: int) -> dict[str, Any]:
    from ..run import open_data, provenance, resolve_classes

    config = complete(structured(PretrainConfig, run / CONFIG))
    data = open_data(config)
    manifest = data.shards.manifest
    known = read_yaml(run / ENVIRONMENT).get("manifest")
    if known != manifest.hash:
        raise ShardError(
            f"{config.data.shards}: manifest {manifest.hash[:12]}, the run was on {str(known)[:12]}: put the "
            "shards of the run back"
        )
    resolve_classes(config, data)
    kind, section = polymorphic(config.objective, OBJECTIVES, "objective")
    objective = kind(section, build_encoder(config.encoder, download=False))
    ancestor = read_source(config.init_from, weights=False)[2] if config.init_from else {}
    record = provenance(config, manifest, data, objective, ancestor or None)
    record["training"] |= {"steps": step, "samples": data.plan.samples(step), "of_steps": config.steps}
    return json.loads(json.dumps(record))
