"""Inference without medloom: what a MONAI bundle runs around the exported network.

This file is copied into the bundle as `scripts/__init__.py`, with the few functions of medloom that it uses
beside it; it needs torch, MONAI, nibabel and Pillow. The order of work is that of `medloom predict`:
canonical axes, statistics of the whole image, resampling, intensities, windows; probabilities are resampled
back before the most likely structure is taken.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from torch import Tensor, nn

from ...data.ingest.preprocess import describe
from ...data.normalise import intensity
from ...data.shards.pictures import resize
from ..tasks.base import resized

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")


def find(place: str, ndim: int) -> list[str]:
    """Image files at `place`, a file or a folder; of a folder those with a suffix of pictures or volumes."""
    path = Path(place)
    if path.is_file():
        return [str(path)]
    suffixes = _PICTURES if ndim == 2 else _VOLUMES
    found = sorted(str(one) for one in path.rglob("*") if one.name.lower().endswith(suffixes))
    if not found:
        raise FileNotFoundError(f"{place}: no file with suffix {', '.join(suffixes)}; give --input FOLDER")
    return found


def read_contract(path: str) -> dict[str, Any]:
    """preprocessing.json."""
    return json.loads(Path(path).read_text())


class Network(nn.Module):
    """A program of torch.export as a module [B, C, *spatial] -> output."""

    def __init__(self, path: str, device: Any = "cpu") -> None:
        super().__init__()
        program = torch.export.load(path)
        if torch.device(device).type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self._run: list[Callable[[Tensor], Tensor]] = [program.module()]  # no submodule: it has no eval()

    def forward(self, x: Tensor) -> Tensor:
        """Output of normalised images."""
        with torch.no_grad():
            return self._run[0](x)


class Loadedd(MapTransform):
    """A picture file -> [C, H, W] as it is displayed: turned by its EXIF, no alpha, grey as one channel."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Path -> MetaTensor."""
        from PIL import Image, ImageOps

        found = dict(data)
        for key in self.keys:
            path = str(found[key])
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode in ("P", "CMYK", "RGBA", "YCbCr", "LA"):
                    picture = picture.convert("L" if picture.mode == "LA" else "RGB")
                pixels = np.asarray(picture)
            planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            if len(planes) == 3 and (planes == planes[:1]).all():
                planes = planes[:1]
            image = MetaTensor(torch.from_numpy(np.array(planes)))
            image.meta["filename_or_obj"] = path
            found[key] = image
        return found


class Preparedd(MapTransform):
    """Image [C, X, Y, Z] in RAS, or [C, H, W], in its own units -> what the network takes.

    Args:
        contract: preprocessing.json.
    """

    def __init__(self, keys: Sequence[str], contract: Mapping[str, Any]) -> None:
        super().__init__(keys)
        self.contract = contract

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds `KEY_native`, the shape before, and `KEY_padding`, what was added at the ends of each axis."""
        found = dict(data)
        for key in self.keys:
            image = found[key]
            array = _narrow(np.asarray(image))
            spacing = None
            if array.ndim == 4:
                array = np.ascontiguousarray(array.transpose(0, 3, 2, 1))
                spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)[::-1]
            prepared, padding = self._prepared(array, spacing)
            found[key] = MetaTensor(
                torch.from_numpy(prepared), meta=image.meta, applied_operations=image.applied_operations
            )
            found[f"{key}_native"], found[f"{key}_padding"] = array.shape[1:], padding
        return found

    def _prepared(
        self, array: np.ndarray, spacing: np.ndarray | None
    ) -> tuple[np.ndarray, list[tuple[int, int]]]:
        stats = describe(array, self.contract["modality"])
        numbers = intensity(
            {"key": "image", "ndim": array.ndim - 1, "dtype": array.dtype.name, "stats": stats}
        )
        target = self._target(array.shape[1:], spacing)
        if array.ndim == 3 and not self.contract["windows"]:
            array = resize(array, (0, 0, *array.shape[1:]), target)
        else:
            array = resized(array, target)
        x = numbers.apply(array)
        if len(x) != self.contract["input"]["channels"]:
            x = np.repeat(x, self.contract["input"]["channels"], axis=0)
        sides = self.contract["input"]["sides"]
        gaps = [max(0, side - have) for side, have in zip(sides, target, strict=True)]
        padding = [(gap // 2, gap - gap // 2) for gap in gaps]
        lowest = float(np.min((numbers.low - numbers.mean) / numbers.std))
        return np.pad(x, [(0, 0), *padding], constant_values=lowest).astype(np.float32), padding

    def _target(self, shape: Sequence[int], spacing: np.ndarray | None) -> tuple[int, ...]:
        """Shape on the grid of the plan; differences below 5 % are left alone."""
        grid = self.contract["grid"]
        if grid["resize"]:
            return tuple(grid["resize"])
        if grid["spacing_mm"] is None or spacing is None:
            return tuple(shape)
        ratios = [have / want for have, want in zip(spacing, grid["spacing_mm"], strict=True)]
        if all(abs(ratio - 1) < 0.05 for ratio in ratios):
            return tuple(shape)
        return tuple(max(1, round(side * ratio)) for side, ratio in zip(shape, ratios, strict=True))


class Restoredd(MapTransform):
    """Probabilities [K, *padded] -> label map [1, X, Y, Z] or [1, H, W] of the image before `Preparedd`.

    Args:
        contract: preprocessing.json.
        image: key of the image that was prepared.
    """

    def __init__(self, keys: Sequence[str], contract: Mapping[str, Any], image: str = "image") -> None:
        super().__init__(keys)
        self.contract, self.image = contract, image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Values are the mask values of the task."""
        found = dict(data)
        native, padding = found[f"{self.image}_native"], found[f"{self.image}_padding"]
        image = found[self.image]
        values = np.array(self.contract["output"]["mask_values"])
        values = values.astype(np.min_scalar_type(int(values.max())))
        for key in self.keys:
            maps = np.asarray(found[key])
            inner = tuple(slice(a, n - b) for (a, b), n in zip(padding, maps.shape[1:], strict=True))
            labels = values[resized(maps[(slice(None), *inner)], native).argmax(axis=0)]
            turned = np.ascontiguousarray(labels.transpose())[None] if labels.ndim == 3 else labels[None]
            found[key] = MetaTensor(
                torch.from_numpy(turned), meta=image.meta, applied_operations=image.applied_operations
            )
        return found


class PictureSavedd(MapTransform):
    """A label map [1, H, W] -> `output_dir/NAME_seg.png`."""

    def __init__(self, keys: Sequence[str], output_dir: str) -> None:
        super().__init__(keys)
        self.folder = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes a PNG whose pixel values are mask values."""
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        for key in self.keys:
            name = Path(str(data[key].meta["filename_or_obj"])).stem
            Image.fromarray(np.asarray(data[key])[0]).save(self.folder / f"{name}_seg.png")
        return dict(data)


def run(
    files: Sequence[str],
    preprocessing: Callable[[Any], Any],
    inferer: Callable[[Tensor, nn.Module], Any],
    network: nn.Module,
    postprocessing: Callable[[Any], Any] | None,
    device: Any,
    output_dir: str,
    contract: Mapping[str, Any],
) -> None:
    """Predict file after file; without `postprocessing` the outputs become a table, `predictions.csv`."""
    rows: list[list[Any]] = []
    for path in files:
        data = preprocessing({"image": path})
        x = torch.as_tensor(np.asarray(data["image"]))[None].to(device)
        data["pred"] = inferer(x, network)[0].cpu()
        if postprocessing is not None:
            postprocessing(data)
        else:
            rows.append([path, *(round(float(value), 6) for value in data["pred"])])
    if postprocessing is None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        names = contract["output"]["names"]
        width = len(rows[0]) - 1
        header = [f"p_{name}" for name in names] if width == len(names) else ["prediction"] * width
        with (Path(output_dir) / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", *header], *rows])


def _narrow(array: np.ndarray) -> np.ndarray:
    """Floats that are small integers as such: their statistics are counted exactly, as they were stored."""
    if array.dtype.kind != "f" or not np.isfinite(array).all() or (array != np.rint(array)).any():
        return array.astype(np.float32) if array.dtype == np.float64 else array
    low, high = float(array.min()), float(array.max())
    for kind in (np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array
