"""The table of peers. Adapters import their libraries inside functions: the table itself needs none."""

from __future__ import annotations

import importlib

from .base import Peer

# name -> (module, class). The order is that of the result table.
PEERS: dict[str, tuple[str, str]] = {
    "medloom": ("medloom_shards", "Medloom"),
    "medloom-fast": ("medloom_shards", "MedloomFast"),
    "medloom-any": ("medloom_shards", "MedloomAnyOrigin"),
    "nnssl": ("mapped", "NnsslStyle"),
    "nnssl-grid": ("mapped", "NnsslGrid"),
    "plain": ("mapped", "PlainFiles"),
    "nifti": ("mapped", "Nifti"),
    "webdataset": ("webdataset_tar", "WebDataset"),
    "monai-cache": ("monai_datasets", "MonaiCache"),
    "monai-persistent": ("monai_datasets", "MonaiPersistent"),
    "litdata": ("litdata_chunks", "LitData"),
    "mosaic": ("mosaic_mds", "Mosaic"),
    "energon": ("energon_tar", "Energon"),
}


def peer(name: str) -> Peer:
    """The adapter of this name; raises ImportError when its library is not installed."""
    module, cls = PEERS[name]
    found: type[Peer] = getattr(importlib.import_module(f".{module}", __package__), cls)
    for needed in found.needs:
        importlib.import_module(needed)
    return found()
