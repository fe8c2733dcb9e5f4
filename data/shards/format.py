"""What a shard holds: member names, block sizes, `key.json`, and the encoding of arrays.

A shard is an uncompressed USTAR tar; the members of one sample are adjacent and named `KEY.EXTENSION`:

    KEY.json      metadata (`META_KEYS`, nothing else)
    KEY.jpg       source JPEG, metadata stripped, never re-encoded; or
    KEY.b2nd      the image [C, D, H, W] or [C, H, W] in its native dtype
    KEY.l2.b2nd   large pictures: mean of 4x4, and so on (KEY.l3.b2nd ...), so that cost follows output pixels
    KEY.seg.b2nd  label map [D, H, W] or [H, W], unsigned integer

Arrays are contiguous Blosc2 frames (codec.py: how they are compressed). A frame with the metalayer `scale`
holds codes of a float32 image: value = float32(code) * float32(scale), exactly; `dtype` in KEY.json is the
image's. Chunks are the unit of reading, blocks the unit of decoding: 64 and 32 voxels, thinner across thick
slices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

from ..errors import ShardError
from ..sample import Sample
from .codec import encode_array

FORMAT_VERSION = 3
READABLE_FORMATS = (1, 2, 3)  # 2: float32 images may be scaled codes; 3: key.json has shapes and readings

META_KEYS = (
    "format", "key", "dataset", "modality", "organ", "licence", "ndim", "shape", "dtype", "spacing", "affine",
    "orientation", "stats", "subject", "study", "split", "labels", "mask", "frame", "facts", "content_hash",
    "shapes", "readings",
)  # fmt: skip

# Kinds of members, as the index stores them: append only.
KIND_JSON, KIND_JPEG, KIND_IMAGE, KIND_MASK = range(4)

CHUNK_3D, BLOCK_3D = 64, 32
CHUNK_2D, BLOCK_2D = 256, 64
THINNEST_BLOCK = 4  # voxels across the thickest slices
TILED_ABOVE_PIXELS = 1024 * 1024  # lossless pictures of more pixels, or of more than 8 bit, are tiled
# The half size is left out: a quarter of the bytes, for crops that shrink two to four times only. With it a
# 16-bit radiograph would be 16 % larger than its PNG, without it 6 % smaller.
FIRST_LEVEL = 2
SMALLEST_LEVEL = 256  # the last level is the first whose longer side is at most this

DAMAGED = "the shard is damaged: delete it and run the build again, or copy it again"


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a shard."""

    name: str
    kind: int
    level: int
    data: bytes


def checksum(data: Any) -> int:
    """CRC-32 (zlib's polynomial) of bytes: tens of GB/s in hardware, so every read affords it."""
    return int(imagecodecs.deflate_crc32(data))


def partition(
    shape: Sequence[int], spacing: Sequence[float] | None, *, ndim: int, tiled: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose (chunks, blocks) for an array whose last `ndim` axes are spatial.

    Volumes: blocks of 32 voxels along the finest axis and proportionally fewer (a power of two, at least 4)
    along coarser ones, chunks of 2 blocks; a volume that fits one chunk is one block. Pictures: chunk 256,
    block 64, all channels together; with `tiled=False` the whole picture is one block.

    Args:
        shape: [C, D, H, W], [D, H, W], [C, H, W] or [H, W].
        spacing: millimetres of the spatial axes, or None for isotropic.
    """
    spatial = tuple(int(n) for n in shape[-ndim:])
    channels = tuple(int(n) for n in shape[:-ndim])
    if ndim == 2:
        chunk = tuple(min(CHUNK_2D, n) for n in spatial) if tiled else spatial
        block = tuple(min(BLOCK_2D, n) for n in spatial) if tiled else spatial
        return (*channels, *chunk), (*channels, *block)
    blocks = [_block_length(s, min(spacing)) for s in spacing] if spacing else [BLOCK_3D] * 3
    scale = CHUNK_3D // BLOCK_3D
    chunk = tuple(min(scale * b, n) for b, n in zip(blocks, spatial, strict=True))
    # A volume of one chunk is read whole: as one block it is 8-11 % smaller and decoded 1.5 times as fast.
    block = chunk if chunk == spatial else tuple(min(b, c) for b, c in zip(blocks, chunk, strict=True))
    ones = (1,) * len(channels)
    return (*ones, *chunk), (*ones, *block)


def _block_length(spacing: float, finest: float) -> int:
    if not (math.isfinite(spacing) and spacing > 0 and finest > 0):
        return BLOCK_3D
    power = round(math.log2(BLOCK_3D * finest / spacing))
    return int(min(BLOCK_3D, max(THINNEST_BLOCK, 2**power)))


def halve(image: np.ndarray) -> np.ndarray:
    """Mean of 2x2 pixels, [C, H, W] -> [C, ceil(H/2), ceil(W/2)], native dtype, halves rounded up.

    Pixel i of level k covers the full-resolution pixels [i * 2**k, (i + 1) * 2**k); odd edges are repeated.
    """
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    if np.issubdtype(image.dtype, np.floating):
        wide = padded.astype(np.float32)
        total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
        return (total / 4).astype(image.dtype)
    wide = padded.astype(np.int32 if image.dtype.itemsize < 4 else np.int64)
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def members_of(sample: Sample, profile: str = "small") -> Iterator[Member]:
    """Encode one sample as its members, in the order in which they lie in the tar.

    Args:
        profile: "small" or "fast", see codec.py.

    Raises:
        ShardError: `sample.meta` has missing or unknown keys, or an array cannot be stored.
    """
    key, meta = sample.key, sample.meta
    check_key(key)
    yield Member(f"{key}.json", KIND_JSON, 0, encode_meta(key, meta))
    ndim = int(meta["ndim"])
    if sample.jpeg is not None:
        yield Member(f"{key}.jpg", KIND_JPEG, 0, sample.jpeg)
    elif ndim == 3:
        frame = encode_array(sample.image, *partition(sample.image.shape, meta["spacing"], ndim=3), profile)
        yield Member(f"{key}.b2nd", KIND_IMAGE, 0, frame)
    else:
        yield from _picture_members(key, sample.image, profile)
    if sample.mask is not None:
        mask = sample.mask
        tiled = ndim == 3 or mask.size > TILED_ABOVE_PIXELS
        chunks, blocks = partition(mask.shape, meta["spacing"], ndim=ndim, tiled=tiled)
        frame = encode_array(mask, chunks, blocks, profile)
        yield Member(f"{key}.seg.b2nd", KIND_MASK, 0, frame)


def _picture_members(key: str, image: np.ndarray, profile: str) -> Iterator[Member]:
    pixels = image.shape[-2] * image.shape[-1]
    tiled = image.dtype.itemsize > 1 or pixels > TILED_ABOVE_PIXELS
    frame = encode_array(image, *partition(image.shape, None, ndim=2, tiled=tiled), profile)
    yield Member(f"{key}.b2nd", KIND_IMAGE, 0, frame)
    level = 0
    while tiled and max(image.shape[-2:]) > SMALLEST_LEVEL:
        image, level = halve(image), level + 1
        if level >= FIRST_LEVEL:
            frame = encode_array(image, *partition(image.shape, None, ndim=2), profile)
            yield Member(f"{key}.l{level}.b2nd", KIND_IMAGE, level, frame)


def check_key(key: str) -> None:
    """Refuse keys that tar or webdataset would split or rename (dots, slashes, more than 80 characters)."""
    if not (0 < len(key) <= 80 and key.isascii() and all(c.isalnum() or c in "-_" for c in key)):
        raise ShardError(f"key {key!r} is not usable: use at most 80 of a-z, 0-9, - and _")


def encode_meta(key: str, meta: dict[str, Any]) -> bytes:
    """Serialise `key.json`; refuses keys outside `META_KEYS`, so that nothing personal slips in."""
    missing = [name for name in META_KEYS if name not in meta]
    unknown = sorted(set(meta) - set(META_KEYS))
    if missing or unknown or meta.get("key") != key:
        raise ShardError(
            f"{key}.json: missing keys {missing}, unknown keys {unknown}, key {meta.get('key')!r}"
        )
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def split_name(name: str) -> tuple[str, int, int]:
    """Parse a member name into (key, kind, level). Raises ShardError for a name no shard holds."""
    key, _, extension = name.partition(".")
    fixed = {"json": KIND_JSON, "jpg": KIND_JPEG, "b2nd": KIND_IMAGE, "seg.b2nd": KIND_MASK}
    if extension in fixed:
        return key, fixed[extension], 0
    level, _, rest = extension.partition(".")
    if rest == "b2nd" and level.startswith("l") and level[1:].isdigit():
        return key, KIND_IMAGE, int(level[1:])
    raise ShardError(f"unknown member {name!r}: a shard holds .json, .jpg, .b2nd, .lN.b2nd and .seg.b2nd")
