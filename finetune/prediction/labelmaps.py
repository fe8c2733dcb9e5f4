"""Label maps on the grid of the file that they belong to: NIfTI for volumes, PNG for pictures.

medloom reads volumes in closest canonical orientation; here axes are swapped and flipped back, voxel for
voxel. A NIfTI input lends its own header, so that affine, codes and units of the label map are the input's to
the last bit; of other formats the affine follows from the image's own.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.atomic import replacing, write_bytes
from ...data.errors import ReadError
from ...data.readers import nifti, reader_of

_CANONICAL = "RAS"


def write_label_map(
    stem: Path, labels: np.ndarray, meta: Mapping[str, Any], source: Path | None = None
) -> Path:
    """Write labels [D, H, W] or [H, W], unsigned, of an image read from `source`; returns the file.

    Args:
        stem: path without suffix.
        meta: `key.json` of the image: affine, spacing, orientation in the file.
        source: the file; None (it lies in shards): what `meta` says of it, without its own header.

    Raises:
        ReadError: the file's grid is not the image's (it was changed while it was read).
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    if source is not None and reader_of(source) is nifti:
        return _write_nifti(stem, as_stored(labels, meta), _header(source, labels, meta))
    if labels.ndim == 2 and (source is not None or meta["affine"] is None):
        return _write_png(stem, labels)
    return _write_nifti(stem, as_stored(labels, meta), _made_up(meta))


def as_stored(labels: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    """[D, H, W] or [H, W] -> (x, y, z) or (x, y) in the order and direction of the file's own axes."""
    codes = meta["facts"].get("orientation")
    backward = labels.transpose()
    if codes is None:
        return backward
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

    own = _own(codes)
    if labels.ndim == 2:  # the file's third axis, of one slice, was dropped
        backward = np.expand_dims(backward, int(own[2, 0]))
    turned = apply_orientation(backward, ornt_transform(axcodes2ornt(_CANONICAL), own))
    return turned[..., 0] if labels.ndim == 2 else turned


def _header(source: Path, labels: np.ndarray, meta: Mapping[str, Any]) -> Any:
    """A nibabel header with the geometry of the file and nothing else of it."""
    import nibabel as nib

    found = nib.load(source)
    header: Any = found.header  # type: ignore[attr-defined]
    grid = tuple(int(n) for n in header.get_data_shape()[: labels.ndim])
    if grid != as_stored(labels, meta).shape:
        raise ReadError(f"{source.name}: has {grid} voxels now, others were read; leave it alone meanwhile")
    fresh: Any = nib.Nifti2Header() if header["sizeof_hdr"] == 540 else nib.Nifti1Header()
    fresh.set_data_shape(grid)
    for key in (
        "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
        "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
    ):  # fmt: skip
        fresh[key] = header[key]
    axes = len(grid) + 1
    fresh["pixdim"][:axes] = header["pixdim"][:axes]
    return fresh


def _made_up(meta: Mapping[str, Any]) -> Any:
    """A header for a file that is no NIfTI: its affine in RAS+ mm, its spacing where it states no affine."""
    import nibabel as nib

    from ...data.readers.geometry import reverse_axes

    header: Any = nib.Nifti1Header()
    shape = tuple(meta["shape"][1:])
    if meta["affine"] is None:
        header.set_data_shape(shape[::-1])
        header["pixdim"][1 : 1 + len(shape)] = list(meta["spacing"] or [1.0] * len(shape))[::-1]
    else:
        affine = np.array(meta["affine"], np.float64)
        codes = meta["facts"].get("orientation")
        if len(shape) == 2:  # the dropped axis comes first: back to its place among (d, h, w)
            dropped = 2 - int(_own(codes)[2, 0])
            affine = affine[:, [*np.insert([1, 2], dropped, 0), 3]]
            shape = tuple(int(n) for n in np.insert(shape, dropped, 1))
        affine = reverse_axes(affine)
        turn = _turn(codes, shape[::-1]) if codes else np.eye(4)
        header.set_data_shape(as_stored(np.broadcast_to(np.uint8(0), meta["shape"][1:]), meta).shape)
        header.set_sform(affine @ turn, code=1)
        header.set_qform(affine @ turn, code=1)
    header.set_xyzt_units("mm")
    return header


def _turn(codes: str, shape: tuple[int, ...]) -> np.ndarray:
    """[4, 4] from indices of the file's axes to canonical ones of a grid of `shape` (x, y, z)."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    own = _own(codes)
    return inv_ornt_aff(ornt_transform(axcodes2ornt(_CANONICAL), own), shape)


def _own(codes: str) -> np.ndarray:
    """nibabel's orientation of the file: its axis -> canonical axis, flip."""
    from nibabel.orientations import axcodes2ornt

    return axcodes2ornt(tuple(reversed(codes)))


def _write_nifti(stem: Path, stored: np.ndarray, header: Any) -> Path:
    import nibabel as nib

    path = stem.with_name(f"{stem.name}.nii.gz")
    header.set_data_dtype(stored.dtype)
    kind = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
    image: Any = kind(stored, None, header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    data = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)  # the same labels, the same bytes
    write_bytes(path, data)
    return path


def _write_png(stem: Path, labels: np.ndarray) -> Path:
    from PIL import Image

    path = stem.with_name(f"{stem.name}.png")
    with replacing(path) as temporary:
        Image.fromarray(labels).save(temporary, "PNG")
    return path
