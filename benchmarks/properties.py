"""What is no contest of loaders: growth, deep pictures, sizes of real volumes, start, resume, damage."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import material
from .peers.base import Load, Material
from .peers.medloom_shards import collection, ensured, stream_of


def properties(work: Path, scale: str, real: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure each; a fault is a reason in the result, not the end of the run."""
    cases = {case.name: case for case in material.cases(scale, real)}
    pictures = material.make(cases["pictures"], work, real)
    tiny = scale == "tiny"
    parts: dict[str, Callable[[], Any]] = {
        "growth": lambda: growth(work / "growth", scale),
        "deep": lambda: deep(work / "deep", scale),
        "start_large": lambda: start_large(
            work / "large", pictures, 10_000_000 if scale != "tiny" else 10_000
        ),
        "resume": lambda: resume(pictures),
        "elastic": lambda: elastic(pictures),
        "corruption": lambda: corruption(work / "damage", pictures, 4 if tiny else 100),
    }
    if real is not None:
        parts["stored_real"] = lambda: stored_real(real, work / material.REAL_SHARDS)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        say(f"properties: {name}")
        try:
            found[name] = part()
        except Exception as error:
            found.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            say(f"properties: {name} failed: {error}")
    return found


def growth(work: Path, scale: str) -> dict[str, float]:
    """Cost of a crop of a volume eight times as large, over that of the smaller one; turn by turn."""
    from medloom.data import open_shards

    side, crop = (48, 32) if scale == "tiny" else (192, 96)
    case = material.Case("mr", "", "volume", (side,) * 3, 1, (crop,) * 3, 1)
    small = next(material.mr(case))
    large = np.tile(small, (2, 2, 2))
    stored = []
    for name, volume in (("small", small), ("large", large)):
        folder = Material(work / name, "volume")
        if not (folder.folder / "source").is_dir():
            (folder.folder / "source").mkdir(parents=True)
            material.nifti(folder.source("00000"), volume)
        stored.append(open_shards(ensured(folder)))
    times: list[list[float]] = [[], []]
    rng = np.random.default_rng(0)
    for turn in range(20 if scale == "tiny" else 200):
        for number, shards in list(enumerate(stored))[:: 1 if turn % 2 else -1]:
            # The large volume is eight times the small one, and crops stay inside a copy: the same voxels.
            inside = rng.integers(0, (side - crop) // 32 + 1, 3) * 32
            origin = (inside + rng.integers(0, number + 1, 3) * side).tolist()
            ref = next(shards.refs())
            start = time.process_time()
            shards.read(ref, origin, (crop,) * 3)
            times[number].append(time.process_time() - start)
    low, high = (median(values[5:]) for values in times)
    return {"medloom": high / low, "small_ms": 1000 * low, "large_ms": 1000 * high}


def deep(work: Path, scale: str) -> dict[str, float]:
    """Crops a second and core out of 16-bit pictures: shards, PNG, mapped .npy, turn by turn; and bytes."""
    from medloom.data import open_shards
    from PIL import Image

    side, crop, count = (512, 64, 1) if scale == "tiny" else (2048, 224, 3)
    pictures = _radiographs(work, side, count)
    stored = open_shards(ensured(pictures))
    refs, names = list(stored.refs()), pictures.names
    arrays = [np.load(work / "raw" / f"{name}.npy", mmap_mode="r") for name in names]
    rng = np.random.default_rng(0)

    def ours(number: int, y: int, x: int) -> np.ndarray:
        return stored.read(refs[number], (y, x), (crop, crop))

    def png(number: int, y: int, x: int) -> np.ndarray:
        with Image.open(pictures.source(names[number]).with_suffix(".png")) as picture:
            return np.asarray(picture)[y : y + crop, x : x + crop].copy()

    def mapped(number: int, y: int, x: int) -> np.ndarray:
        return arrays[number][y : y + crop, x : x + crop].copy()

    seconds: dict[str, list[float]] = {"medloom": [], "png": [], "npy": []}
    for _ in range(8):
        for name, read, times in (("medloom", ours, 100), ("png", png, 2), ("npy", mapped, 100)):
            places = [
                (int(n), *map(int, rng.integers(0, side - crop, 2))) for n in rng.integers(0, count, times)
            ]
            start = time.process_time()
            for place in places:
                read(*place)
            seconds[name].append((time.process_time() - start) / times)
    shards = sum(path.stat().st_size for path in ensured(pictures).glob("*.tar"))
    found = {f"{name}_per_s": 1 / max(median(values), 1e-9) for name, values in seconds.items()}
    png_bytes = sum(path.stat().st_size for path in (work / "source").iterdir())
    return found | {"medloom_bytes": shards, "png_bytes": png_bytes}


def _radiographs(work: Path, side: int, count: int) -> Material:
    """12-bit radiographs of phantoms, enlarged, with the noise of a detector."""
    from medloom.data.phantoms import torso as phantom_torso
    from PIL import Image

    class Png(Material):
        def source(self, name: str) -> Path:
            return self.folder / "source" / f"{name}.png"

    pictures = Png(work, "picture")
    if not (work / "raw").is_dir():
        (work / "source").mkdir(parents=True, exist_ok=True)
        (work / "raw").mkdir()
        for number in range(count):
            rng = np.random.default_rng([10, number])
            film = phantom_torso.radiograph(rng, phantom_torso.torso(rng, 64, opacity=False), 256)
            film = film.astype(np.float32) * (4000 / max(1.0, float(film.max())))
            image = material.enlarged(film, (side, side))
            image += rng.standard_normal((side, side), np.float32) * 12
            pixels = np.rint(np.clip(image, 0, 4095)).astype(np.uint16)
            np.save(work / "raw" / f"{number:05d}.npy", pixels)
            Image.fromarray(pixels).save(pictures.source(f"{number:05d}"))
    return pictures


def stored_real(real: Path, shards: Path) -> dict[str, float]:
    """Bytes of all real volumes as .nii.gz (gzip 6, the same voxels and dtype) and in shards."""
    import gzip

    import nibabel

    nifti = count = 0
    for volume, _ in material.real_volumes(real, shards):
        image = nibabel.Nifti1Image(volume.T, np.eye(4))  # type: ignore[attr-defined]
        nifti += len(gzip.compress(image.to_bytes(), 6))
        count += 1
    return {"volumes": count, "nifti": nifti, "shards": _volume_bytes(shards)}


def _volume_bytes(shards: Path) -> int:
    """Bytes of the images of all volumes, the tar's padding counted; no label maps, as in the .nii.gz."""
    import tarfile

    total = 0
    for path in shards.glob("*-3d-*.tar"):
        with tarfile.open(path) as archive:
            for info in archive:
                if not info.name.endswith(".seg.b2nd"):
                    total += 512 + -(-info.size // 512) * 512
    return total


def start_large(work: Path, pictures: Material, samples: int) -> dict[str, float]:
    """Seconds to the first batch of ten million samples: one shard of pictures under very many names."""
    from medloom.data.ingest.build import build
    from medloom.data.loader.loader import loader
    from medloom.data.shards.manifest import Manifest

    one, many = work / "one", work / "many"
    shutil.rmtree(many, ignore_errors=True)
    many.mkdir(parents=True)
    build(collection(pictures), one, shard_bytes=1 << 40)
    manifest = Manifest.load(one)
    (source,) = manifest.sources
    (entry,) = source.shards
    copies = -(-samples // entry.count)
    names = [f"bench-2d-{number:05d}.tar" for number in range(copies)]
    for name in names:
        for suffix in (".tar", ".idx"):
            (many / name).with_suffix(suffix).hardlink_to((one / entry.file).with_suffix(suffix))
    shards = tuple(replace(entry, file=name) for name in names)
    grown = replace(source, count=entry.count * copies, shards=shards)
    replace(manifest, sources=(grown,)).save(many)
    start = time.perf_counter()
    load = Load((32, 32), 64, workers=2)
    batches: Any = loader(stream_of(many, "picture", load), rank=0, world=1, start_step=0, steps=1000)
    next(iter(batches))
    seconds = time.perf_counter() - start
    batches.close()
    shutil.rmtree(many)
    return {"samples": grown.count, "shards": copies, "seconds": seconds}


def _batches(folder: Path, steps: range, *, rank: int = 0, world: int = 1, size: int = 48) -> list[Any]:
    from medloom.data.loader.loader import loader

    stream = stream_of(folder, "picture", Load((32, 32), size, workers=0))
    return list(loader(stream, rank=rank, world=world, start_step=steps.start, steps=steps.stop))


def resume(pictures: Material) -> dict[str, float]:
    """A run that starts in the middle gives the batches of one that never stopped; its cost far on."""
    folder = ensured(pictures)
    whole, rest = _batches(folder, range(12)), _batches(folder, range(6, 12))
    equal = sum(
        a["key"] == b["key"] and bool((a["image"] == b["image"]).all())
        for a, b in zip(whole[6:], rest, strict=True)
    )
    times: dict[int, list[float]] = {0: [], 10**7: []}
    for _ in range(5):
        for step, seconds in times.items():
            start = time.perf_counter()
            _batches(folder, range(step, step + 1))
            seconds.append(time.perf_counter() - start)
    stream = stream_of(folder, "picture", Load((32, 32), 48, workers=0))
    state = stream.state([48 * 10**7])
    return {
        "batches": len(rest), "equal": equal, "state_bytes": len(json.dumps(state)),
        "far_over_near": median(times[10**7]) / median(times[0]),
    }  # fmt: skip


def elastic(pictures: Material) -> dict[str, int]:
    """The global batch of each step, put together from 8, 3 and 16 ranks, against that of one."""
    folder, steps = ensured(pictures), range(3, 6)
    whole = [batch["key"] for batch in _batches(folder, steps)]
    equal = 0
    for world in (8, 3, 16):
        ranks = [_batches(folder, steps, rank=rank, world=world) for rank in range(world)]
        joined = [[key for rank in ranks for key in rank[n]["key"]] for n in range(len(steps))]
        equal += sum(a == b for a, b in zip(whole, joined, strict=True))
    return {"steps": 3 * len(steps), "equal": equal}


def corruption(work: Path, pictures: Material, damages: int) -> dict[str, Any]:
    """Flip bits and cut shards of a copy: `check` must find each; the loader must give as many batches."""
    from medloom.data.shards.check import check

    shutil.rmtree(work, ignore_errors=True)
    few = Material(work / "few", "picture")
    (few.folder / "source").mkdir(parents=True)
    for name in pictures.names[:48]:
        shutil.copy(pictures.source(name), few.source(name))
    folder = ensured(few)
    tars = sorted(folder.glob("*.tar"))
    before = len(_batches(folder, range(4), size=12))
    rng, found = np.random.default_rng(0), 0
    for number in range(damages):
        tar = tars[number % len(tars)]
        data = tar.read_bytes()
        if number % 10 == 9:
            tar.write_bytes(data[: int(rng.integers(1, len(data)))])
        else:
            tar.write_bytes(_flipped(data, int(rng.integers(len(data))), int(rng.integers(8))))
        found += bool(check(folder))
        tar.write_bytes(data)
    tars[0].write_bytes(_flipped(tars[0].read_bytes(), _inside_a_picture(tars[0]), 3))
    after = len(_batches(folder, range(4), size=12))
    return {"injected": damages, "found": found, "batches": "unchanged" if before == after else f"{after}"}


def _flipped(data: bytes, byte: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def _inside_a_picture(tar: Path) -> int:
    import tarfile

    with tarfile.open(tar) as archive:
        info = next(info for info in archive if info.name.endswith(".jpg"))
    return info.offset_data + info.size // 2
