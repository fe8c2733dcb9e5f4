"""One sample as the bytes of plain files: NIfTI, JPEG, PNG, TIFF, and NPY for what none of them holds.

Lossless and exact: native dtype, no scaling, the affine as it is. NIfTI-1 keeps an affine in float32; where
that would round it, the file is NIfTI-2, which keeps float64 and which nibabel, ITK and MONAI read alike.
Source JPEGs are passed on byte for byte. The same sample gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..normalise import grey

LEVEL = 1  # of deflate: higher ones take several times as long for some percent
LOSSY = ".jpg"

_REVERSE = np.eye(4)[:, [2, 1, 0, 3]]  # (d, h, w) <-> (x, y, z)


def suffix_of(meta: Mapping[str, Any]) -> str:
    """Suffix of an image that is not stored as JPEG: .nii.gz, .png, .tif or .npy."""
    if int(meta["ndim"]) == 3:
        return ".nii.gz"
    channels = int(meta["shape"][0])
    if meta["dtype"] in ("uint8", "uint16") and (channels == 1 or (channels == 3 and not grey(meta))):
        return ".png"
    return ".tif" if channels == 1 else ".npy"  # three equal channels would come back as one


def mask_suffix_of(meta: Mapping[str, Any]) -> str:
    """Suffix of a label map: .nii.gz, .png or .tif."""
    if int(meta["ndim"]) == 3:
        return ".nii.gz"
    return ".png" if meta["mask"]["dtype"] in ("uint8", "uint16") else ".tif"


def image_bytes(image: np.ndarray, meta: Mapping[str, Any]) -> bytes:
    """File of an image [C, D, H, W] or [C, H, W], of the kind that `suffix_of` says."""
    return _encoded(image, suffix_of(meta), meta)


def mask_bytes(mask: np.ndarray, meta: Mapping[str, Any]) -> bytes:
    """File of a label map [D, H, W] or [H, W], of the kind that `mask_suffix_of` says."""
    return _encoded(mask[None], mask_suffix_of(meta), meta)


def nifti_bytes(volume: np.ndarray, affine: Any, spacing: Any) -> bytes:
    """Gzipped NIfTI of a volume [C, D, H, W]; several channels become the fourth axis.

    Args:
        affine: [4, 4] of (d, h, w) in RAS+ mm; None writes the spacing (mm, 1 when None) and says that the
            orientation is not known (sform code 2, aligned to something).
    """
    import imagecodecs
    import nibabel as nib

    array = volume.transpose(3, 2, 1, 0)
    if array.shape[3] == 1:
        array = array[..., 0]
    if affine is None:
        xyz = np.diag([*reversed(spacing or (1.0, 1.0, 1.0)), 1.0])
    else:
        xyz = np.asarray(affine, np.float64) @ _REVERSE
    exact = bool((xyz.astype(np.float32).astype(np.float64) == xyz).all())
    image: Any = (nib.Nifti1Image if exact else nib.Nifti2Image)(array, xyz, dtype=array.dtype)
    image.set_sform(xyz, code=2 if affine is None else 1)
    columns = xyz[:3, :3] / np.linalg.norm(xyz[:3, :3], axis=0)
    if affine is not None and np.allclose(columns.T @ columns, np.eye(3), atol=1e-4):
        image.set_qform(xyz, code=1)  # ITK prefers it; a sheared affine has none
    image.header.set_xyzt_units("mm")
    return bytes(imagecodecs.gzip_encode(image.to_bytes(), level=LEVEL))


def _encoded(array: np.ndarray, suffix: str, meta: Mapping[str, Any]) -> bytes:
    import imagecodecs

    if suffix == ".nii.gz":
        return nifti_bytes(array, meta["affine"], meta["spacing"])
    if suffix == ".png":
        pixels = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=LEVEL))
    buffer = io.BytesIO()
    if suffix == ".tif":
        import tifffile

        tifffile.imwrite(
            buffer, array[0], photometric="minisblack", compression="zlib", metadata=None, software=False
        )
    else:
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
