"""What a build costs and makes: speed against workers, memory against its bound, size against the files.

    python -m benchmarks.build                        # phantoms, CT/MR of real size, and the real collection
    python -m benchmarks.build --only large --json build.json

Each build runs in a process of its own; CPU seconds are those of its whole tree, memory is the largest sum of
the tree's resident sets, looked at 50 times a second (pages that workers share count more than once, so the
truth is below). The bound is what `data/ingest/needs.py` promises for units that may run side by side. Sizes
are compared with the .nii.gz, .png and .jpg that the collection came as; DICOM and other files with what gzip
(level 6) and PNG make of their pixels. Wall times need an idle machine; the load before is printed.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from medloom.data.collection import Collection, scan
from medloom.data.config import find_config
from medloom.data.ingest.build import SHARD_BYTES
from medloom.data.ingest.headers import header_of
from medloom.data.ingest.needs import WORKER_BYTES, need_of
from medloom.data.ingest.units import measured, plan
from medloom.data.phantoms.phantoms import generate
from medloom.data.shards.codec import PROFILES
from medloom.data.shards.reader import Shards
from medloom.scripts.console import print_table, say, size

from . import material
from .limits import host

SALT = "a-salt-for-benchmarks"
TARGET = 0.8  # of .nii.gz
COMPARED = 8  # images of a source that are packed as .nii.gz or .png to compare
CROPS = 60

CHILD = """
import json, os, sys, time
from pathlib import Path
from medloom.data.ingest.build import build
from medloom.data.collection import Collection

if __name__ == "__main__":
    yaml, root, salt, out, how = sys.argv[1:]
    collection = Collection.load(yaml, root=root or None, overrides=[f"salt={salt}"])
    start = time.perf_counter()
    build(collection, Path(out), **json.loads(how))
    print(json.dumps([time.perf_counter() - start, sum(os.times()[:4])]))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("phantoms", "large", "real"), nargs="*", help="default: all")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="those that have cores")
    parser.add_argument("--work", type=Path, help="folder for images and shards (default: temporary)")
    parser.add_argument("--real", type=Path, default=os.environ.get("MEDLOOM_REALDATA"))
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args(argv)
    work = arguments.work or Path(tempfile.gettempdir()) / "medloom-bench-build"
    work.mkdir(parents=True, exist_ok=True)
    workers = [n for n in arguments.workers if n <= (os.cpu_count() or 1)]
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "host": host(), "load_before": list(os.getloadavg()),
    }  # fmt: skip
    say(f"load before: {os.getloadavg()[0]:.1f}")
    for name, yaml, root in _collections(work, arguments.real):
        if not arguments.only or name in arguments.only:
            result[name] = _measure(name, yaml, root, work / "shards", workers)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        say(f"figures: {arguments.json}")
    return 0


def _collections(work: Path, real: Path | None) -> list[tuple[str, Path, Path | None]]:
    """(name, YAML, root) of what is built."""
    phantoms = work / "phantoms" / "collection.yaml"
    if not phantoms.is_file():
        generate(phantoms.parent, subjects=24)
    large = work / "large.yaml"
    sources = []
    for case in material.cases("quick", None):
        if case.name in ("ct", "mr"):
            folder = material.make(case, work, None).folder / "source"
            table = "\n".join(["path", *sorted(path.name for path in folder.iterdir())])
            (folder.parent / "manifest.csv").write_text(table.replace("\n", "\nsource/") + "\n")
            modality = "mri" if case.name == "mr" else "ct"
            sources.append(
                {"dataset": case.name, "layout": "table", "root": str(folder.parent), "modality": modality}
            )
    large.write_text(json.dumps({"name": "large", "sources": sources}))  # JSON is YAML
    found = [("phantoms", phantoms, None), ("large", large, None)]
    if real and (Path(real) / "index.json").is_file():
        found.append(("real", find_config("collections", "realdata"), Path(real)))
    else:
        say("real collection: not measured, MEDLOOM_REALDATA does not name it")
    return found


def _measure(name: str, yaml: Path, root: Path | None, out: Path, workers: list[int]) -> dict[str, Any]:
    collection = Collection.load(yaml, root=root, overrides=[f"salt={SALT}"])
    found = scan(collection)
    read = sum(measured(s, r)[0] for s, r in [*found.records, *found.held_out])
    speed: list[dict[str, Any]] = []
    sizes: dict[str, list[dict[str, Any]]] = {}
    crops: dict[str, float | None] = {}
    for profile in PROFILES:
        for count in workers if profile == "small" else workers[-1:]:
            folder = out / f"{name}-{profile}"
            shutil.rmtree(folder, ignore_errors=True)
            # Small shards, so that a small collection has work for all workers.
            shard_bytes = min(SHARD_BYTES, max(1 << 20, read // 16))
            how = {"workers": count, "profile": profile, "shard_bytes": shard_bytes}
            seconds, cpu, peak = _run([str(yaml), str(root or ""), SALT, str(folder), json.dumps(how)])
            shards = Shards.open(folder)
            stored = sum(source.bytes for source in shards.manifest.sources)
            speed.append({
                "profile": profile, "workers": count, "images": len(shards), "seconds": seconds,
                "images_per_s": (len(shards) + len(found.held_out)) / seconds,
                "in_MB_per_s": read / 1e6 / seconds, "out_MB_per_s": stored / 1e6 / seconds,
                "cpu_s": cpu, "peak_bytes": peak,
                "bound_bytes": _bound(collection, found, shard_bytes, count),
            })  # fmt: skip
        sizes[profile] = _sizes(found, Shards.open(out / f"{name}-{profile}"))
        crops[profile] = _crop_ms(Shards.open(out / f"{name}-{profile}"))
    _show(name, speed, sizes, crops)
    return {"speed": speed, "sizes": sizes, "crop_cpu_ms": crops}


def _run(arguments: list[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds of the tree, peak of its resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "child.py"
        script.write_text(CHILD)
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
        )
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            total = 0
            try:
                for one in [tree, *tree.children(recursive=True)]:
                    total += one.memory_info().rss
            except psutil.NoSuchProcess:
                pass
            peak = max(peak, total)
            time.sleep(0.02)
        assert process.stdout is not None
        seconds, cpu = json.loads(process.stdout.read().splitlines()[-1])
    return seconds, cpu, peak


def _bound(collection: Collection, found: Any, shard_bytes: int, workers: int) -> int:
    """Parent, workers, and the most that as many units as there are workers need at once."""
    needs = sorted(
        (need_of(unit) for pairs in (found.records, found.held_out) if pairs
         for unit in plan(pairs, shard_bytes=shard_bytes, salt=collection.salt)),
        reverse=True,
    )  # fmt: skip
    return (1 + workers) * WORKER_BYTES + sum(needs[:workers])


def _sizes(found: Any, shards: Shards) -> list[dict[str, Any]]:
    """A row a source: its bytes on disk, stored, and as .nii.gz or .png."""
    rows = []
    for source in shards.manifest.sources:
        files, kinds = 0, set()
        for origin, record in found.records:
            header = header_of(record) if origin.dataset == source.dataset else None
            if header is not None and header.ndim == source.ndim:
                files += measured(origin, record)[0]
                kinds.add(header.kind)
        peer = "jpg" if kinds == {"jpeg"} else "nii.gz" if source.ndim == 3 else "png"
        packed = float(files)
        if not all(kind.startswith(("jpeg", "nii.gz", "png")) for kind in kinds):
            packed = _packed(shards, source.id, peer)
        dtypes = {shards.meta(ref)["dtype"] for ref in list(shards.refs(source.id))[:200]}
        rows.append({
            "source": source.id, "kinds": sorted(kinds), "dtypes": sorted(dtypes), "images": source.count,
            "source_bytes": files, "stored_bytes": source.bytes, "peer": peer, "peer_bytes": packed,
            "of_source": source.bytes / max(1, files), "of_peer": source.bytes / max(1.0, packed),
        })  # fmt: skip
    return rows


def _packed(shards: Shards, source: str, peer: str) -> float:
    """Bytes of a source's images as .nii.gz or .png, from some of them."""
    refs = list(shards.refs(source))
    total = 0
    for ref in refs[:COMPARED]:
        image = shards.read(ref)
        if peer == "nii.gz":
            total += len(gzip.compress(image.tobytes(), 6))
        else:
            from PIL import Image as Pillow

            buffer = io.BytesIO()
            plain = image.astype(np.uint16) if image.dtype.itemsize > 1 else image
            pixels = plain.transpose(1, 2, 0) if len(plain) == 3 else plain[0]
            Pillow.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
            total += len(buffer.getvalue())
    return total * len(refs) / len(refs[:COMPARED])


def _crop_ms(shards: Shards) -> float | None:
    """CPU milliseconds of a warm 96^3 crop on the 32-voxel grid; None when no volume is large enough."""
    refs = [
        ref for ref in shards.refs()
        if shards.meta(ref)["ndim"] == 3 and min(shards.meta(ref)["shape"][1:]) >= 96
    ]  # fmt: skip
    if not refs:
        return None
    generator, times = np.random.default_rng(0), []
    for number in range(CROPS + 10):
        ref = refs[number % len(refs)]
        shape = shards.meta(ref)["shape"][1:]
        origin = [32 * int(generator.integers(0, (n - 96) // 32 + 1)) for n in shape]
        start = time.process_time()
        shards.read(ref, origin, (96, 96, 96))
        times.append(1000 * (time.process_time() - start))
    return float(np.median(times[10:]))


def _show(name: str, speed: list[dict], sizes: dict[str, list[dict]], crops: dict[str, float | None]) -> None:
    print_table(
        [{
            "profile": row["profile"], "workers": row["workers"], "s": round(row["seconds"], 1),
            "images/s": round(row["images_per_s"]), "MB/s in": round(row["in_MB_per_s"], 1),
            "MB/s out": round(row["out_MB_per_s"], 1), "CPU s": round(row["cpu_s"], 1),
            "peak memory": size(row["peak_bytes"]), "bound": size(row["bound_bytes"]),
        } for row in speed],
        title=f"\n{name}: building (held-out images are read and hashed, and count as images and as MB in)",
    )  # fmt: skip
    fast = {row["source"]: row for row in sizes["fast"]}
    print_table(
        [{
            "source": row["source"], "kinds": ", ".join(row["kinds"]), "dtypes": ", ".join(row["dtypes"]),
            "images": row["images"], "source MB": round(row["source_bytes"] / 1e6, 2),
            "of source": round(row["of_source"], 2), "peer": row["peer"], "of peer": round(row["of_peer"], 2),
            "fast": round(fast[row["source"]]["of_peer"], 2),
        } for row in sizes["small"]],
        title=f"\n{name}: stored size",
    )  # fmt: skip
    volumes = [row for row in sizes["small"] if row["peer"] == "nii.gz"]
    if volumes:
        ratio = sum(row["stored_bytes"] for row in volumes) / sum(row["peer_bytes"] for row in volumes)
        say(f"volumes together: {ratio:.2f} of .nii.gz (target: {TARGET} at most)")
    if crops["small"] and crops["fast"]:
        say(f"warm 96^3 crop, CPU ms: small {crops['small']:.2f}, fast {crops['fast']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
