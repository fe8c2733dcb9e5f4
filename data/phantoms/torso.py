"""Torso phantom: Hounsfield units of thorax and upper abdomen, the liver with its lesions, and a radiograph.

Every tissue has its own Hounsfield range (portal-venous phase), edges carry partial volume (computed at twice
the resolution), noise is correlated like a reconstruction's. The liver's lesions have look-alikes outside the
label (gallbladder, kidney cysts, vessels), so that a threshold does not solve the task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from .fields import Space, halve, smooth

LIVER, LESION = 1, 2
AIR, LUNG, FAT, SOFT, MUSCLE, BONE = -1000.0, -840.0, -100.0, 42.0, 58.0, 420.0
FIELD_OF_VIEW = (336.0, 384.0, 384.0)  # mm (z, y, x)


@dataclass(slots=True)
class Torso:
    """One patient's torso. Arrays run z to superior, y to anterior, x to the right."""

    hounsfield: np.ndarray  # int16 [D, H, W], with noise
    labels: np.ndarray  # uint8 [D, H, W]: 0, LIVER, LESION
    spacing: tuple[float, float, float]  # mm (D, H, W)
    fine: np.ndarray  # float32 [2D, 2H, 2W], without noise: what a projection integrates


def torso(rng: np.random.Generator, size: int, *, opacity: bool) -> Torso:
    """Draw one torso.

    Args:
        rng: generator of everything.
        size: voxels across; depth is 7/8 of it.
        opacity: whether a lung holds a consolidation or a mass.
    """
    build = rng.uniform(0.9, 1.06)
    shape = (2 * (size * 7 // 8), 2 * size, 2 * size)
    spacing = [view * build / points for view, points in zip(FIELD_OF_VIEW, shape, strict=True)]
    space = Space(rng, shape, [step / build for step in spacing], warp=4.0, cells=4)
    volume = np.full(shape, AIR, np.float32)
    wall, dome = _wall(rng, space, volume)
    inner = wall < 1
    _lungs(rng, space, volume, wall < 0.97, dome, opacity=opacity)
    labels = _liver(rng, space, volume, inner, dome)
    _abdomen(rng, space, volume, labels, inner & (space.z < dome))
    _bones(rng, space, volume, wall)
    _couch(space, volume)
    coarse = halve(volume)
    noise = gaussian_filter(rng.standard_normal(coarse.shape).astype(np.float32), (0.3, 0.6, 0.6))
    coarse += noise / noise.std() * rng.uniform(10, 20)
    lesion = halve((labels == LESION).astype(np.float32))
    liver = halve((labels > 0).astype(np.float32))
    mask = np.where(lesion >= 0.5, LESION, np.where(liver >= 0.5, LIVER, 0)).astype(np.uint8)
    return Torso(
        hounsfield=np.rint(np.clip(coarse, -1024, 3071)).astype(np.int16),
        labels=mask,
        spacing=tuple(round(2 * step, 4) for step in spacing),  # type: ignore[arg-type]
        fine=volume,
    )


def radiograph(rng: np.random.Generator, body: Torso, size: int) -> np.ndarray:
    """Frontal radiograph of a torso: the line integral of attenuation, as it is displayed.

    Returns:
        uint16 [size, size] of 12 bits, bone bright, the patient's right on the left.
    """
    depth, _, width = body.fine.shape
    # Collimated on the chest; rows below y = -135 mm are the couch.
    field = body.fine[int(0.30 * depth) :, int(0.15 * width) :, int(0.06 * width) : int(0.94 * width)]
    attenuation = np.clip(field + 1000, 0, None) * (0.0193 / 1000)  # per mm, about 70 keV
    attenuation += 0.02 * (field > 300)  # bone absorbs more than its density says at low energies
    path = attenuation.sum(axis=1, dtype=np.float32) * (body.spacing[1] / 2)
    stretched: np.ndarray = zoom(path, (size / path.shape[0], size / path.shape[1]), order=3)  # type: ignore[assignment]
    path = stretched[::-1, ::-1]
    photons = 4e4 * np.exp(-np.clip(path, 0, 9)) + 30
    path = -np.log(np.clip(photons + np.sqrt(photons) * rng.standard_normal(path.shape), 1, None) / 4e4)
    path = gaussian_filter(path, 0.5)
    # Like a digital detector's processing: compress the large scales, keep the small ones.
    base = gaussian_filter(path, size / 9)
    shown = 0.55 * base + 1.5 * (path - base)
    low, high = np.percentile(shown, [1, 99.8])
    shown = np.clip((shown - low) / (high - low), 0, 1) ** rng.uniform(0.95, 1.2)
    mark = size // 24
    shown[mark : 2 * mark, -2 * mark : -2 * mark + max(1, mark // 3)] = 1  # "L": the patient's left
    shown[2 * mark - max(1, mark // 3) : 2 * mark, -2 * mark : -mark] = 1
    return np.rint(shown * 4095).astype(np.uint16)


def _wall(rng: np.random.Generator, space: Space, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skin, fat, muscle. Returns the wall's level (1 on its inside) and the diaphragm's height."""
    shoulders = 1 + 0.10 * np.clip(space.z / 168, -1, 1) * rng.uniform(0.5, 1.2)
    girth = rng.uniform(0.93, 1.08)
    across, front = (space.x / (162 * shoulders * girth)) ** 2, (space.y / (110 * girth)) ** 2
    level = across * (0.75 + 0.25 * across) + front * (0.8 + 0.2 * front)
    fat = rng.uniform(0.10, 0.26) * (1.1 - 0.35 * np.clip(space.z / 168, -1, 1))
    volume[level < 1] = 30
    grain = 8 * smooth(rng, space.shape, 22)
    np.copyto(volume, FAT + grain, where=level < 0.96)
    np.copyto(volume, MUSCLE + grain, where=level < 1 - fat)
    wall = level / ((1 - fat) * 0.78)
    inner = wall < 1
    lift = rng.uniform(-12, 12)
    right = 62 * np.clip(1 - ((space.x - 72) / 80) ** 2 - (space.y / 105) ** 2, -0.8, 1)
    left = 54 * np.clip(1 - ((space.x + 72) / 80) ** 2 - (space.y / 105) ** 2, -0.8, 1)
    dome = -38 + lift + np.where(space.x > 0, right, left)
    np.copyto(volume, FAT + 15 + grain, where=inner & (space.z < dome))
    np.copyto(volume, SOFT + grain, where=inner & (space.z >= dome))
    return wall, dome


def _lungs(
    rng: np.random.Generator,
    space: Space,
    volume: np.ndarray,
    inner: np.ndarray,
    dome: np.ndarray,
    *,
    opacity: bool,
) -> None:
    """Lungs with vessels, heart, great vessels and airways."""
    branches = np.abs(smooth(rng, space.shape, (26, 30, 30)))
    texture = LUNG + 25 * smooth(rng, space.shape, 14) - 40 * np.clip(space.y / 90, -1, 1)
    sick = rng.choice([-1, 1])
    for side in (-1, 1):
        centre = (50.0, -2.0, side * 76.0)
        box, level = space.ellipsoid(centre, (128, 100, 70))
        lung = (level < 1) & (side * space.x[box] > 17) & inner[box] & (space.z[box] > dome[box] + 4)
        hilum = np.sqrt(
            (space.x[box] - side * 28) ** 2 + space.y[box] ** 2 + ((space.z[box] - 40) / 1.4) ** 2
        )
        vessels = lung & (branches[box] < 0.16 * np.clip(1.35 - hilum / 95, 0.12, 1.2))
        np.copyto(volume[box], texture[box], where=lung)
        np.copyto(volume[box], 35, where=vessels)
        if opacity and side == sick:
            _opacity(rng, space, volume, lung, box, side)
    _heart(rng, space, volume)


def _opacity(
    rng: np.random.Generator, space: Space, volume: np.ndarray, lung: np.ndarray, box: tuple, side: int
) -> None:
    """Consolidation of a lobe, or a round mass, in one lung."""
    place = (rng.uniform(-20, 105), rng.uniform(-40, 35), side * rng.uniform(62, 95))
    spread = rng.random() < 0.6
    radii = rng.uniform(30, 48, 3).tolist() if spread else [rng.uniform(14, 22)] * 3
    rough = (0.28 if spread else 0.08) * smooth(rng, space.shape, 12)
    inside, level = space.ellipsoid(place, radii, rough=rough)
    share = np.clip((1.15 - level) / 0.5, 0, 1) if spread else (level < 1).astype(np.float32)
    filled = np.zeros(space.shape, bool)
    filled[box] = lung
    share = share * filled[inside] * (0.75 if spread else 1.0)
    volume[inside] += share * (30 - volume[inside])


def _heart(rng: np.random.Generator, space: Space, volume: np.ndarray) -> None:
    large = rng.uniform(0.9, 1.12)
    parts = [
        ((12.0, 22.0, -24.0), (52 * large, 46, 60 * large), SOFT + 10),
        ((8.0, 18.0, -38.0), (30, 26, 30), 155.0),
        ((20.0, 26.0, 10.0), (30, 26, 26), 150.0),
        ((66.0, 8.0, 0.0), (45, 28, 30), SOFT),
        ((84.0, 0.0, -12.0), (16, 34, 15), 160.0),  # arch
        ((62.0, 18.0, 12.0), (30, 12, 12), 160.0),  # ascending aorta, pulmonary trunk
        ((56.0, 22.0, -16.0), (20, 12, 14), 155.0),
    ]
    for centre, radii, value in parts:
        box, level = space.ellipsoid(centre, radii)
        np.copyto(volume[box], value, where=level < 1)
    tubes = [
        ((-30.0, -40.0, -20.0), 12.0, (-170, 90), 160.0),  # descending aorta
        ((-60.0, -28.0, 22.0), 11.0, (-170, 20), 120.0),  # inferior vena cava
        ((128.0, 0.0, 2.0), 8.5, (72, 170), AIR + 20),  # trachea
    ]
    for (_, y, x), radius, (low, high), value in tubes:
        level = (space.y - y) ** 2 + (space.x - x) ** 2
        np.copyto(volume, value, where=(level < radius**2) & (space.z > low) & (space.z < high))
    for side in (-1, 1):
        box, level = space.ellipsoid((62, -2, side * 17 + 2), (14, 6, 19), turn=0.0)
        tilt = space.z[box] - 68 + side * 0.6 * (space.x[box] - 2)
        np.copyto(volume[box], AIR + 40, where=(level < 1) & (np.abs(tilt) < 8))


def _liver(
    rng: np.random.Generator, space: Space, volume: np.ndarray, inner: np.ndarray, dome: np.ndarray
) -> np.ndarray:
    """Liver, its vessels and one to four lesions (one liver in six has none). Returns uint8 labels."""
    labels = np.zeros(space.shape, np.uint8)
    rough = 0.07 * smooth(rng, space.shape, 6)
    box, level = space.ellipsoid((-42, 6, 62), (78, 92, 104), rough=rough)
    lower = space.z[box] > -112 + 0.62 * np.clip(80 - space.x[box], 0, 150)
    liver = (level < 1) & lower & inner[box] & (space.z[box] < dome[box] - 3)
    base = rng.uniform(88, 118)
    np.copyto(volume[box], base + 5 * smooth(rng, space.shape, 18)[box], where=liver)
    vessels = liver & (np.abs(smooth(rng, space.shape, (11, 12, 12))[box]) < 0.055)
    vessels &= np.abs(smooth(rng, space.shape, (9, 10, 10))[box]) < 0.5
    volume[box][vessels] += 48
    labels[box][liver] = LIVER
    count = 0 if rng.random() < 0.16 else int(rng.integers(1, 5))
    inside = np.argwhere(liver[::3, ::3, ::3]) * 3
    if count and not len(inside):
        return labels
    for _ in range(count):
        corner = inside[rng.integers(len(inside))]
        z, y, x = (int(corner[axis] + (box[axis].start or 0)) for axis in range(3))
        _lesion(rng, space, volume, labels, (z, y, x), base)
    return labels


def _lesion(
    rng: np.random.Generator,
    space: Space,
    volume: np.ndarray,
    labels: np.ndarray,
    at: tuple[int, int, int],
    base: float,
) -> None:
    """A metastasis (hypodense, some with an enhancing rim) or a haemangioma-like bright one."""
    centre = (float(space.z[at]), float(space.y[at]), float(space.x[at]))
    radius = rng.uniform(15, 32)
    rough = 0.14 * smooth(rng, space.shape, 14)
    box, level = space.ellipsoid(centre, (radius * rng.uniform(0.8, 1.2, 3)).tolist(), rough=rough)
    lesion = (level < 1) & (labels[box] > 0)
    kind = rng.random()
    depth = rng.uniform(32, 62) if kind < 0.85 else -rng.uniform(38, 60)
    np.copyto(volume[box], base - depth, where=lesion)
    if kind < 0.3:
        np.copyto(volume[box], base + 35, where=lesion & (level > 0.78))
    if 0.3 < kind < 0.5:
        np.copyto(volume[box], 15.0, where=lesion & (level < 0.55))
    labels[box][lesion] = LESION


def _abdomen(
    rng: np.random.Generator, space: Space, volume: np.ndarray, labels: np.ndarray, cavity: np.ndarray
) -> None:
    """Spleen, stomach, kidneys, gallbladder, bowel: whatever is not liver below the diaphragm."""
    free = cavity & (labels == 0)
    loops = smooth(rng, space.shape, (11, 12, 12))
    gas = smooth(rng, space.shape, (9, 10, 10)) > 1.1
    gut = free & (space.z < -62) & (space.y > -42)
    np.copyto(volume, SOFT, where=gut & (loops > -0.15))
    np.copyto(volume, 14, where=gut & (loops > 0.25))
    np.copyto(volume, AIR + 150, where=gut & gas & (loops > 0.3) & (space.y > 10))
    jitter = rng.uniform(-6, 6, (4, 3))
    stomach = (np.array([-22.0, 28, -62]) + jitter[0], (52.0, 40.0, 44.0))
    for shrink, value in ((1.0, 60.0), (0.87, 22.0)):
        box, level = space.ellipsoid(*stomach)
        np.copyto(volume[box], value, where=(level < shrink) & free[box])
        if shrink < 1:
            np.copyto(volume[box], AIR + 30, where=(level < shrink) & free[box] & (space.y[box] > 44))
    box, level = space.ellipsoid(np.array([-34.0, -42, -108]) + jitter[1], (52, 40, 30), turn=0.3)
    np.copyto(volume[box], rng.uniform(108, 128), where=(level < 1) & free[box])
    for index, side in enumerate((-1, 1)):
        centre = np.array([-102.0, -56, side * 64]) + jitter[2 + index]
        box, level = space.ellipsoid(centre, (54, 27, 30), turn=side * 0.5)
        for bound, value in ((1.0, 178.0), (0.72, 135.0), (0.38, -45.0)):
            np.copyto(volume[box], value, where=(level < bound) & free[box])
        if rng.random() < 0.45:
            place = centre + rng.uniform(-24, 24, 3)
            inside, level = space.ellipsoid(place, (rng.uniform(11, 20),) * 3)
            np.copyto(volume[inside], 6, where=(level < 1) & free[inside])
    box, level = space.ellipsoid((-92, 48, 56), (26, 17, 15), turn=-0.4)
    np.copyto(volume[box], 8, where=(level < 1) & free[box])


def _bones(rng: np.random.Generator, space: Space, volume: np.ndarray, wall: np.ndarray) -> None:
    """Spine with discs, ribs, sternum, clavicles, shoulder blades."""
    pitch = rng.uniform(29, 34)
    phase = np.mod(space.z + rng.uniform(0, pitch), pitch) / pitch
    _spine(space, volume, phase)
    slope = space.z + 0.42 * (space.y + 92) - 10 * np.abs(space.x) / 132
    ribs = (np.mod(slope, pitch) < 0.42 * pitch) & (wall > 0.98) & (wall < 1.25)
    ribs &= (space.z > -112 + 0.5 * (space.y + 92)) & ((space.y < 62) | (np.abs(space.x) > 48))
    np.copyto(volume, BONE, where=ribs)
    box, level = space.ellipsoid((60, 90, 0), (78, 7, 19))
    np.copyto(volume[box], 260, where=level < 1)
    for side in (-1, 1):
        box, level = space.ellipsoid((142, 56, side * 74), (7, 8, 64), turn=side * 0.38)
        np.copyto(volume[box], BONE, where=level < 1)
        box, level = space.ellipsoid((104, -84, side * 108), (52, 6, 34), turn=-side * 0.55)
        np.copyto(volume[box], BONE - 120, where=(level < 1) & (volume[box] > -300))


def _spine(space: Space, volume: np.ndarray, phase: np.ndarray) -> None:
    """Vertebral bodies with discs between them, arches around the canal, spinous and transverse processes."""
    back = space.box((0, -85, 0), (1e3, 45, 40))
    y, x, part, view = space.y[back], space.x[back], phase[back], volume[back]
    body = ((y + 70) / 19) ** 2 + (x / 23) ** 2
    np.copyto(view, 90, where=body < 1)
    np.copyto(view, BONE + 100, where=(body < 1) & (part < 0.8))
    np.copyto(view, 205, where=(body < 0.72) & (part > 0.07) & (part < 0.73))
    arch = ((y + 97) / 15) ** 2 + (x / 19) ** 2
    np.copyto(view, BONE, where=(arch < 1) & (part < 0.55))
    np.copyto(view, 28, where=((y + 96) / 8) ** 2 + (x / 10) ** 2 < 1)
    process = (np.abs(x) < 3.5) & (y < -108) & (y > -128) & (part < 0.5)
    np.copyto(view, BONE, where=process)
    wings = (np.abs(x) < 38) & (np.abs(y + 92) < 5) & (part > 0.15) & (part < 0.42)
    np.copyto(view, BONE, where=wings)


def _couch(space: Space, volume: np.ndarray) -> None:
    """The scanner's table, which every abdominal CT shows behind the patient."""
    y, x = space.axes[1].reshape(1, -1, 1), space.axes[2].reshape(1, 1, -1)
    below = y + 142 - (x / 210) ** 2 * 26
    np.copyto(volume, -250, where=(np.abs(below) < 4) & (np.abs(x) < 178) & (volume < -900))
    np.copyto(volume, -820, where=(below < -4) & (below > -20) & (np.abs(x) < 172) & (volume < -900))
