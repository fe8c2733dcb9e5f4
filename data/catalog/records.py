"""The rows of the catalogue as typed records: Dataset, MsdTask, MedMnistSet, Overlap.

Every record knows where its facts come from (`sources`, `basis`, `*_status`), and says by `basis` whether
they were read in a source or recalled. A row does not record which of its fields are the recalled ones: with
"partly recalled", any may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..sample import Modality, Organ
from .vocabulary import RECALLED, Access, Category, Companion, Dims, RelationKind, Task, Unit

BUILT_IN = "built-in"


class Basis(StrEnum):
    """Whether facts were read in a source, or written from memory and not re-read."""

    READ = "read"
    PARTLY_RECALLED = "partly recalled"
    RECALLED = "recalled"
    OWN = "own"  # the user's own record


MARKS = {Basis.READ: "", Basis.PARTLY_RECALLED: "~", Basis.RECALLED: "~~", Basis.OWN: "+"}
MEANING = {
    "~": "some facts recalled, not re-read (`show` says which kind)",
    "~~": "all facts recalled, not re-read",
    "+": "your own record",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One public dataset. Empty tuples, empty strings and None mean unknown."""

    id: str
    name: str
    year: int | None = None  # of release; for rows known only from portals often the year of upload
    modalities: tuple[Modality | Companion, ...] = ()
    organs: tuple[Organ, ...] = ()
    category: Category | None = None
    dims: tuple[Dims, ...] = ()
    tasks: tuple[Task, ...] = ()
    n_images: int | None = None  # in `unit`
    n_subjects: int | None = None
    unit: Unit | None = None
    formats: tuple[str, ...] = ()
    access: Access = Access.UNKNOWN
    licence: str = ""  # SPDX where there is one; " / " joins several inside one set
    homepage: str = ""
    download: tuple[str, ...] = ()
    paper: str = ""  # doi:..., arXiv:... or a URL
    sources: tuple[str, ...] = ()
    notes: str = ""
    origin: str = BUILT_IN  # or the YAML file of the user's own record

    @property
    def basis(self) -> Basis:
        """Whether this row was read in a source, partly or wholly recalled, or is the user's own."""
        if self.origin != BUILT_IN:
            return Basis.OWN
        recalled = RECALLED.intersection(self.sources)
        if not recalled:
            return Basis.READ
        return Basis.RECALLED if recalled.issuperset(self.sources) else Basis.PARTLY_RECALLED

    @property
    def recalled(self) -> tuple[str, ...]:
        """What of this row was recalled and not re-read, in sentences; empty when nothing was."""
        found = []
        if self.basis is Basis.RECALLED:
            found.append("all fields were recalled; no source was read")
        elif "other:curated" in self.sources:
            found.append("some fields were filled or corrected from memory; which ones is not recorded")
        if "other:li2021-recalled" in self.sources:
            found.append("that Li et al. 2021 lists it was recalled; its tables could not be opened")
        return tuple(found)

    @property
    def mark(self) -> str:
        """The sign of `basis` that every view shows: see MEANING."""
        return MARKS[self.basis]


@dataclass(frozen=True, slots=True, kw_only=True)
class MsdTask:
    """One task of the Medical Segmentation Decathlon (arXiv:1902.09063). Scores: percent by structure."""

    dataset: str  # id of the Dataset
    task_id: str  # Task03
    name: str
    folder: str  # Task03_Liver, in the archive
    modality: str
    channels: dict[int, str]
    labels: dict[int, str]
    n_train: int
    n_test: int
    n_note: str
    voxel_format: str
    median_spacing_mm: tuple[float, ...]  # (x, y, z), as published
    median_shape: tuple[int, ...]  # (x, y, z)
    licence: str
    institution: str
    paper: tuple[str, ...]
    homepage: str
    url_aws: str  # the .tar
    url_gdrive: str
    archive_md5: str
    md5_source: str
    nsd_tolerance_mm: float
    nsd_tolerance_status: str
    scores: dict[
        str, tuple[float, ...]
    ]  # {"nnunet_leaderboard_dsc": (95.75, 75.97), ...}, foreground in order
    results_source: str
    results_status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MedMnistSet:
    """One set of MedMNIST v2 / MedMNIST+ (doi:10.1038/s41597-022-01721-8)."""

    id: str  # also the id of the Dataset
    python_class: str
    modality: Modality
    task: str  # binary-class, multi-class, "multi-label, binary-class", ordinal-regression
    n_classes: int
    labels: dict[int, str]
    n_channels: int
    n_train: int
    n_val: int
    n_test: int
    n_total: int
    sizes: tuple[int, ...]  # 28, 64, 128, 224 in 2D; 28, 64 in 3D
    md5: dict[int, str]  # by size, of the .npz
    url: dict[int, str]  # by size
    licence: str
    source_dataset: str  # id of the Dataset it was made from, or words where it is none
    native_format: str
    scores: dict[str, float]  # {"resnet_18_28_auc": 0.983, ...}
    results_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One recorded relation: `a` relation `b`."""

    a: str
    relation: RelationKind
    b: str
    evidence_url: str = ""
    basis_note: str = ""  # the table's own words
    origin: str = BUILT_IN

    @property
    def basis(self) -> Basis:
        """Whether the relation was read in a source or recalled."""
        if self.origin != BUILT_IN:
            return Basis.OWN
        return Basis.READ if self.basis_note.startswith("read") else Basis.RECALLED

    def __str__(self) -> str:
        return f"{self.a} {self.relation} {self.b}"
