"""An encoder as `model.onnx`: normalised image in, `pooled` [B, E] and `tokens` [B, N, E] out.

Checked with onnxruntime on noise as it is written. The batch is free; the sides are those of the training
crop (at most 224 pixels or 64 voxels a side) or those asked for, because positions, windows and checks of the
network are computed for one grid as it is traced. `preprocessing.json` says how an image becomes the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.atomic import write_json
from ..encoders import Encoder
from ..graph import exported, intensity_steps, largest_difference, write_onnx
from ..release.reference import reference_sizes

MODEL, CONTRACT = "model.onnx", "preprocessing.json"
INPUT, OUTPUTS = "image", ("pooled", "tokens")
CHECKED = 2  # images on which it is compared


class Both(nn.Module):
    """An encoder that gives (pooled, tokens), float32."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, *spatial] -> [B, E], [B, N, E]."""
        found = self.encoder(image)
        return found.pooled.float(), found.tokens.float()


def write_encoder_onnx(
    folder: Path, encoder: Encoder, contract: Mapping[str, Any], size: Sequence[int] | None = None
) -> dict[str, Any]:
    """Write model.onnx and preprocessing.json; returns what stands in the latter.

    Args:
        contract: `input` of encoder.json.
        size: pixels of the input; None: those of `reference_sizes`.

    Raises:
        ConfigError: no graph of this network, a size that is no multiple of its patch, a missing package, or
            a file that computes something else than torch.
    """
    size = tuple(size or reference_sizes(encoder, contract)[-1])
    encoder.grid(size)
    module = Both(encoder).eval()
    name = f"encoder {encoder.config.name}"
    generator = torch.Generator().manual_seed(0)
    shape = (1, encoder.in_channels, *size)
    inputs = [torch.randn(shape, generator=generator) for _ in range(CHECKED)]
    program = exported(module, torch.cat(inputs), name)
    difference, opset = write_onnx(
        program, folder / MODEL, (INPUT, OUTPUTS),
        lambda other: largest_difference(module, inputs, other, MODEL),
    )  # fmt: skip
    patch = "×".join(map(str, encoder.patch_of(len(size))))
    said = {
        "format": 1,
        "check": {"against": "torch, with onnxruntime on the CPU", "max_abs_difference": difference,
                  "inputs": CHECKED, "real": False, "opset": opset},
        "input": {
            "name": INPUT,
            "axes": "BCDHW" if len(size) == 3 else "BCHW",
            "channels": encoder.in_channels,
            "sides": list(size),
            "free": ["B"],
            "multiple_of": list(encoder.patch_of(len(size))),
        },
        "intensity": intensity_steps(),
        "contract": dict(contract) or None,  # what it was trained on; null: not on record
        "outputs": {"pooled": "[B, E], one vector an image",
                    "tokens": f"[B, N, E], a vector for each patch of {patch}"},
    }  # fmt: skip
    write_json(folder / CONTRACT, said)
    return said
