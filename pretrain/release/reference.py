"""Reference features: what an encoder says about one generated image, written beside its weights.

A hash proves that a file is the one that was released; it does not prove that the network around it is. So
`reference.npz` holds features of an image that needs no data: a formula of channel and position, on the grid
of the input contract (at most `SIDE` pixels a side, so that it is cheap). Whoever loads the weights computes
them again: the largest difference, in units of the root mean square of what is stored, must stay below
`TOLERANCE`. Rounding (float32 against float64) moves them by less than 1e-5, torch 2.11 against 2.15 by
nothing; a block left out, or other heads, by more than 1e-2. It does not prove the normalisation of a user's
own images.

It is .npz, because timm up to 1.0.22 fails on a folder with two files of safetensors.

Price: one forward pass of one image, less time than building the network and hashing its file takes, and 16
tokens on disk.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ...data.atomic import write_bytes
from ...data.errors import CheckpointError, ConfigError
from ..artefact import REFERENCE
from ..contract import crops_of
from ..encoders.base import Encoder

ABOUT = "about"  # JSON: formula, sizes, tolerance, sha256 of the weights
FORMULA = 1  # of `reference_image`: change it with the formula
TOLERANCE = 1e-3
SIDE = {2: 224, 3: 64}  # pixels, at most, where the architecture takes other sizes than it was trained on
TOKENS = 16  # of each image, evenly spaced over the grid
CHEAP = 100_000_000  # parameters up to which loading checks without being asked
FREQUENCIES = (1, 3, 8)  # periods along an axis


def reference_image(channels: int, size: Sequence[int]) -> Tensor:
    """The generated image, float32 [1, C, *size], about normalised (mean 0.1, deviation 1).

    With u_a in (0, 1) the centre of a pixel along axis a, the first axis counted as 1, and c the channel:
    sum over k in `FREQUENCIES` of cos(2 pi k sum_a(u_a / a) + c + k) / k, plus 1/2 where the sum of
    floor(5 u_a + c / 3) is even, else -1/2 (edges). In float64, rounded at the end.
    """
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in size), indexing="ij")
    slanted = sum(axis / number for number, axis in enumerate(axes, start=1))
    planes = []
    for c in range(channels):
        waves = sum(np.cos(2 * math.pi * k * slanted + c + k) / k for k in FREQUENCIES)
        boxes = sum(np.floor(5 * axis + c / 3) for axis in axes)
        planes.append(waves + np.where(boxes % 2 == 0, 0.5, -0.5))
    return torch.from_numpy(np.stack(planes)[None].astype(np.float32))


def reference_sizes(encoder: Encoder, contract: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Sizes of the generated images: one for each number of axes that the encoder takes.

    Args:
        contract: `input` of encoder.json; its crops decide where it has them.
    """
    by_axes = {len(crop): tuple(int(n) for n in crop) for crop in reversed(crops_of(contract))}
    return [_size(encoder, ndim, by_axes.get(ndim)) for ndim in encoder.axes]


def features(encoder: Encoder, size: Sequence[int]) -> dict[str, Tensor]:
    """`pooled` [1, E] and `tokens` [1, at most TOKENS, E] of the generated image, float32 on the CPU."""
    place = next(encoder.parameters())
    modes = {module: module.training for module in encoder.modules()}
    image = reference_image(encoder.in_channels, size).to(place.device, place.dtype)
    encoder.eval()
    try:
        # TF32 keeps 10 bits of a number: more than the tolerance over the depth of a network.
        with (
            torch.no_grad(),
            torch.autocast(place.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            found = encoder(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    count = found.tokens.shape[1]
    chosen = torch.linspace(0, count - 1, min(TOKENS, count)).round().long()
    return {"pooled": found.pooled.float().cpu(), "tokens": found.tokens[:, chosen].float().cpu()}


def write_reference(folder: Path, encoder: Encoder, contract: Mapping[str, Any], sha256: str) -> Path:
    """Write `reference.npz`, which says itself by which formula and on which sizes it was made.

    Args:
        contract: `input` of encoder.json.
        sha256: of the weights, so that features of other weights are not mistaken for theirs.

    Raises:
        CheckpointError: the features are not finite.
    """
    sizes = reference_sizes(encoder, contract)
    tensors = {}
    for size in sizes:
        made = features(encoder, size)
        if not all(bool(tensor.isfinite().all()) for tensor in made.values()):
            raise CheckpointError(
                f"{folder}: the features of the encoder are not finite, so there is nothing to release: "
                "`medloom diagnose` its run"
            )
        tensors |= {f"{len(size)}d.{name}": tensor.numpy() for name, tensor in made.items()}
    said = {
        "formula": FORMULA, "tolerance": TOLERANCE, "weights": sha256,
        "sizes": [list(size) for size in sizes],
    }  # fmt: skip
    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **{ABOUT: np.array(json.dumps(said, sort_keys=True))}, **tensors)
    path = Path(folder) / REFERENCE
    write_bytes(path, held.getvalue())
    return path


def belongs(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a reference.npz is there and of the weights of this encoder.json."""
    return path.is_file() and _read(path)[0].get("weights") == record.get("sha256")


def difference(path: Path, encoder: Encoder) -> tuple[float, float]:
    """(largest difference from the stored features, tolerance), both in units of their root mean square.

    Args:
        path: a reference.npz.

    Raises:
        CheckpointError: missing, damaged, or made by a formula that this version does not know.
    """
    said, stored = _read(path)
    try:
        formula, tolerance = int(said["formula"]), float(said["tolerance"])
        sizes = [tuple(int(n) for n in size) for size in said["sizes"]]
        wanted = {f"{len(size)}d.{name}" for size in sizes for name in ("pooled", "tokens")}
        if wanted != set(stored):
            raise ValueError(f"arrays {sorted(stored)}")
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not readable ({error}): fetch or export it again") from error
    if formula != FORMULA:
        raise CheckpointError(
            f"{path}: made by formula {formula}, this version knows {FORMULA}: update medloom"
        )
    worst = 0.0
    for size in sizes:
        for name, again in features(encoder, size).items():
            worst = max(worst, apart(again, stored[f"{len(size)}d.{name}"]))
    return worst, tolerance


def prove_encoder(path: Path, encoder: Encoder) -> float:
    """The difference, where it is within the tolerance.

    Raises:
        CheckpointError: it is not: these are the weights, but not in the network that they were trained in.
    """
    found, tolerance = difference(path, encoder)
    if not found <= tolerance:
        raise CheckpointError(
            f"{path}: features of the reference image differ by {found:.2g} (at most {tolerance:g}): the "
            "network around the weights is not the one that was released; update medloom, torch and timm, "
            "or load with prove=False and know what you do"
        )
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what the file says of itself, its tensors); nothing in it is unpickled."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; without it nothing proves that an encoder was loaded right")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        said = json.loads(str(arrays.pop(ABOUT)))
        if not isinstance(said, dict):
            raise ValueError("it does not say what it is")
        return said, {name: torch.from_numpy(values) for name, values in arrays.items()}
    except (BadZipFile, OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise CheckpointError(f"{path}: not readable ({error}): fetch or export it again") from error


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in units of the root mean square of `theirs`; infinite for other shapes or NaN."""
    if ours.shape != theirs.shape:
        return math.inf
    scale = float(theirs.double().square().mean().sqrt())
    found = float((ours.double() - theirs.double()).abs().max()) / max(scale, 1e-12)
    return found if math.isfinite(found) else math.inf


def _size(encoder: Encoder, ndim: int, crop: tuple[int, ...] | None) -> tuple[int, ...]:
    """The crop, cut to SIDE and to whole patches; without a contract the grid of stored positions."""
    stored = getattr(encoder.config, "img_size", None)
    if crop is None and stored:
        crop = (int(stored),) * ndim if isinstance(stored, int) else tuple(int(n) for n in stored)
    for side in (SIDE[ndim], 2 * SIDE[ndim]):  # a network with instance norm refuses a single token
        most = crop or (side,) * ndim
        size = tuple(max(p, min(side, n) // p * p) for p, n in zip(encoder.patch_of(ndim), most, strict=True))
        try:
            encoder.grid(size)
        except ConfigError:
            continue
        return size
    raise ConfigError(f"encoder {encoder.config.name} takes no image of {SIDE[ndim]} pixels a side")
