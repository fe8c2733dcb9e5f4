"""Words of the catalogue beyond `Modality` and `Organ`, which it shares with the shards (data/sample.py).

Every member is the token that stands in the tables, so that a row, a filter and a message speak alike. What
is recorded beside images but is none (text, EEG, MEG) is a `Companion`: a modality of a dataset, never of a
Sample.
"""

from __future__ import annotations

import re
from enum import StrEnum

from ..sample import Modality


class Companion(StrEnum):
    """What a dataset holds beside its images."""

    EEG = "eeg"
    MEG = "meg"
    TEXT = "text"


# Every token that the tables may have in the column `modalities`.
MODALITY_TOKENS: dict[str, Modality | Companion] = {m.value: m for m in (*Modality, *Companion)}


class Category(StrEnum):
    """The four groups of Li et al. 2021 (arXiv:2010.14565), assigned here by rule from modality and organ."""

    HEAD_NECK = "head-neck"
    CHEST_ABDOMEN = "chest-abdomen"
    PATHOLOGY_BLOOD = "pathology-blood"
    OTHERS = "others"


class Dims(StrEnum):
    """Dimensions of one image; `2d+t` is video, `3d+t` a volume over time."""

    D2 = "2d"
    D3 = "3d"
    D2T = "2d+t"
    D3T = "3d+t"
    WSI = "wsi"


class Task(StrEnum):
    """What a dataset is labelled or used for."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    DETECTION = "detection"
    LOCALIZATION = "localization"
    REGISTRATION = "registration"
    REGRESSION = "regression"
    RECONSTRUCTION = "reconstruction"
    TRACKING = "tracking"
    TRACTOGRAPHY = "tractography"
    PROGNOSIS = "prognosis"
    GENERATION = "generation"
    REPORT = "report"
    VQA = "vqa"
    RETRIEVAL = "retrieval"
    QUALITY_ASSESSMENT = "quality-assessment"
    DEPTH_ESTIMATION = "depth-estimation"
    DENOISING = "denoising"
    SUPER_RESOLUTION = "super-resolution"
    ANOMALY_DETECTION = "anomaly-detection"
    PRETRAINING = "pretraining"


class Unit(StrEnum):
    """What `n_images` counts; `volumes` are cases where a case has several sequences."""

    IMAGES = "images"
    VOLUMES = "volumes"
    SLIDES = "slides"
    VIDEOS = "videos"
    FRAMES = "frames"


class Access(StrEnum):
    """How the files are reached, from the easiest; derived from the host unless a better fact was known."""

    OPEN = "open"  # direct download, no account
    REGISTRATION = "registration"  # free account or terms to click
    CHALLENGE = "challenge"  # join on the challenge's site
    APPLICATION = "application"  # a person approves, a data use agreement, a fee
    GONE = "gone"  # withdrawn
    UNKNOWN = "unknown"


class RelationKind(StrEnum):
    """How the cases of dataset a relate to those of dataset b."""

    CONTAINS = "contains"  # (nearly) every case of b is inside a
    DERIVED_FROM = "derived-from"  # a re-labels, re-samples or crops cases of b, and adds few or none
    SHARES_CASES = "shares-cases"  # some cases are common
    SAME_AS = "same-as"
    MEMBER_OF = "member-of"  # b is an umbrella over separate sets; its members are no relatives by that alone


_FORMATS = (
    "nifti dicom png jpeg tiff bmp gif svs wsi mhd mha nrrd npz npy mat hdf5 mp4 avi pgm ppm parquet raw stl"
)
FORMATS = frozenset(_FORMATS.split())

_SOURCES = (
    "li2021 medimg msd imaging-x openmedlab sfikas beam linhandev tcia grand-challenge medmnist "
    "other:li2021-recalled other:aryayi other:idc other:amid other:adalca other:segevalkit other:curated "
    "other:reported"  # written by `medloom catalog report-error`, with its evidence in the notes
)
SOURCES = frozenset(_SOURCES.split())

# Sources of a row whose facts, or some of whose facts, come from a person's memory and were not re-read.
RECALLED = frozenset({"other:li2021-recalled", "other:curated"})

IDENTIFIER = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
