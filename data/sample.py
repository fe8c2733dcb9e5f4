"""What flows through the data engine: Record (files before ingest), Image (decoded), Sample (in a shard).

Vocabularies follow the catalogue (`Modality`, `Organ`); a user's own words go through `parse_modality` and
`parse_organ`, which know the common synonyms and suggest near names.

Geometry: arrays are slice-first, [C, D, H, W] or [C, H, W]; `affine` maps the index (d, h, w, 1) to RAS+
millimetres; `spacing` lists millimetres in the array's own axis order, (D, H, W) or (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CollectionError, nearest

if TYPE_CHECKING:
    import numpy as np  # not at run time: the catalogue needs only the vocabularies, at once


class Modality(StrEnum):
    """Imaging modality, in the catalogue's vocabulary."""

    XRAY = "x-ray"
    MAMMOGRAPHY = "mammography"
    DBT = "dbt"
    CT = "ct"
    CBCT = "cbct"
    MRI = "mri"
    FMRI = "fmri"
    DMRI = "dmri"
    PET = "pet"
    SPECT = "spect"
    ULTRASOUND = "ultrasound"
    OCT = "oct"
    OCTA = "octa"
    FUNDUS = "fundus"
    SLO = "slo"
    FLUORESCEIN_ANGIOGRAPHY = "fluorescein-angiography"
    SLIT_LAMP = "slit-lamp"
    DSA = "dsa"
    FLUOROSCOPY = "fluoroscopy"
    ENDOSCOPY = "endoscopy"
    COLPOSCOPY = "colposcopy"
    DERMOSCOPY = "dermoscopy"
    PHOTOGRAPHY = "photography"
    INFRARED = "infrared"
    HISTOPATHOLOGY = "histopathology"
    CYTOLOGY = "cytology"
    MICROSCOPY = "microscopy"
    EM = "em"
    OTHER = "other"


# Order of Modality members is the integer code used in shard indices and batches: append only.
MODALITIES: tuple[Modality, ...] = tuple(Modality)

_MODALITY_SYNONYMS: dict[str, Modality] = {
    "xr": Modality.XRAY, "cr": Modality.XRAY, "dx": Modality.XRAY, "xray": Modality.XRAY,
    "radiograph": Modality.XRAY, "cxr": Modality.XRAY, "mg": Modality.MAMMOGRAPHY, "cta": Modality.CT,
    "mr": Modality.MRI, "t1": Modality.MRI, "t2": Modality.MRI, "flair": Modality.MRI, "pt": Modality.PET,
    "nm": Modality.SPECT, "us": Modality.ULTRASOUND, "opt": Modality.OCT, "op": Modality.FUNDUS,
    "cfp": Modality.FUNDUS, "fundus photography": Modality.FUNDUS, "xa": Modality.DSA,
    "rf": Modality.FLUOROSCOPY, "es": Modality.ENDOSCOPY, "dermatoscopy": Modality.DERMOSCOPY,
    "dermoscopic": Modality.DERMOSCOPY, "rgb": Modality.PHOTOGRAPHY, "xc": Modality.PHOTOGRAPHY,
    "sm": Modality.HISTOPATHOLOGY, "histology": Modality.HISTOPATHOLOGY, "pathology": Modality.HISTOPATHOLOGY,
    "h&e": Modality.HISTOPATHOLOGY, "blood smear": Modality.MICROSCOPY, "gm": Modality.MICROSCOPY,
}  # fmt: skip


class Organ(StrEnum):
    """Body part, in the catalogue's vocabulary."""

    BRAIN = "brain"
    HEAD_NECK = "head-neck"
    EYE = "eye"
    EAR = "ear"
    ORAL = "oral"
    THYROID = "thyroid"
    SPINE = "spine"
    LUNG = "lung"
    CHEST = "chest"
    HEART = "heart"
    VESSEL = "vessel"
    BREAST = "breast"
    MEDIASTINUM = "mediastinum"
    ABDOMEN = "abdomen"
    LIVER = "liver"
    GALLBLADDER = "gallbladder"
    KIDNEY = "kidney"
    ADRENAL = "adrenal"
    PANCREAS = "pancreas"
    SPLEEN = "spleen"
    ESOPHAGUS = "esophagus"
    STOMACH = "stomach"
    COLON = "colon"
    BLADDER = "bladder"
    PELVIS = "pelvis"
    PROSTATE = "prostate"
    UTERUS = "uterus"
    CERVIX = "cervix"
    OVARY = "ovary"
    PLACENTA = "placenta"
    FETUS = "fetus"
    TESTIS = "testis"
    BONE = "bone"
    JOINT = "joint"
    MUSCLE = "muscle"
    NERVE = "nerve"
    SKIN = "skin"
    HAND = "hand"
    BLOOD = "blood"
    BONE_MARROW = "bone-marrow"
    LYMPH_NODE = "lymph-node"
    CELL = "cell"
    WHOLE_BODY = "whole-body"
    MULTI_ORGAN = "multi-organ"
    PHANTOM = "phantom"
    ANIMAL = "animal"
    OTHER = "other"


_ORGAN_SYNONYMS: dict[str, Organ] = {
    "head": Organ.HEAD_NECK, "neck": Organ.HEAD_NECK, "retina": Organ.EYE, "rectum": Organ.COLON,
    "bowel": Organ.COLON, "polyp": Organ.COLON, "knee": Organ.JOINT, "hip": Organ.JOINT,
    "aorta": Organ.VESSEL, "skull": Organ.BRAIN, "hippocampus": Organ.BRAIN, "spinal cord": Organ.SPINE,
    "nuclei": Organ.CELL, "thorax": Organ.CHEST, "torso": Organ.MULTI_ORGAN, "full body": Organ.WHOLE_BODY,
}  # fmt: skip


def parse_modality(text: str) -> Modality:
    """Turn a user's or a file's word for a modality into `Modality`.

    Raises:
        CollectionError: the word is neither in the vocabulary nor a known synonym.
    """
    word = str(text).strip().lower()
    if word in set(Modality):
        return Modality(word)
    if word in _MODALITY_SYNONYMS:
        return _MODALITY_SYNONYMS[word]
    raise CollectionError(f"unknown modality {text!r}{nearest(word, {*Modality, *_MODALITY_SYNONYMS})}")


def parse_organ(text: str) -> Organ:
    """Turn a word for a body part into `Organ`. Raises CollectionError when unknown."""
    word = str(text).strip().lower()
    if word in set(Organ):
        return Organ(word)
    if word in _ORGAN_SYNONYMS:
        return _ORGAN_SYNONYMS[word]
    raise CollectionError(f"unknown organ {text!r}{nearest(word, {*Organ, *_ORGAN_SYNONYMS})}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a source says of a file that the file itself does not, and how much of a long one it wants."""

    axes: str = ""  # letters of CDHW in stored order; empty: guessed from the shape
    spacing: tuple[float, ...] | None = None  # mm, (D, H, W) or (H, W)
    normalised: bool = False  # intensities are z-scores already, or the like
    properties: Path | None = None  # nnU-Net's .pkl of the case
    transpose: tuple[int, ...] = (0, 1, 2)  # nnU-Net's transpose_forward
    channels: tuple[str, ...] = ()  # names: the record's paths are the channels of one image, a file each
    every: float | None = None  # video: seconds from one frame that is kept to the next; None: every frame
    tile: int = 512  # slide: pixels of a tile's edge
    mpp: float | None = None  # slide: micrometres a pixel at which it is read; None: 0.5, which is 20x
    tissue: float = 0.5  # slide: least share of a tile that is tissue; 0 keeps every tile
    crop: bool = False  # ultrasound: only the regions that hold the scan, not the texts around them
    most: int = 0  # video, slide: frames or tiles kept of one file, evenly spread; 0: all


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One thing that an annotator marked in an image: a box, a landmark, an outline.

    In a Record, `points` are in pixels of the file's own grid (before any change of orientation; a picture as
    it is displayed, with its EXIF turn), (y, x) or (z, y, x); in a shard, of the stored array. The centre of
    the first pixel is at 0.5.
    """

    kind: str  # "box": two corners, low and high | "point": one | "polygon": three or more, closed
    label: str
    points: tuple[tuple[float, ...], ...]
    annotator: str | None = None
    group: int | None = None  # parts of one object share it; a hole follows the outline that it lies in


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one of several annotators said of an image."""

    annotator: str  # the source's own word; leaves as a salted key
    labels: Mapping[str, Any] = field(default_factory=dict)
    mask: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image as it lies on disk, before it is read.

    `name` (unique inside the dataset, as a rule the relative path) and `subject` are the source's own words:
    they may identify a person, so they are hashed with the collection's salt before anything is written.
    """

    dataset: str
    name: str
    subject: str
    paths: tuple[Path, ...]  # one file or member of an archive, a DICOM series in slice order, or channels
    modality: Modality | None = None  # None: take what the file says
    organ: Organ | None = None
    licence: str = "unknown"
    study: str | None = None
    split: str | None = None  # "train" | "val" | "test" when the source declares one
    labels: Mapping[str, Any] = field(default_factory=dict)  # {"class": "benign"}, plain JSON values
    mask: Path | None = None  # integer label map on the image's grid
    shapes: tuple[Shape, ...] = ()
    readings: tuple[Reading, ...] = ()  # of several annotators; `labels` and `mask` are then their consensus
    given: Given | None = None


@dataclass(slots=True, kw_only=True)
class Image:
    """One decoded image: native dtype, canonical orientation, nothing that identifies a person."""

    array: np.ndarray  # [C, D, H, W] or [C, H, W]
    spacing: tuple[float, ...] | None = None  # mm, in array order; None: the file does not say
    affine: np.ndarray | None = None  # [4, 4] index (d, h, w, 1) -> RAS+ mm; None for plain pictures
    jpeg: bytes | None = None  # source JPEG bytes, metadata stripped, when they decode to exactly `array`
    modality: Modality | None = None  # what the file itself says
    facts: dict[str, Any] = field(default_factory=dict)  # allow-listed technical facts, plain JSON values
    part: str = ""  # which part of the file it is, where its place says more than its number: a slide's tile

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 2 or 3."""
        return self.array.ndim - 1


@dataclass(slots=True, kw_only=True)
class Sample:
    """One image in a shard. `meta` is exactly what `key.json` holds (see shards/format.py)."""

    key: str
    image: np.ndarray  # [C, D, H, W] or [C, H, W], native dtype
    mask: np.ndarray | None = None  # [D, H, W] or [H, W], unsigned integer
    jpeg: bytes | None = None  # stored instead of `image` when present
    meta: dict[str, Any] = field(default_factory=dict)
