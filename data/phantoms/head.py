"""Head phantom: tissues of the brain and skull, imaged by the signal equations of spin echo MR.

Contrast comes from proton density, T1 and T2 of each tissue at 3 T, not from drawn grey values: the same head
gives T1, T2 and FLAIR. A bias field of the coil and Rician noise complete it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import Space, halve, smooth

EDEMA, CORE = 1, 2

# Proton density, T1 ms, T2 ms at about 3 T: round numbers of the order that Stanisz et al. 2005 report;
# fat and marrow as they look under the fat suppression of common protocols.
TISSUES: dict[str, tuple[float, float, float]] = {
    "air": (0.0, 1000, 50), "bone": (0.08, 700, 12), "marrow": (0.5, 450, 60), "fat": (0.62, 380, 60),
    "muscle": (0.75, 1400, 36), "csf": (1.0, 4200, 1900), "grey": (0.84, 1450, 99), "white": (0.70, 850, 72),
    "deep": (0.80, 1200, 82), "edema": (0.88, 1750, 165), "tumour": (0.84, 1500, 125),
    "enhancing": (0.82, 420, 105), "necrosis": (0.97, 2900, 480),
}  # fmt: skip

# Repetition, echo and inversion time in ms; T1 is inversion-prepared, T2 is not.
SEQUENCES: dict[str, tuple[float, float, float | None]] = {
    "t1": (2300, 4, 1100), "t2": (4800, 98, None), "flair": (9000, 105, 2450),
}  # fmt: skip

_CODES = {name: code for code, name in enumerate(TISSUES)}


@dataclass(slots=True)
class Head:
    """Tissue codes of one head on a fine grid; z to superior, y to anterior, x to the right."""

    tissues: np.ndarray  # uint8 [2D, 2H, 2W], index into TISSUES
    lesion: np.ndarray  # uint8 [2D, 2H, 2W]: 0, EDEMA, CORE
    spacing: tuple[float, float, float]  # mm (D, H, W) of the image, twice the grid's


def head(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    view: tuple[float, float, float],
    *,
    grade: str | None,
) -> Head:
    """Draw one head.

    Args:
        rng: generator of everything.
        shape: voxels (D, H, W) of the images that will be taken.
        view: field of view in mm (D, H, W).
        grade: None, "low" (an infiltrating tumour) or "high" (necrosis inside an enhancing rim).
    """
    build = rng.uniform(0.93, 1.05)
    fine = tuple(2 * size for size in shape)
    spacing = tuple(length / size for length, size in zip(view, fine, strict=True))
    space = Space(rng, fine, [step / build for step in spacing], warp=1.8, cells=4)
    codes = np.zeros(fine, np.uint8)
    _skull(rng, space, codes)
    _brain(rng, space, codes)
    _inside(rng, space, codes)
    lesion = np.zeros(fine, np.uint8)
    if grade is not None:
        _tumour(rng, space, codes, lesion, grade)
    return Head(codes, lesion, tuple(round(2 * step, 4) for step in spacing))  # type: ignore[arg-type]


def image(rng: np.random.Generator, subject: Head, sequence: str, *, snr: float = 22.0) -> np.ndarray:
    """Take an MR image of a head.

    Args:
        rng: generator of bias field and noise.
        subject: the head.
        sequence: a key of SEQUENCES.
        snr: white matter signal over the noise's standard deviation in each channel.

    Returns:
        uint16 [D, H, W] of 12 bits, magnitude.
    """
    table = np.array([signal(sequence, *values) for values in TISSUES.values()], np.float32)
    texture = 1 + 0.03 * smooth(rng, subject.tissues.shape, 20)
    coarse = halve(table[subject.tissues] * texture)
    bias = np.exp(0.14 * smooth(rng, coarse.shape, 1.6))
    coarse *= bias
    sigma = table[_CODES["white"]] / snr
    real = coarse + sigma * rng.standard_normal(coarse.shape).astype(np.float32)
    imaginary = sigma * rng.standard_normal(coarse.shape).astype(np.float32)
    magnitude = np.hypot(real, imaginary)
    return np.rint(np.clip(magnitude / np.percentile(magnitude, 99.8) * 3000, 0, 4095)).astype(np.uint16)


def lesion_mask(subject: Head) -> np.ndarray:
    """Label map uint8 [D, H, W] on the image's voxels: a voxel belongs to what fills half of it."""
    core = halve((subject.lesion == CORE).astype(np.float32))
    whole = halve((subject.lesion > 0).astype(np.float32))
    return np.where(core >= 0.5, CORE, np.where(whole >= 0.5, EDEMA, 0)).astype(np.uint8)


def signal(sequence: str, density: float, t1: float, t2: float) -> float:
    """Signal of a spin echo, inversion-prepared where the sequence is (magnitude, long flip-angle limit)."""
    repetition, echo, inversion = SEQUENCES[sequence]
    recovered = 1 - np.exp(-repetition / t1)
    if inversion is not None:
        recovered = abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))
    return float(density * recovered * np.exp(-echo / t2))


def _paint(codes: np.ndarray, where: np.ndarray, tissue: str) -> None:
    np.copyto(codes, np.uint8(_CODES[tissue]), where=where)


def _skull(rng: np.random.Generator, space: Space, codes: np.ndarray) -> None:
    """Scalp, skull with marrow, face, sinuses and eyes; the inside of the skull is left to the brain."""
    vault = np.sqrt(((space.z - 5) / 84) ** 2 + (space.y / 98) ** 2 + (space.x / 78) ** 2)
    neck = (space.z < -30) & (((space.y + 8) / 62) ** 2 + (space.x / 56) ** 2 < 1)
    face = (space.z < -18) & (((space.y - 40) / 58) ** 2 + (space.x / 54) ** 2 < 1)
    _paint(codes, vault < 1.0, "fat")
    _paint(codes, neck | face, "fat")
    inner_neck = (space.z < -30) & (((space.y + 8) / 54) ** 2 + (space.x / 48) ** 2 < 1)
    inner_face = (space.z < -18) & (((space.y - 38) / 50) ** 2 + (space.x / 46) ** 2 < 1)
    _paint(codes, inner_neck | inner_face, "muscle")
    _paint(codes, vault < 0.955, "muscle")
    _paint(codes, vault < 0.935, "bone")
    _paint(codes, (vault < 0.915) & (vault > 0.895) & (space.z > -20), "marrow")
    _paint(codes, (vault < 0.90) & (space.z < -30) & (space.y > -30), "muscle")
    for side in (-1, 1):
        box, level = space.ellipsoid((-34, 66, side * 31), (17, 20, 17))
        _paint(codes[box], level < 1, "fat")
        box, level = space.ellipsoid((-34, 72, side * 31), (12, 12, 12))
        _paint(codes[box], level < 1, "csf")
        box, level = space.ellipsoid((-58, 52, side * 28), (18, 17, 14))
        _paint(codes[box], level < 1, "air")
        box, level = space.ellipsoid((-58, -20, side * 50), (16, 16, 11))
        _paint(codes[box], (level < 1) & (smooth(rng, space.shape, 24)[box] > -0.2), "air")
    for centre, radii in (((-48, 62, 0), (34, 26, 9)), ((-14, 84, 0), (12, 7, 17))):
        box, level = space.ellipsoid(centre, radii)
        _paint(codes[box], level < 1, "air")


def _brain(rng: np.random.Generator, space: Space, codes: np.ndarray) -> None:
    """Cerebrum with folded cortex, cerebellum with folia, brain stem, and the fluid around them."""
    temporal = np.exp(-(((np.abs(space.x) - 40) / 24) ** 2) - ((space.y - 4) / 34) ** 2)
    base = -18 - 27 * temporal
    skull = np.sqrt(((space.z - 5) / 74) ** 2 + (space.y / 88) ** 2 + (space.x / 68.5) ** 2)
    cavity = (skull < 1) & (space.z > base)
    _paint(codes, cavity, "csf")
    atrophy = rng.uniform(0.94, 0.985)
    folds = smooth(rng, space.shape, [extent / 15 for extent in _extent(space)])
    finer = smooth(rng, space.shape, [extent / 10 for extent in _extent(space)])
    valley = np.abs(folds + 0.5 * finer)
    cerebrum = cavity & (skull < atrophy) & (space.z > base + 3)
    _paint(codes, cerebrum, "grey")
    # White matter keeps a distance from the surface and from every valley.
    depth = (atrophy - skull) * 74
    white = cerebrum & (depth > 6) & ((valley > 0.50) | (depth > 23))
    white &= (np.abs(space.x) > 6) | (skull < 0.55)
    _paint(codes, white, "white")
    _paint(codes, cerebrum & (depth < 17) & (valley < 0.15), "csf")
    fissure = (np.abs(space.x + 2.5 * finer) < 1.7) & ((space.z > 26) | (space.y > 38) | (space.y < -48))
    _paint(codes, cerebrum & fissure, "csf")
    for side in (-1, 1):
        sylvian = np.abs(space.z + 6 - 0.45 * (space.y - 10) - 3 * folds) < 1.7
        sylvian &= (side * space.x > 44) & (np.abs(space.y - 6) < 24)
        _paint(codes, cerebrum & sylvian, "csf")
    box, level = space.ellipsoid((-42, -50, 0), (25, 32, 47))
    inside = (level < 1) & (skull[box] < 0.99)
    _paint(codes[box], (level < 1.06) & (skull[box] < 0.99), "csf")
    leaves = np.sin(2 * np.pi * (level * 5 + 0.25 * finer[box]))
    _paint(codes[box], inside, "grey")
    _paint(codes[box], inside & ((leaves > 0.45) & (level > 0.4) | (level < 0.42)), "white")
    stem = ((space.y + 18 + 0.18 * space.z) / 14) ** 2 + (space.x / 15) ** 2
    _paint(codes, (stem < 1.9) & (space.z < -12) & (space.z > -75) & (codes != _CODES["grey"]), "csf")
    _paint(codes, (stem < 1) & (space.z < -4), "white")


def _inside(rng: np.random.Generator, space: Space, codes: np.ndarray) -> None:
    """Ventricles and deep grey nuclei; the size of the ventricles varies as with age."""
    wide = rng.uniform(0.75, 1.6)
    for side in (-1, 1):
        parts = [
            ((8, -8, side * 13), (11, 18, 8), 0.0, "deep"),  # thalamus
            ((16, 16, side * 15), (9, 13, 5), 0.0, "deep"),  # caudate
            ((4, 8, side * 27), (10, 18, 6), -side * 0.2, "deep"),  # lentiform
            ((-20, -10, side * 30), (6, 18, 6), 0.0, "grey"),  # hippocampus
            ((21, 18, side * 8), (7, 20, 5 * wide), side * 0.25, "csf"),  # anterior horn
            ((23, -10, side * 12), (7, 24, 5 * wide), -side * 0.2, "csf"),  # body
            ((8, -36, side * 24), (9, 17, 5 * wide), side * 0.25, "csf"),  # posterior horn
            ((-18, -10, side * 33), (3, 17, 2.6 * wide), 0.0, "csf"),  # temporal horn
        ]
        for centre, radii, turn, tissue in parts:
            box, level = space.ellipsoid(centre, radii, turn=turn)
            _paint(codes[box], level < 1, tissue)
    for centre, radii in (((5, -4, 0), (11, 15, 2.2 * wide)), ((-38, -34, 0), (10, 6, 7))):
        box, level = space.ellipsoid(centre, radii)
        _paint(codes[box], level < 1, "csf")


def _tumour(
    rng: np.random.Generator, space: Space, codes: np.ndarray, lesion: np.ndarray, grade: str
) -> None:
    """An irregular tumour in a hemisphere with oedema along the white matter around it."""
    side = rng.choice([-1, 1])
    centre = (rng.uniform(0, 40), rng.uniform(-42, 42), side * rng.uniform(26, 38))
    radius = rng.uniform(13, 21)
    rough = 0.20 * smooth(rng, space.shape, 9) + 0.08 * smooth(rng, space.shape, 20)
    reach = rng.uniform(1.35, 1.9)
    brain = np.isin(codes, [_CODES[name] for name in ("white", "grey", "deep")])
    white = codes == _CODES["white"]
    box, level = space.ellipsoid(centre, (radius * reach,) * 3, rough=rough)
    core = level * reach < 1
    edema = (level < 1) & ~core & brain[box] & (white[box] | (level < 0.75))
    core &= brain[box] | (codes[box] == _CODES["csf"])
    _paint(codes[box], edema, "edema")
    lesion[box][edema] = EDEMA
    _paint(codes[box], core, "enhancing" if grade == "high" else "tumour")
    if grade == "high":
        _paint(codes[box], core & (level * reach < 0.72), "necrosis")
    lesion[box][core] = CORE


def _extent(space: Space) -> list[float]:
    return [float(axis[-1] - axis[0]) for axis in space.axes]
