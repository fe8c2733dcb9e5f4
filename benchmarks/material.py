"""The images that all peers load: generated, so that anyone can repeat the run; real ones where they are.

Volumes are the built-in phantoms, drawn small, enlarged, and given scanner noise at full size, so that they
compress as CT and MR do (about 3.0 and 2.5 times with zstd 1 and shuffle); pictures are phantom histology.
A folder is complete when `case.json` is in it, and is used again by the next run.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .peers.base import Material

REAL_SHARDS = "real-shards"  # below the working folder


@dataclass(frozen=True)
class Case:
    """One row group of the result: what is loaded, how much of it, and in what crops."""

    name: str
    title: str
    kind: str  # "volume" or "picture"
    shape: tuple[int, ...]  # of an image
    count: int
    crop: tuple[int, ...]
    batch: int
    material: str = ""  # folder of another case with the same images
    decode: bool = True

    @property
    def folder(self) -> str:
        """Name of the folder with the images."""
        return self.material or self.name


def cases(scale: str, real: Path | None) -> list[Case]:
    """The cases of a full, a quick or a tiny run ("tiny" is for tests)."""
    ct, mr, crop, count, pictures = {
        "full": ((200, 512, 512), (256, 256, 256), 96, 4, 6000),
        "quick": ((128, 320, 320), (192, 192, 192), 96, 4, 1200),
        "tiny": ((48, 64, 64), (48, 48, 48), 32, 2, 96),
    }[scale]
    side = 32 if scale == "tiny" else 224
    cube, batch = (crop,) * 3, 4 if scale != "tiny" else 2
    picture, many = (side, side), 64 if scale != "tiny" else 16
    found = [
        Case("ct", f"{crop}^3 crops of CT {_times(ct)} int16", "volume", ct, count, cube, batch),
        Case("mr", f"{crop}^3 crops of MR {_times(mr)} int16", "volume", mr, count, cube, batch),
    ]
    if real is not None:
        found.append(Case("real", "64^3 crops of real CT and MR volumes", "volume", (), 0, (64,) * 3, batch))
    title = f"{pictures} JPEG pictures of {side}x{side}, whole"
    found += [
        Case("pictures", title, "picture", picture, pictures, picture, many),
        Case(
            "overhead", f"{title}, decoding left out", "picture", picture, pictures, (64, 64), many,
            material="pictures", decode=False,
        ),
    ]  # fmt: skip
    return found


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape[::-1])


def make(case: Case, work: Path, real: Path | None) -> Material:
    """Write the images of a case below `work`, or find them there."""
    material = Material(work / case.folder, case.kind)
    facts = json.loads(json.dumps(asdict(case) | {"name": case.folder, "title": "", "decode": True}))
    facts |= {"crop": facts["crop"] if case.kind == "volume" else list(case.shape), "material": ""}
    path = material.folder / "case.json"
    if path.is_file() and json.loads(path.read_text()) == facts:
        return material
    shutil.rmtree(material.folder, ignore_errors=True)
    for name in ("source", "raw", "peers"):
        (material.folder / name).mkdir(parents=True)
    writers: dict[str, Callable[[Case], Iterator[np.ndarray]]] = {"ct": _ct, "mr": mr, "pictures": _pictures}
    if case.name == "real" and real is not None:
        images = _real(real, case, work / REAL_SHARDS)
    else:
        images = writers[case.folder](case)
    for number, image in enumerate(images):
        _write(material, f"{number:05d}", image)
    path.write_text(json.dumps(facts))
    return material


def _write(material: Material, name: str, image: np.ndarray) -> None:
    if material.kind == "volume":
        nifti(material.source(name), image)
    else:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=92)
        material.source(name).write_bytes(buffer.getvalue())
        image = np.asarray(Image.open(buffer))
    np.save(material.folder / "raw" / f"{name}.npy", image)


def nifti(path: Path, volume: np.ndarray) -> None:
    """Write [D, H, W] as .nii.gz in RAS+ order with gzip's default level, as converters do."""
    import nibabel

    image = nibabel.Nifti1Image(volume.T, np.eye(4))  # type: ignore[attr-defined]
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


def enlarged(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import zoom

    factors = [n / s for n, s in zip(shape, small.shape, strict=True)]
    return np.asarray(zoom(small.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest"))


def _ct(case: Case) -> Iterator[np.ndarray]:
    """Torsos in HU; the air outside the body is cut off at -1024, as scanners do."""
    from medloom.data.phantoms import torso as phantom_torso
    from scipy.ndimage import gaussian_filter1d

    for number in range(case.count):
        rng = np.random.default_rng([7, number])
        body = phantom_torso.torso(rng, min(80, case.shape[1]), opacity=bool(number % 2))
        volume = enlarged(body.hounsfield, case.shape)
        noise = gaussian_filter1d(rng.standard_normal(case.shape, np.float32), 0.6, axis=2)
        inside = volume > -800
        volume += noise * np.where(inside, np.float32(20), np.float32(30))
        volume[~inside] -= 40
        yield np.rint(np.clip(volume, -1024, 3071)).astype(np.int16)


def mr(case: Case) -> Iterator[np.ndarray]:
    """T1 heads of 12 bits with the noise of a magnitude image."""
    from medloom.data.phantoms import head as phantom_head

    for number in range(case.count):
        rng = np.random.default_rng([8, number])
        small = (min(96, case.shape[0]),) * 3
        person = phantom_head.head(rng, small, (220.0,) * 3, grade=None)
        volume = enlarged(phantom_head.image(rng, person, "t1", snr=60.0), case.shape)
        parts = [rng.standard_normal(case.shape, np.float32) * 7 for _ in range(2)]
        magnitude = np.hypot(volume + parts[0], parts[1])
        yield np.rint(np.clip(magnitude, 0, 4095)).astype(np.int16)


def _pictures(case: Case) -> Iterator[np.ndarray]:
    """Crops of some larger tiles, turned and shifted, so that thousands cost seconds."""
    from medloom.data.phantoms import tissue as phantom_tissue

    rng = np.random.default_rng(9)
    side = case.shape[0]
    tiles = []
    for number in range(min(24, case.count)):
        label = phantom_tissue.CLASSES[number % 2]
        tiles.append(phantom_tissue.tile(rng, side, label, phantom_tissue.slide(rng)))
    for number in range(case.count):
        tile = np.roll(tiles[number % len(tiles)], rng.integers(0, side, 2), (0, 1))
        yield np.ascontiguousarray(np.rot90(tile, int(rng.integers(4))))


def _real(folder: Path, case: Case, shards: Path) -> Iterator[np.ndarray]:
    """Volumes of the real collection in 16 bits that hold the crop, as medloom's readers read them."""
    for volume, _ in real_volumes(folder, shards):
        if (
            volume.dtype == np.int16
            and volume.ndim == 3
            and all(n >= c for n, c in zip(volume.shape, case.crop, strict=True))
        ):
            yield volume


def real_volumes(real: Path, shards: Path) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """All volumes of the real collection, [D, H, W] or [C, D, H, W], with their metadata."""
    from medloom.data import open_shards
    from medloom.data.collection import Collection
    from medloom.data.config import find_config
    from medloom.data.ingest.build import build

    collection = Collection.load(find_config("collections", "realdata"), root=real)
    build(collection, shards, workers=2)
    stored = open_shards(shards)
    for ref in stored.refs():
        meta = stored.meta(ref)
        if meta["ndim"] == 3:
            image = stored.read(ref)
            yield (image[0] if len(image) == 1 else image), meta
