"""How well and how fast a curation works: hashes by the million, injected copies, injected faults.

    python -m benchmarks.curation --real FOLDER --out benchmarks/results/DATE-curation.md
    python -m benchmarks.curation --only index          # needs no images

index: a million generated hashes, uniform and in 2,000 kinds; beside a brute-force comparison in numpy and,
where faiss is installed, its binary indices (a share of the queries, scaled up).
copies: images of a real collection beside changed copies of some of them, through the whole of `curate`. A
copy is found when it is listed with an image of its own family; findings between different images are listed
by dataset: near copies that the collection itself holds, and false alarms (look at the sheets).
quality: faults put beside all images of a dataset; false alarms are findings on its own images.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from medloom.data.collection import Collection, scan
from medloom.data.config import find_config
from medloom.data.curate.curate import Result, curate
from medloom.data.curate.index import RADIUS, pairs_within
from medloom.data.curate.sheets import draw
from medloom.data.readers import read

from .injected import COPIES_2D, COPIES_3D, FAULTS, picture
from .limits import host

SALT = "a-salt-for-benchmarks"
FAMILIES_2D, FAMILIES_3D = 20, 40  # originals a dataset, volumes in all
FAULTY = 8  # faults a dataset and rule
JUDGED = (
    "xray_chest_pneumonia",
    "derm_ham10000",
    "us_breast_busi",
    "fundus_odir_cataract",
    "histo_lung_lc25000",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and, with --out, write; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("index", "copies", "quality"), nargs="*", help="default: all")
    parser.add_argument("--count", type=int, default=1_000_000, help="hashes")
    parser.add_argument("--real", type=Path, default=os.environ.get("MEDLOOM_REALDATA"))
    parser.add_argument("--work", type=Path, help="folder for images and sheets (default: temporary)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--index-of", choices=("uniform", "kinds"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.index_of:
        measure_index(arguments.index_of, arguments.count)
        return 0
    wanted = arguments.only or ["index", "copies", "quality"]
    work = arguments.work or Path(tempfile.mkdtemp(prefix="medloom-curation-"))
    machine = ", ".join(f"{name} {value}" for name, value in host().items())
    command = " ".join(["python -m benchmarks.curation", *(["--only", *wanted] if arguments.only else [])])
    lines = [f"# Curation\n\n`{command}`; {machine}; load before {os.getloadavg()[0]:.1f}\n"]
    if "index" in wanted:
        lines += index_tables(arguments.count)
    if arguments.real and "copies" in wanted:
        lines += copies_tables(Path(arguments.real), work, arguments.workers)
    if arguments.real and "quality" in wanted:
        lines += quality_tables(Path(arguments.real), work, arguments.workers)
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    return 0


def generated(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint64 [N] with planted neighbours [P, 2].

    "kinds": 2,000 kinds of image, within which a bit differs from its kind with a chance of 0.2, as measured
    within datasets of a real collection.
    """
    rng = np.random.default_rng(0)
    if kind == "uniform":
        found = rng.integers(0, 1 << 63, count, dtype=np.uint64)
    else:
        found = rng.integers(0, 1 << 63, 2000, dtype=np.uint64)[rng.integers(0, 2000, count)]
        for bit in range(63):
            found ^= (rng.random(count) < 0.2).astype(np.uint64) << np.uint64(bit)
    copies = rng.permutation(count)[: count // 50].reshape(2, -1)
    for one, other in copies.T:
        flips = rng.choice(63, int(rng.integers(0, RADIUS + 1)), replace=False)
        found[other] = found[one] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    return found, np.sort(copies.T, axis=1)


def measure_index(kind: str, count: int) -> None:
    """In a process of its own: seconds, peak memory, pairs, recall of planted ones."""
    hashes, planted = generated(kind, count)
    start, cpu = time.perf_counter(), time.process_time()
    keys = [one * count + other for one, other in pairs_within(hashes, hashes)]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = np.unique(np.concatenate(keys))
    recall = np.isin(planted[:, 0] * count + planted[:, 1], found).mean()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| index, {kind} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} | {len(found):,} | {recall:.4f} |")
    if kind == "uniform":
        _peers(hashes, count)


def _peers(hashes: np.ndarray, count: int) -> None:
    asked = hashes[: max(64, count // 1000)]
    start = time.perf_counter()
    for value in asked:
        np.flatnonzero(np.bitwise_count(hashes ^ value) <= RADIUS)
    whole = (time.perf_counter() - start) * count / len(asked) / 2
    print(f"| numpy, all pairs (from {len(asked):,} queries) | {whole:,.0f} | | | | |")
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    faiss.omp_set_num_threads(1)
    rows = hashes.view(np.uint8).reshape(-1, 8)
    flat, hashed = faiss.IndexBinaryFlat(64), faiss.IndexBinaryMultiHash(64, 3, 21)
    hashed.nflip = 2
    for name, index, queries in (
        ("flat", flat, count // 200),
        ("multi-hash, 3 x 21, 2 flips", hashed, count // 200),
    ):
        index.add(rows)
        start = time.perf_counter()
        index.range_search(rows[:queries], RADIUS + 1)
        whole = (time.perf_counter() - start) * count / queries
        print(f"| faiss {name} (from {queries:,} queries) | {whole:,.0f} | | | | |")


def index_tables(count: int) -> list[str]:
    """All pairs within 8 bits among `count` hashes."""
    lines = [f"## {count:,} hashes, all pairs within {RADIUS} bits, one core\n"]
    lines += ["| what | s | CPU s | peak GB | pairs | planted found |", "|---|---|---|---|---|---|"]
    for kind in ("uniform", "kinds"):
        command = [sys.executable, "-m", "benchmarks.curation", "--index-of", kind, "--count", str(count)]
        lines.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return [*lines, ""]


def _run(yaml: str, folder: Path, root: Path, workers: int) -> Result:
    path = folder / "collection.yaml"
    path.write_text(f"salt: {SALT}\n{yaml}")
    result = curate(Collection.load(path, root=root), folder / "out", workers=workers)
    draw(result, folder / "out" / "sheets")
    print(f"sheets: {folder / 'out' / 'sheets'}", file=sys.stderr)
    return result


def _real(root: Path) -> dict[str, list[tuple[str, Any]]]:
    """Dataset -> (name, image) of a real collection, the first image of each file."""
    found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    collection = Collection.load(
        find_config("collections", "realdata"), root=root, overrides=[f"salt={SALT}"]
    )
    listed = scan(collection)
    for source, record in [*listed.records, *listed.held_out]:
        image = read(record.paths, fourth_axis=source.fourth_axis, given=record.given)[0]
        found[record.dataset].append((record.name.replace("/", "_"), image))
    return found


def _save(array: np.ndarray, path: Path, lossless: bool = True) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 4:
        volume = array[0].transpose(2, 1, 0)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"{path}.nii.gz")  # type: ignore[attr-defined]
    else:
        picture(array).save(f"{path}.png")


def copies_tables(root: Path, work: Path, workers: int) -> list[str]:
    """Found and missed copies, and what else was found."""
    folder, rng = work / "copies", np.random.default_rng(1)
    counts: Counter[tuple[int, str]] = Counter()
    volumes = 0
    for dataset, images in _real(root).items():
        order = rng.permutation(len(images))
        for place, number in enumerate(order):
            name, image = images[number]
            ndim = image.array.ndim - 1
            family = f"{dataset}@{name}"
            _save(image.array, folder / "in" / f"{family}@original")
            if ndim == 3 and (
                volumes >= FAMILIES_3D or min(image.array.shape[1:]) < 10 or len(image.array) > 1
            ):
                continue
            if ndim == 2 and place >= FAMILIES_2D:
                continue
            volumes += ndim == 3
            for change, function in (COPIES_3D if ndim == 3 else COPIES_2D).items():
                _save(function(image.array, rng), folder / "in" / f"{family}@{change}")
                counts[ndim, change] += 1
    yaml = "name: copies\nsources:\n  - {dataset: all, layout: image_folder, root: in, modality: other}\n"
    result = _run(yaml, folder, folder, workers)
    return _copies_report(result, counts)


def _copies_report(result: Result, counts: Counter[tuple[int, str]]) -> list[str]:
    table = result.table
    found: dict[tuple[int, str], set[int]] = defaultdict(set)
    alarms: Counter[tuple[str, str]] = Counter()
    for finding in result.findings:
        if finding.image is None or finding.of is None:
            continue
        one, other = (Path(table.record(i).name).name for i in (finding.image, finding.of))
        (dataset, name, change), (its_dataset, its_name, its_change) = one.split("@"), other.split("@")
        if (dataset, name) == (its_dataset, its_name):
            for image, word in ((finding.image, change), (finding.of, its_change)):
                found[int(table.rows["ndim"][image]), _stem(word)].add(image)
        elif (change, its_change) == ("original.png",) * 2 or change == its_change:
            alarms[finding.rule, " and ".join(sorted({dataset, its_dataset}))] += 1
        else:
            alarms[f"{finding.rule}, of a copy", " and ".join(sorted({dataset, its_dataset}))] += 1
    pairs = sum(n * (n - 1) // 2 for n in Counter(table.rows["ndim"].tolist()).values())
    lines = ["## Injected copies\n", "| change | | copies | found | missed |", "|---|---|---|---|---|"]
    for (ndim, change), count in counts.items():
        good = len(found[ndim, change])
        lines.append(f"| {change} | {ndim}D | {count} | {good} | {100 * (1 - good / count):.1f} % |")
    lines += [
        f"\nBetween different images, of {pairs:,} pairs:\n",
        "| rule | datasets | findings |",
        "|---|---|---|",
    ]
    lines += [f"| {rule} | {where} | {count} |" for (rule, where), count in sorted(alarms.items())]
    return [*lines, ""]


def _stem(word: str) -> str:
    return word.removesuffix(".nii.gz").removesuffix(".png")


def quality_tables(root: Path, work: Path, workers: int) -> list[str]:
    """Found faults and false alarms by dataset and rule."""
    folder, rng = work / "quality", np.random.default_rng(2)
    images = _real(root)
    for dataset in JUDGED:
        for number, (name, image) in enumerate(images[dataset]):
            _save(image.array, folder / dataset / f"original@{name}")
            if number < FAULTY * len(FAULTS):
                rule = list(FAULTS)[number % len(FAULTS)]
                _save(FAULTS[rule](image.array, rng), folder / dataset / f"{rule}@{name}")
    sources = "".join(
        f"  - {{dataset: {d}, layout: image_folder, root: {d}, modality: other}}\n" for d in JUDGED
    )
    result = _run(f"name: quality\nsources:\n{sources}", folder, folder, workers)
    injected: Counter[tuple[str, str]] = Counter()
    for source, record in result.table.records:
        injected[source.dataset, Path(record.name).name.split("@")[0]] += 1
    hits: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for finding in result.findings:
        if finding.image is not None and finding.of is None:
            kind = Path(result.table.record(finding.image).name).name.split("@")[0]
            source = result.table.source(finding.image).dataset
            hits[source, finding.rule, "found" if kind == finding.rule else kind].add(finding.image)
    lines = [
        "## Injected faults\n",
        "| rule | dataset | faults | found | alarms on its own images |",
        "|---|---|---|---|---|",
    ]
    for rule in FAULTS:
        for dataset in JUDGED:
            good, alarms = len(hits[dataset, rule, "found"]), len(hits[dataset, rule, "original"])
            own = injected[dataset, "original"]
            lines.append(f"| {rule} | {dataset} | {injected[dataset, rule]} | {good} | {alarms} of {own} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
