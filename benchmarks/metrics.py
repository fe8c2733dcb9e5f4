"""Metrics of a large multi-label case against MONAI's and surface-distance's: values and CPU time, one run.

The case has the size of an abdominal CT, 512×512×200 at 1.5×0.8×0.8 mm, with eleven organs between an adrenal
gland and a liver; the prediction is a second deformation of the same organs, one or two voxels off, with
pieces missing and pieces too many. It is generated, the same in every run.

Each contender gets the same two label maps and must answer the same metrics of each structure. What it has to
do before (one-hot masks, a mask of each structure) counts, because a label map is what a network gives.

    OMP_NUM_THREADS=1 python -m benchmarks.metrics                        # about five minutes
    OMP_NUM_THREADS=1 python -m benchmarks.metrics --size 64 160 160      # ten seconds
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

SPACING = (1.5, 0.8, 0.8)
TOLERANCE = 2.0
# Centre and half axes as shares of the volume's sides (D, H, W): an abdomen in coarse proportions.
ORGANS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "liver": ((0.62, 0.45, 0.33), (0.25, 0.17, 0.15)),
    "spleen": ((0.65, 0.58, 0.74), (0.16, 0.07, 0.05)),
    "right kidney": ((0.42, 0.62, 0.36), (0.17, 0.05, 0.045)),
    "left kidney": ((0.45, 0.62, 0.65), (0.17, 0.05, 0.045)),
    "stomach": ((0.66, 0.40, 0.63), (0.15, 0.09, 0.09)),
    "gallbladder": ((0.47, 0.38, 0.40), (0.07, 0.03, 0.025)),
    "pancreas": ((0.52, 0.48, 0.54), (0.06, 0.03, 0.09)),
    "aorta": ((0.50, 0.58, 0.52), (0.48, 0.018, 0.018)),
    "vena cava": ((0.50, 0.57, 0.46), (0.48, 0.018, 0.016)),
    "right adrenal": ((0.62, 0.57, 0.42), (0.05, 0.012, 0.008)),
    "left adrenal": ((0.62, 0.57, 0.60), (0.05, 0.012, 0.008)),
}
STRUCTURES = dict(enumerate(ORGANS, start=1))
Values = dict[tuple[str, str], float]


def case(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference): uint8 label maps [D, H, W]."""
    rng = np.random.default_rng(seed)
    body = [_field(rng, shape, 12, 6.0) for _ in shape]
    off = [_field(rng, shape, 24, 1.5) for _ in shape]
    reference = _organs(shape, body)
    prediction = _organs(shape, [a + b for a, b in zip(body, off, strict=True)])
    prediction[(_field(rng, shape, 40, 1.0) > 2.6) & (prediction > 0)] = 0
    return prediction, reference


def _field(rng: np.random.Generator, shape: tuple[int, ...], knots: int, size: float) -> np.ndarray:
    """Smooth noise [*shape] float32 with standard deviation `size`, `knots` along the longest side."""
    field = rng.standard_normal([max(4, round(knots * side / max(shape)) + 3) for side in shape])
    for axis, side in enumerate(shape):  # cubic splines, axis by axis
        basis = ndimage.zoom(
            np.eye(field.shape[axis]), (side / field.shape[axis], 1), order=3, mode="nearest"
        )
        field = np.moveaxis(
            np.tensordot(basis.astype(np.float32), field.astype(np.float32), (1, axis)), 0, axis
        )
    return field * np.float32(size / field.std())


def _organs(shape: tuple[int, ...], off: list[np.ndarray]) -> np.ndarray:
    """Ellipsoids drawn one over another, displaced by `off` voxels."""
    labels = np.zeros(shape, np.uint8)
    for value, (centre, radii) in enumerate(ORGANS.values(), start=1):
        box = tuple(
            slice(max(0, int((c - r) * n) - 25), min(n, int((c + r) * n) + 25))
            for c, r, n in zip(centre, radii, shape, strict=True)
        )
        grid = np.ogrid[box]
        terms = [
            np.square((g + d[box] - c * n) / (r * n))
            for g, d, c, r, n in zip(grid, off, centre, radii, shape, strict=True)
        ]
        labels[box][sum(terms) < 1] = value
    return labels


def ours(prediction: np.ndarray, reference: np.ndarray, metrics: tuple[str, ...]) -> Values:
    """medloom: rows of the long table."""
    from medloom.finetune.metrics import segmentation_case

    rows = segmentation_case(prediction, reference, SPACING, STRUCTURES, TOLERANCE, metrics=metrics)
    return {(row.structure, row.metric): row.value for row in rows}


def deepmind(prediction: np.ndarray, reference: np.ndarray, metrics: tuple[str, ...]) -> Values:
    """surface-distance, structure by structure; its surfaces are measured once for all metrics."""
    import surface_distance as library

    values: Values = {}
    for label, name in STRUCTURES.items():
        a, b = prediction == label, reference == label
        if "dice" in metrics:
            values[name, "dice"] = float(library.compute_dice_coefficient(b, a))
        found = library.compute_surface_distances(b, a, SPACING)
        if "nsd" in metrics:
            values[name, "nsd"] = float(library.compute_surface_dice_at_tolerance(found, TOLERANCE))
        if "hd95" in metrics:
            values[name, "hd95"] = float(library.compute_robust_hausdorff(found, 95))
        if "masd" in metrics:
            values[name, "masd"] = float(np.mean(library.compute_average_surface_distance(found)))
    return values


def monai(prediction: np.ndarray, reference: np.ndarray, metrics: tuple[str, ...]) -> Values:
    """MONAI on one-hot masks, a structure at a time, as the whole one-hot case of float32 takes 4 GB."""
    import torch
    from monai import metrics as library

    values: Values = {}
    for label, name in STRUCTURES.items():
        a, b = (torch.from_numpy(labels == label)[None, None] for labels in (prediction, reference))
        if "dice" in metrics:
            values[name, "dice"] = float(library.compute_dice(a, b))
        if "nsd" in metrics:
            found = library.compute_surface_dice(
                a, b, [TOLERANCE], include_background=True, spacing=list(SPACING), use_subvoxels=True
            )
            values[name, "nsd"] = float(found)
        if "hd95" in metrics:
            found = library.compute_hausdorff_distance(
                a, b, include_background=True, percentile=95, spacing=list(SPACING)
            )
            values[name, "hd95"] = float(found)
        if "masd" in metrics:
            both = [
                library.compute_average_surface_distance(
                    *pair, include_background=True, spacing=list(SPACING)
                )
                for pair in ((a, b), (b, a))
            ]
            values[name, "masd"] = float(sum(both) / 2)
    return values


CONTENDERS: dict[str, Callable[..., Values]] = {"medloom": ours, "monai": monai, "surface-distance": deepmind}
ROUNDS = {"dice, nsd": ("dice", "nsd"), "dice, nsd, hd95, masd": ("dice", "nsd", "hd95", "masd")}


def main() -> None:
    """Measure, compare the values, write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=[200, 512, 512], metavar=("D", "H", "W"))
    parser.add_argument("--repeats", type=int, default=3, help="interleaved; the lowest is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, help="stem of the files: OUT.json and OUT.md")
    arguments = parser.parse_args()
    prediction, reference = case(tuple(arguments.size), arguments.seed)
    results = {
        name: measure(prediction, reference, metrics, arguments.only, arguments.repeats)
        for name, metrics in ROUNDS.items()
    }
    facts = {
        "size": arguments.size, "spacing": SPACING, "structures": len(STRUCTURES),
        "voxels": {name: int((reference == label).sum()) for label, name in STRUCTURES.items()},
        "machine": platform.machine(), "repeats": arguments.repeats, "results": results,
    }  # fmt: skip
    text = written(facts)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(text)


def measure(
    prediction: np.ndarray, reference: np.ndarray, metrics: tuple[str, ...], names: list[str], repeats: int
) -> dict[str, dict[str, object]]:
    """Lowest CPU seconds of each contender and the largest difference of each metric from ours."""
    times: dict[str, list[float]] = {name: [] for name in names}
    values: dict[str, Values] = {}
    for _ in range(repeats):
        for name in names:
            begin = time.process_time()
            values[name] = CONTENDERS[name](prediction, reference, metrics)
            times[name].append(time.process_time() - begin)
    return {
        name: {
            "seconds": min(times[name]), "highest": max(times[name]),
            "off": differences(values[name], values.get("medloom", {})),
        }
        for name in names
    }  # fmt: skip


def differences(theirs: Values, mine: Values) -> dict[str, float]:
    """Largest absolute difference over the structures, by metric."""
    found: dict[str, float] = {}
    for (structure, metric), value in mine.items():
        gap = abs(value - theirs[structure, metric])
        found[metric] = max(found.get(metric, 0.0), gap)
    return found


def written(facts: Mapping[str, object]) -> str:
    """The page."""
    size = "×".join(map(str, facts["size"]))  # type: ignore[arg-type]
    lines = [
        "# Metrics of a large multi-label case",
        "",
        f"`python -m benchmarks.metrics`: {size} voxels, {facts['structures']} structures, "
        f"{facts['machine']}, one thread. CPU seconds, lowest (highest) of {facts['repeats']} interleaved "
        "rounds. MONAI: NSD with `use_subvoxels` (the same surface as ours), HD95 and MASD between voxels, "
        "which it has no other way for: these two are other numbers by definition.",
    ]
    for title, rows in facts["results"].items():  # type: ignore[attr-defined]
        mine = rows.get("medloom", {}).get("seconds")
        lines += ["", f"### {title}", "", "| | CPU s | theirs / ours | largest difference from ours |",
                  "|---|---|---|---|"]  # fmt: skip
        for name, row in rows.items():
            ratio = f"{row['seconds'] / mine:.1f}" if mine and name != "medloom" else ""
            off = ", ".join(f"{metric} {gap:.1g}" for metric, gap in row["off"].items())
            lines.append(
                f"| {name} | {row['seconds']:.2f} ({row['highest']:.2f}) | {ratio} | "
                f"{off if name != 'medloom' else ''} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
