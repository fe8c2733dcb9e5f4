"""How a dataset lies on disk: folders and tables become Records.

A layout is a module with `Options` (a dataclass), `describe` and `scan` (see `base.Layout`); a new one is a
new file and a line in `LAYOUTS`.
"""

from __future__ import annotations

from . import (
    bids,
    cases,
    coco,
    dicom_tree,
    image_folder,
    labelme,
    litdata,
    medmnist,
    msd,
    nnunet,
    nnunet_raw,
    table,
    video,
    voc,
    webdataset,
    yolo,
)
from .base import Layout, Refusal, Source

__all__ = ["LAYOUTS", "Layout", "Refusal", "Source"]

LAYOUTS: dict[str, Layout] = {
    "bids": bids,
    "cases": cases,
    "coco": coco,
    "dicom_tree": dicom_tree,
    "image_folder": image_folder,
    "labelme": labelme,
    "litdata": litdata,
    "medmnist": medmnist,
    "msd": msd,
    "nnunet": nnunet,
    "nnunet_raw": nnunet_raw,
    "table": table,
    "video": video,
    "voc": voc,
    "webdataset": webdataset,
    "yolo": yolo,
}
