"""Objectives by name. A new one is one file here and one line in `OBJECTIVES`."""

from __future__ import annotations

from .base import Batch, Facts, Objective, Output
from .dino import DINO
from .dinov2 import DINOv2
from .genesis import Genesis
from .ijepa import IJEPA
from .lejepa import LeJEPA
from .mae import MAE
from .mdae import MDAE
from .mocov3 import MoCoV3
from .simclr import SimCLR
from .simmim import SimMIM
from .spark import SparK
from .supervised import Supervised
from .swinunetr import SwinUNETRPretext
from .voco import VoCo

__all__ = ["OBJECTIVES", "Batch", "Facts", "Objective", "Output"]

OBJECTIVES: dict[str, type[Objective]] = {
    "dino": DINO,
    "dinov2": DINOv2,
    "genesis": Genesis,
    "ijepa": IJEPA,
    "lejepa": LeJEPA,
    "mae": MAE,
    "mdae": MDAE,
    "mocov3": MoCoV3,
    "simclr": SimCLR,
    "simmim": SimMIM,
    "spark": SparK,
    "supervised": Supervised,
    "swinunetr": SwinUNETRPretext,
    "voco": VoCo,
}
