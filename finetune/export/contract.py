"""What stands before and after an exported network, as JSON: enough to serve it without medloom.

The network takes a normalised image on the plan's grid and gives what is scored. `preprocessing.json` says
how a file becomes that image and how the output becomes an answer, in the order of the steps; the MONAI
bundle does the same in code.
"""

from __future__ import annotations

from typing import Any

from ...data.sample import MODALITIES
from ...pretrain.graph import intensity_steps
from ..windows import OVERLAP, SIGMA
from .graph import Graph

CONTRACT = "preprocessing.json"
INPUT, OUTPUT = "image", "output"


def contract(graph: Graph, against: str, difference: float) -> dict[str, Any]:
    """The steps, plain JSON values, and how the written network was checked.

    Args:
        against: what it was compared with, in words.
        difference: the largest of its outputs, absolute.
    """
    task = graph.task
    plan, record = task.plan, task.record
    modality = record.source.get("modality")
    assert modality is None or str(modality) in {str(known) for known in MODALITIES}
    return {
        "format": 1,
        "check": {
            "against": against,
            "max_abs_difference": difference,
            "inputs": len(graph.inputs),
            "real": graph.real,
        },
        "task": record.name,
        "kind": record.kind,
        "arm": graph.arm,
        "modality": modality,  # null: as each file says
        "input": {
            "name": INPUT,
            "axes": "BCDHW" if plan.ndim == 3 else "BCHW",
            "channels": plan.channels,
            "sides": list(plan.patch),
            "free": ["B"],
            "multiple_of": list(_multiple(graph)),
        },
        "orientation": "volumes: w to the patient's right, h to anterior, d to superior (nearest axes); "
        "pictures: h down, w right, as displayed",
        "grid": {
            "spacing_mm": plan.spacing,  # resampled to it; null: as stored
            "spacing_tolerance": 0.05,  # axes that are all nearer than this are left alone
            "resize": plan.resize,  # every image becomes this large; null: not
            "interpolation": "linear, voxel centres at half integers, antialiased in pictures",
            "padding": "to the sides of the input, both ends alike, with the lowest normalised value",
        },
        "intensity": intensity_steps(),
        "windows": {"sides": list(plan.patch), "overlap": OVERLAP, "weight": "gaussian", "sigma": SIGMA}
        if graph.dense
        else None,
        "output": {
            "name": OUTPUT,
            "meaning": "probabilities of the names, or one number in the label's unit",
            "names": record.names,
            "mask_values": [0, *sorted(record.structures)] if graph.dense else None,
            "unit": record.unit or None,
        },
    }


def _multiple(graph: Graph) -> list[int]:
    """What the sides of an input must be multiples of."""
    encoder: Any = graph.module.network.encoder
    return list(encoder.patch_of(graph.task.plan.ndim))
