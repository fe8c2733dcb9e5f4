"""Several files that are the channels of one image: nnU-Net's CASE_0000.nii.gz, a folder of MR sequences.

Each file is read on its own, in canonical orientation, and must lie on the first one's grid: the same shape
and, where files state one, the same affine (a corner may be off by 10 % of a voxel edge, as for label maps).
Nothing is resampled: channels that do not match are refused with both figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ReadError
from ..sample import Given, Image
from . import geometry, values

# Farthest that a corner of a channel's grid may lie from the first one's, as a share of the smallest edge.
TOLERANCE = 0.1


def read(paths: Sequence[Path], given: Given, *, fourth_axis: str = "channels") -> list[Image]:
    """Read one file a channel and stack them.

    Args:
        paths: as many as `given.channels`, in that order.
        fourth_axis: as `readers.read`; frames of several files are stacked frame by frame.

    Returns:
        Images [C, D, H, W] or [C, H, W]; the dtype holds the values of all channels. The fact "channels"
        holds their names.

    Raises:
        ReadError: a file cannot be read, has several channels itself, or lies on another grid.
    """
    from . import read as read_one

    if len(paths) != len(given.channels):
        raise ReadError(f"{paths[0].name}: {len(paths)} files for the channels {', '.join(given.channels)}")
    alone = replace(given, channels=())
    parts = [read_one([path], fourth_axis=fourth_axis, given=alone) for path in paths]
    counts = [len(images) for images in parts]
    if len(set(counts)) != 1:
        raise ReadError(f"{paths[0].name}: its channels have {counts} frames, expected as many in each")
    names = [path.name for path in paths]
    return [_stacked(list(images), given.channels, names) for images in zip(*parts, strict=True)]


def _stacked(images: list[Image], channels: tuple[str, ...], names: list[str]) -> Image:
    first = images[0]
    for image, name in zip(images, names, strict=True):
        if image.array.shape[0] != 1:
            raise ReadError(
                f"{name}: {image.array.shape[0]} channels, expected one a file; list it as its own image"
            )
        _check_grid(first, names[0], image, name)
    wide = np.result_type(*(image.array.dtype for image in images))
    array = values.narrow(np.concatenate([image.array.astype(wide, copy=False) for image in images]))
    nonfinite = sum(image.facts.get("nonfinite", 0) for image in images)
    mended = {"nonfinite": nonfinite} if nonfinite else {}
    modalities = {image.modality for image in images}
    return Image(
        array=array,
        spacing=first.spacing,
        affine=first.affine,
        modality=first.modality if len(modalities) == 1 else None,
        facts={**first.facts, **mended, "channels": list(channels)},
    )


def _check_grid(first: Image, first_name: str, image: Image, name: str) -> None:
    """Raise ReadError unless `image` lies where `first` does."""
    shape, expected = image.array.shape[1:], first.array.shape[1:]
    if shape != expected:
        raise ReadError(
            f"{name}: shape {shape}, but {first_name} has {expected}; resample the channels on one grid"
        )
    if image.affine is None or first.affine is None or len(shape) != 3:
        return
    away = geometry.corner_distance(image.affine, first.affine, shape)
    bound = TOLERANCE * min(geometry.spacing_of(first.affine))
    if away > bound:
        raise ReadError(
            f"{name}: its affine puts a corner {away:.3g} mm from that of {first_name}, expected at most "
            f"{bound:.3g} mm; register and resample the channels on one grid"
        )
