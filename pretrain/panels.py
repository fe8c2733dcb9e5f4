"""Pictures of what an encoder has learnt: reconstructions or views, and tokens as colours.

`views`: what a method that compares views compares. `reconstruction`: input, masked input and reconstruction
side by side, in the grey window of the input. What
to look for: structure that continues across hidden patches, not brightness (see MAE.panel).
`features`: the first three principal components of the patch tokens of all shown images together, as red,
green and blue beside the image. Collapse shows as one colour, noise as confetti; good tokens colour the same
tissue alike in different images. Volumes show their middle slice as radiologists look at it (front up, the
patient's right on the left). A panel costs one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.atomic import replacing
from ..data.sample import MODALITIES
from .encoders import Encoder
from .objectives import Batch, Objective

TILE = 160  # pixels a side of one picture
GAP = 6
HEAD = 16  # pixels of the caption line above the columns
BACKGROUND = (24, 24, 27)
TEXT = (228, 228, 231)


@torch.no_grad()
def draw_panels(
    folder: Path,
    step: int,
    batch: Batch,
    encoder: Encoder,
    objective: Objective,
    *,
    mean: Tensor,
    std: Tensor,
) -> dict[str, Path]:
    """Write `step-NNNNNNN-reconstruction.png` (or `-views.png`) and `-features.png`; returns name -> path.

    Args:
        batch: a few images [B, C, *spatial], normalised, on the encoder's device.
        mean, std: [B, C or 1] that normalised them: pictures are shown in the colours of their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch = replace(batch, image=tiled(batch.image, encoder))
    training = [(module, module.training) for part in (encoder, objective) for module in part.modules()]
    encoder.eval()
    objective.eval()
    try:
        written: dict[str, Path] = {}
        captions = modality_names(batch)
        pictures = objective.panel(batch, encoder)
        if pictures:
            columns = {name: slices(value, mean, std) for name, value in pictures.items()}
            kind = "reconstruction" if "reconstruction" in pictures else "views"
            path = folder / f"step-{step:07d}-{kind}.png"
            save_grid(path, windowed(columns), captions)
            written[f"panels/{kind}"] = path
        colours = token_colours(batch.image, objective.released(encoder))
        if colours is not None:
            path = folder / f"step-{step:07d}-features.png"
            columns = {**windowed({"input": slices(batch.image, mean, std)}), "tokens": colours}
            save_grid(path, columns, captions)
            written["panels/features"] = path
        return written
    finally:
        for module, mode in training:  # one by one: a teacher's norms are in a mode of their own
            module.training = mode


def tiled(image: Tensor, encoder: Encoder) -> Tensor:
    """The middle of images [B, C, *spatial], a multiple of the patch: objectives of views load more."""
    for axis, patch in enumerate(encoder.patch_of(image.ndim - 2), start=2):
        side = max(patch, image.shape[axis] // patch * patch)
        image = image.narrow(axis, max(0, (image.shape[axis] - side) // 2), min(side, image.shape[axis]))
    return image


def token_colours(image: Tensor, encoder: Encoder) -> np.ndarray | None:
    """Principal components of the patch tokens as colours.

    Returns:
        uint8 [B, h, w, 3] on the token grid (the middle slice of it for volumes); None without a grid.
    """
    features = encoder(image)
    if features.grid is None:
        return None
    tokens = features.tokens.float().cpu()  # [B, N, E]
    flat = tokens.reshape(-1, tokens.shape[-1]).double()
    flat = flat - flat.mean(dim=0)
    # A fixed sign for each component, so that colours do not flip from one panel to the next.
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = axes[:3] * axes[:3].sum(dim=1, keepdim=True).sign()
    projected = flat @ axes.T
    if projected.shape[1] < 3:
        projected = torch.nn.functional.pad(projected, (0, 3 - projected.shape[1]))
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    scaled = ((projected - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    cube = scaled.reshape(tokens.shape[0], *features.grid, 3)
    if len(features.grid) == 3:
        cube = cube[:, features.grid[0] // 2].flip(1, 2)
    return (cube.numpy() * 255).astype(np.uint8)


def slices(image: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """[B, C, (D,) H, W] -> float32 [B, H, W, 3] in file units: a volume's middle slice, grey unless C = 3."""
    shape = (*mean.shape, *[1] * (image.ndim - 2))
    array = (image.detach().float() * std.reshape(shape) + mean.reshape(shape)).cpu().numpy()
    if array.ndim == 5:
        array = array[:, :, array.shape[2] // 2, ::-1, ::-1]
    if array.shape[1] != 3:
        array = np.repeat(array[:, :1], 3, axis=1)
    return np.moveaxis(array, 1, -1)


def windowed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Map each row to 0..255 by the 1st and 99th percentile of its first column, the input."""
    first = next(iter(columns.values()))
    axes = tuple(range(1, first.ndim))
    low = np.percentile(first, 1, axis=axes, keepdims=True)
    high = np.percentile(first, 99, axis=axes, keepdims=True)
    return {name: (np.clip((value - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
            for name, value in columns.items()}  # fmt: skip


def save_grid(path: Path, columns: dict[str, np.ndarray], captions: Sequence[str]) -> None:
    """Write a table of pictures: a column for each name, a row for each image, uint8 [B, h, w, 3] each."""
    names = list(columns)
    rows = len(columns[names[0]])
    width = len(names) * (TILE + GAP) + GAP
    canvas = Image.new("RGB", (width, HEAD + rows * (TILE + HEAD + GAP) + GAP), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        left = GAP + column * (TILE + GAP)
        pen.text((left, 2), name, fill=TEXT)
        for row in range(rows):
            top = HEAD + row * (TILE + HEAD + GAP)
            canvas.paste(
                Image.fromarray(columns[name][row]).resize((TILE, TILE), Image.Resampling.NEAREST),
                (left, top),
            )
            if column == 0:
                pen.text((left, top + TILE + 1), captions[row], fill=TEXT)
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG")


def modality_names(batch: Batch) -> list[str]:
    """A caption for each image: its modality, never its key."""
    if batch.modality is None:
        return [""] * len(batch.image)
    codes = batch.modality.tolist()
    return [str(MODALITIES[code]) if 0 <= code < len(MODALITIES) else "" for code in codes]


def varied(batches: Sequence[dict[str, Any]], samples: int) -> list[int]:
    """Which of `batches` (single samples, in order) to show: new modalities first, then the earliest ones."""
    seen: set[int] = set()
    fresh: list[int] = []
    for index, item in enumerate(batches):
        if int(item["modality"]) not in seen:
            seen.add(int(item["modality"]))
            fresh.append(index)
    rest = [index for index in range(len(batches)) if index not in fresh]
    return sorted((fresh + rest)[:samples])
