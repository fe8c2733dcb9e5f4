"""Small folders of shards, made from arrays, for the tests of everything that reads shards."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from medloom.data.ingest.preprocess import describe
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.reader import Shards
from medloom.data.shards.writer import ShardWriter
from PIL import Image as Pillow


def make_sample(
    key: str, image: np.ndarray, *, mask: np.ndarray | None = None, jpeg: bytes | None = None, **meta: Any
) -> Sample:
    """A Sample with complete metadata; `meta` overrides single entries."""
    ndim = image.ndim - 1
    known: dict[str, Any] = dict.fromkeys(META_KEYS) | {
        "format": FORMAT_VERSION,
        "key": key,
        "dataset": key.rpartition("-")[0],
        "modality": "ct" if ndim == 3 else "x-ray",
        "organ": "chest",
        "licence": "CC0-1.0",
        "ndim": ndim,
        "shape": list(image.shape),
        "dtype": image.dtype.name,
        "labels": {},
        "facts": {},
    }
    return Sample(key=key, image=image, mask=mask, jpeg=jpeg, meta=known | meta)


@dataclass
class Folder:
    """A finished folder of shards and the samples that were put in, by key."""

    path: Path
    samples: dict[str, Sample] = field(default_factory=dict)

    def tar(self, name: str) -> Path:
        return self.path / name


def write_folder(path: Path, shards: dict[str, list[Sample]]) -> Folder:
    """Write {"a-3d": [...], "b-2d": [...]} as one shard a source, with a manifest."""
    path.mkdir(parents=True, exist_ok=True)
    sources = []
    for source_id, samples in shards.items():
        dataset, _, kind = source_id.rpartition("-")
        with ShardWriter(path / f"{source_id}-00000.tar") as writer:
            for sample in samples:
                writer.add(sample)
        entry = writer.entry
        sources.append(
            SourceEntry(
                id=source_id,
                dataset=dataset,
                ndim=int(kind[0]),
                count=entry.count,
                licence="CC0-1.0",
                shards=(entry,),
            )
        )
    Manifest(name="test", sources=tuple(sources)).save(path)
    return Folder(path, {sample.key: sample for samples in shards.values() for sample in samples})


def write_layout(path: Path, layout: dict[str, list[int]]) -> Path:
    """Write {"a-2d": [3, 0, 5], "b-3d": [2]}: sources with so many samples a shard, all different."""
    path.mkdir(parents=True, exist_ok=True)
    sources = []
    for number, (source_id, counts) in enumerate(layout.items()):
        dataset, _, kind = source_id.rpartition("-")
        generator = np.random.default_rng(number)
        entries, made = [], 0
        for shard, count in enumerate(counts):
            with ShardWriter(path / f"{source_id}-{shard:05d}.tar") as writer:
                for place in range(made, made + count):
                    shape = (1, 12, 10) if kind == "2d" else (1, 8, 12, 10)
                    image = generator.integers(0, 255, shape).astype(np.uint8)
                    modality = "x-ray" if kind == "2d" else "mri"
                    stats = describe(image, modality)
                    writer.add(make_sample(f"{dataset}-{place:04d}", image, modality=modality, stats=stats))
                made += count
            entries.append(writer.entry)
        sources.append(
            SourceEntry(
                id=source_id, dataset=dataset, ndim=int(kind[0]), count=sum(counts), licence="CC0-1.0",
                shards=tuple(entries),
            )
        )  # fmt: skip
    Manifest(name="layout", sources=tuple(sources)).save(path)
    return path


@pytest.fixture(scope="session")
def make_layout() -> Callable[[Path, dict[str, list[int]]], Path]:
    """`make_layout(folder, {"a-2d": [3, 5]})` writes shards with so many samples each."""
    return write_layout


@pytest.fixture(scope="session")
def damage() -> Callable[[Path, str], str]:
    """`damage(folder, key)` flips a bit in the image of a sample and returns the name of its shard."""

    def damage_sample(folder: Path, key: str) -> str:
        shards = Shards.open(folder)
        ref = shards.find(key)
        handle = shards._handle(ref.shard)
        member = handle.index.members_of(ref.ordinal)[1]
        at = member.offset + member.size // 2
        data = bytearray(handle.path.read_bytes())
        data[at] ^= 8
        handle.path.write_bytes(data)
        return handle.path.name

    return damage_sample


def smooth(shape: tuple[int, ...], high: float, dtype: Any, seed: int = 0) -> np.ndarray:
    """A smooth field with a little noise: compresses as images do."""
    generator = np.random.default_rng(seed)
    grids = np.meshgrid(*[np.linspace(0, 3 + i, n) for i, n in enumerate(shape)], indexing="ij")
    field_ = sum(np.sin(grid * (1.3 + 0.4 * i)) for i, grid in enumerate(grids))
    field_ = (field_ - field_.min()) / (field_.max() - field_.min())
    return ((field_ * 0.9 + generator.random(shape) * 0.1) * high).astype(dtype)


def jpeg_of(image: np.ndarray) -> tuple[bytes, np.ndarray]:
    """JPEG bytes of a [3, H, W] uint8 image, and what they decode to."""
    buffer = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "JPEG", quality=90)
    decoded = np.asarray(Pillow.open(io.BytesIO(buffer.getvalue()))).transpose(2, 0, 1)
    return buffer.getvalue(), np.ascontiguousarray(decoded)


def example_samples() -> dict[str, list[Sample]]:
    """Every way of storing: volumes with and without mask, 16-bit, small lossless, large, JPEG."""
    ct = (smooth((1, 70, 100, 90), 2000, np.int16) - 1000).astype(np.int16)
    ct[:, :64, :64, :64] = 0  # a whole chunk of zeros takes no bytes
    mask = (ct[0] > 0).astype(np.uint8)
    thick = smooth((2, 9, 80, 70), 1, np.float32, 1)
    xray = smooth((1, 700, 600), 60000, np.uint16, 2)
    icon = smooth((3, 40, 50), 255, np.uint8, 3)
    data, photo = jpeg_of(smooth((3, 500, 640), 255, np.uint8, 4))
    photo_mask = (photo[0] > 99).astype(np.uint8)
    return {
        "vol-3d": [
            make_sample("vol-a", ct, mask=mask, spacing=[1.0, 1.0, 1.0], labels={"class": "x"}),
            make_sample("vol-b", thick, spacing=[5.0, 0.5, 0.5], modality="mri"),
        ],
        "pic-2d": [
            make_sample("pic-a", xray),
            make_sample("pic-b", icon),
            make_sample("pic-c", photo, jpeg=data, mask=photo_mask),
        ],
    }


@pytest.fixture(scope="session")
def _example(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("example"), example_samples())


@pytest.fixture
def example(_example: Folder) -> Folder:
    """A folder of shards to read; do not change it."""
    return _example


@pytest.fixture
def example_copy(tmp_path: Path) -> Folder:
    """A folder of shards to damage."""
    return write_folder(tmp_path / "copy", example_samples())


@pytest.fixture
def flip() -> Callable[[Path, int], None]:
    """Flip one bit of a file at a byte offset."""

    def flip_bit(path: Path, offset: int, bit: int = 3) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 1 << bit
        path.write_bytes(data)

    return flip_bit


NAME = "Mustermann"


def write_collection(folder: Path, *, volumes: int = 6, pictures: int = 10, held_out: str = "[]") -> Path:
    """Volumes with masks and splits, PNG and JPEG pictures by class, a person's name in all paths."""
    generator = np.random.default_rng(0)
    ct, derm = folder / "ct", folder / "derm"
    ct.mkdir(parents=True)
    derm.mkdir()
    rows = ["path,mask,subject,split"]
    for number in range(volumes):
        volume = generator.normal(-900, 30, (24, 22, 20)).astype(np.int16)
        volume[6:18, 5:17, 4:16] = 40 + number
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), ct / f"{NAME}_{number}.nii.gz")
        label = (volume > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), ct / f"{NAME}_{number}_seg.nii.gz")
        split = "test" if number >= volumes - 2 else "train"
        name = f"{NAME}_{number}"
        rows.append(f"{name}.nii.gz,{name}_seg.nii.gz,{NAME}{number // 2},{split}")
    (ct / "manifest.csv").write_text("\n".join(rows) + "\n")
    rows = ["path,label,subject,split"]
    for number in range(pictures):
        pixels = generator.integers(0, 255, (48, 40, 3), np.uint8)
        name = f"{NAME}-{number}.{'png' if number % 2 else 'jpg'}"
        Pillow.fromarray(pixels).save(derm / name)
        rows.append(f"{name},{'ab'[number % 2]},{NAME}{number // 2},train")
    (derm / "manifest.csv").write_text("\n".join(rows) + "\n")
    path = folder / "collection.yaml"
    path.write_text(
        textwrap.dedent(f"""
        name: small
        salt: a-salt-for-tests
        held_out: {held_out}
        sources:
          - dataset: ct
            layout: table
            root: ct
            modality: ct
            organ: chest
            licence: CC0-1.0
            mask_classes: {{1: box}}
            options: {{mask: mask, subject: subject, split: split}}
          - dataset: derm
            layout: table
            root: derm
            modality: dermoscopy
            organ: skin
            licence: CC-BY-4.0
            options: {{label: label, subject: subject, split: split}}
        """)
    )
    return path


@pytest.fixture
def make_collection() -> Callable[..., Path]:
    """`make_collection(folder, held_out="[]")` writes a small collection and gives its YAML."""
    return write_collection


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Relative name -> bytes of every file below a folder."""

    def read_all(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read_all
