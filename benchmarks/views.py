"""Augmentation side by side: medloom's batched views against per-sample transforms of MONAI and torchvision.

    python -m benchmarks.views                     # 2D 224 x 224 and 3D 96^3, about two minutes
    python -m benchmarks.views --device cuda       # the same on a GPU, host waits included
    python -m benchmarks.views --only 3d --threads 1 --rounds 7

Every row is one transform with the same numbers on both sides, drawn for each sample, probability 1; the last
rows are whole recipes with their own probabilities. Peers get what they are made for: one image at a time,
their own random state. Turns are interleaved (ABAB...), the table has medians of a batch and the ratio peer /
medloom. kornia and TorchIO join where they are installed and are named as missing where not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from medloom.pretrain import views
from torch import Tensor

Turn = Callable[[], Any]
BATCH = {2: (16, 3, 224, 224), 3: (4, 1, 96, 96, 96)}
DEGREES, SCALE = 15.0, (0.9, 1.1)


def ours(x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """medloom's transforms by row, of the positions of one batch (other ones in every turn)."""
    n = x.ndim - 2
    common = {"seed": 0, "probability": 1.0}
    limits = views.Limits(*(torch.full(x.shape[:2], v, device=x.device) for v in (0.0, 1.0)))
    crop = views.CropConfig(count=1, scale=[0.3, 1.0])
    rows: dict[str, Callable[[Tensor], Any]] = {
        "flip": lambda at: views.random_flip(x, 0, at, axes=range(n)),
        "affine": lambda at: views.random_affine(x, positions=at, degrees=DEGREES, scale=SCALE, **common),
        "resized crop": lambda at: views.multi_crop(x, [crop], 0, at),
        "gamma, contrast": lambda at: views.random_intensity(x, positions=at, **common),
        "blur": lambda at: views.random_blur(x, positions=at, sigma=(0.5, 1.5), **common),
        "noise": lambda at: views.random_noise(x, positions=at, **common),
        "bias field": lambda at: views.random_bias_field(x, positions=at, **common),
        "low resolution": lambda at: views.random_low_resolution(x, positions=at, **common),
    }
    if n == 2:
        rows["colour jitter"] = lambda at: views.random_colour(x, positions=at, limits=limits, **common)
        rows["recipe dinov2, 10 crops"] = lambda at: views.multi_crop(
            x, views.preset("dinov2"), 0, at, limits=limits
        )
    else:
        view = views.preset("nnunet-3d")[0].view
        rows["recipe nnU-Net"] = lambda at: views.random_view(x, view, 0, at)
    return rows


def monai(x: Tensor) -> dict[str, Turn]:
    """MONAI's random transforms, sample by sample."""
    import monai.transforms as m
    import numpy as np

    n = x.ndim - 2
    angle = float(np.deg2rad(DEGREES))
    linear = "bilinear" if n == 2 else "trilinear"
    blur = {f"sigma_{axis}": (0.5, 1.5) for axis in "xyz"}
    changes: dict[str, Any] = {
        "flip": m.Compose([m.RandFlip(prob=0.5, spatial_axis=axis) for axis in range(n)]),
        "affine": m.RandAffine(prob=1.0, rotate_range=[angle] * (1 if n == 2 else 3), padding_mode="border",
                               scale_range=[0.1] * n, translate_range=[0.05 * s for s in x.shape[2:]]),
        "resized crop": m.Compose([m.RandSpatialCrop([int(0.7 * s) for s in x.shape[2:]], random_size=True),
                                   m.Resize(list(x.shape[2:]), anti_aliasing=False)]),
        "gamma, contrast": m.Compose([m.RandAdjustContrast(prob=1.0, gamma=(0.7, 1.5)),
                                      m.RandScaleIntensity(prob=1.0, factors=0.2),
                                      m.RandShiftIntensity(prob=1.0, offsets=0.2)]),
        "blur": m.RandGaussianSmooth(prob=1.0, **blur),
        "noise": m.RandGaussianNoise(prob=1.0, std=0.1),
        "bias field": m.RandBiasField(prob=1.0, coeff_range=(-0.2, 0.2)),
        "low resolution": m.RandSimulateLowResolution(prob=1.0, zoom_range=(0.5, 1.0), upsample_mode=linear),
    }  # fmt: skip
    if n == 3:
        turn = float(np.deg2rad(30))
        changes["recipe nnU-Net"] = m.Compose([
            m.RandAffine(prob=0.2, rotate_range=[turn] * 3, scale_range=[(-0.3, 0.4)] * 3,
                         padding_mode="zeros"),
            m.RandGaussianNoise(prob=0.1, std=0.1),
            m.RandGaussianSmooth(prob=0.2, **dict.fromkeys(blur, (0.5, 1.0))),
            m.RandScaleIntensity(prob=0.3, factors=0.25),
            m.RandSimulateLowResolution(prob=0.25, zoom_range=(0.5, 1.0)),
            m.RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)),
            *[m.RandFlip(prob=0.5, spatial_axis=axis) for axis in range(3)],
        ])  # fmt: skip
    return {row: _each(change, x) for row, change in changes.items()}


def torchvision(x: Tensor) -> dict[str, Turn]:
    """torchvision's v2 transforms of tensors, sample by sample; pictures only."""
    if x.ndim == 5:
        return {}
    from torchvision.transforms import v2

    def crop(size: int, low: float, high: float) -> v2.RandomResizedCrop:
        return v2.RandomResizedCrop(size, scale=(low, high), antialias=True)

    jitter = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(0.2)]
    blur = v2.GaussianBlur(9, (0.1, 2.0))
    first = v2.Compose([crop(224, 0.32, 1), v2.RandomHorizontalFlip(), *jitter, blur])
    second = v2.Compose([crop(224, 0.32, 1), v2.RandomHorizontalFlip(), *jitter,
                         v2.RandomApply([blur], p=0.1), v2.RandomSolarize(0.5, p=0.2)])  # fmt: skip
    local = v2.Compose([crop(96, 0.05, 0.32), v2.RandomHorizontalFlip(), *jitter,
                        v2.RandomApply([blur], p=0.5)])  # fmt: skip
    changes: dict[str, Any] = {
        "flip": v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]),
        "affine": v2.RandomAffine(DEGREES, translate=(0.05, 0.05), scale=SCALE,
                                  interpolation=v2.InterpolationMode.BILINEAR),
        "resized crop": crop(224, 0.3, 1),
        "blur": v2.GaussianBlur(11, (0.5, 1.5)),
        "noise": v2.GaussianNoise(sigma=0.1),
        "colour jitter": v2.ColorJitter(0.4, 0.4, 0.2, 0.1),
        "recipe dinov2, 10 crops": lambda one: [first(one), second(one), *(local(one) for _ in range(8))],
    }  # fmt: skip
    return {row: _each(change, x) for row, change in changes.items()}


def kornia(x: Tensor) -> dict[str, Turn]:
    """kornia's batched augmentations."""
    import kornia.augmentation as k

    n, one = x.ndim - 2, {"p": 1.0}
    if n == 3:
        changes: dict[str, Any] = {"affine": k.RandomAffine3D((DEGREES,) * 3, scale=SCALE, **one)}
    else:
        changes = {
            "affine": k.RandomAffine(DEGREES, translate=(0.05, 0.05), scale=SCALE, **one),
            "resized crop": k.RandomResizedCrop((224, 224), scale=(0.3, 1.0), **one),
            "blur": k.RandomGaussianBlur((11, 11), (0.5, 1.5), **one),
            "noise": k.RandomGaussianNoise(std=0.1, **one),
            "colour jitter": k.ColorJitter(0.4, 0.4, 0.2, 0.1, **one),
        }
    return {row: lambda change=change: change(x) for row, change in changes.items()}


def torchio(x: Tensor) -> dict[str, Turn]:
    """TorchIO's random transforms, sample by sample; volumes only."""
    if x.ndim == 4:
        return {}
    import torchio as t

    changes: dict[str, Any] = {
        "flip": t.RandomFlip(axes=(0, 1, 2), flip_probability=0.5),
        "affine": t.RandomAffine(scales=SCALE, degrees=DEGREES, translation=5),
        "gamma, contrast": t.RandomGamma((-0.3, 0.3)),
        "blur": t.RandomBlur((0.5, 1.5)),
        "noise": t.RandomNoise(std=(0, 0.1)),
        "bias field": t.RandomBiasField(0.2),
        "low resolution": t.RandomAnisotropy(downsampling=(1, 2)),
    }
    return {row: _each(change, x.cpu()) for row, change in changes.items()}


PEERS = {"monai": monai, "torchvision": torchvision, "kornia": kornia, "torchio": torchio}


def _each(change: Callable[[Tensor], Any], x: Tensor) -> Turn:
    return lambda: [change(one) for one in x]


def measure(dimensions: int, device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a transform: {"row", "medloom", peer: milliseconds a batch}."""
    x = torch.rand(BATCH[dimensions], device=device)
    mine = ours(x)
    theirs = {name: peer(x) for name, peer in PEERS.items() if importlib.util.find_spec(name)}
    for row, change in mine.items():
        state = {"batch": 0}

        def turn(change: Callable[[Tensor], Any] = change, state: dict[str, int] = state) -> None:
            state["batch"] += 1
            change(torch.arange(len(x)) + len(x) * state["batch"])

        turns: dict[str, Turn] = {"medloom": turn}
        turns |= {name: rows[row] for name, rows in theirs.items() if row in rows}
        yield {"row": row} | interleaved(turns, rounds, device)


def interleaved(turns: dict[str, Turn], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each turn, taken in rotation after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the tables; with --json one line a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("2d", "3d"), help="pictures or volumes alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    missing = [name for name in PEERS if not importlib.util.find_spec(name)]
    for dimensions in (2, 3):
        if arguments.only not in (None, f"{dimensions}d"):
            continue
        if not arguments.json:
            shape = " x ".join(map(str, BATCH[dimensions]))
            print(f"\n{dimensions}D, batch {shape}, {arguments.device}: ms a batch (times medloom's)")
        for row in measure(dimensions, arguments.device, arguments.rounds):
            if arguments.json:
                print(json.dumps({"ndim": dimensions, "device": arguments.device} | row), flush=True)
                continue
            base = row["medloom"]
            cells = [f"{n} {row[n]:8.1f} ({row[n] / base:5.1f}x)" for n in PEERS if n in row]
            print(f"{row['row']:24s} medloom {base:8.1f}  " + "  ".join(cells), flush=True)
    if missing and not arguments.json:
        print(f"\nnot installed, not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()
