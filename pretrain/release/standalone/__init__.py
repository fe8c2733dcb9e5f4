"""`modeling.py` beside the weights of a network that timm does not build: use without medloom.

The files of this folder are copied next to `encoder.safetensors` as they are: each needs PyTorch, safetensors
and at most the library whose network it is (MONAI, dynamic-network-architectures), reads sizes off
`encoder.json` and the tensors, and gives `(pooled, tokens)` like the encoder it stands for. The choice: real
modules instead of generated text, so that they are linted, typed and tested like all other code; the price
is that a part of each network is written twice, and tests hold the two together. medloom itself never runs a
`modeling.py` that came with weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ....data.atomic import write_text
from ...artefact import MODELING
from ...encoders.base import Encoder

# family -> file of this folder
FILES = {
    "vit3d": "vit3d.py",
    "vit3d_learnt": "vit3d.py",
    "vit_any": "vit3d.py",
    "convnext3d": "convnext3d.py",
    "resnet3d": "monai_networks.py",
    "segresnet": "monai_networks.py",
    "swin3d": "monai_networks.py",
    "resenc": "nnunet_networks.py",
    "primus": "nnunet_networks.py",
}


def modeling(encoder: Encoder) -> str | None:
    """Text of the module that stands for this encoder; None: timm builds it, or nothing else does."""
    name = FILES.get(str(encoder.config.name))
    if name is None or (name == "convnext3d.py" and not _usual(encoder)):
        return None
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def write_modeling(folder: Path, encoder: Encoder) -> Path | None:
    """Write `modeling.py`, where there is one for this encoder; one of another encoder is removed."""
    path, text = Path(folder) / MODELING, modeling(encoder)
    if text is None:
        path.unlink(missing_ok=True)
        return None
    write_text(path, text)
    return path


def _usual(encoder: Encoder) -> bool:
    """Whether a ConvNeXt is as most of timm's are (patch stem, GELU, norms with 1e-6)."""
    from torch import nn

    stem = cast(nn.Sequential, encoder.get_submodule("model.stem"))
    modules = list(encoder.modules())
    return (
        len(stem) == 2
        and isinstance(stem[1], nn.LayerNorm)
        and not list(encoder.get_submodule("model.norm_pre").parameters())
        and all(m.eps == 1e-6 for m in modules if isinstance(m, nn.LayerNorm))
        and {type(mlp.act).__name__ for mlp in modules if hasattr(mlp, "grn")}
        == {"GELU"}  # timm's or torch's
    )
