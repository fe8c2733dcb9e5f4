"""2D phantoms: breast ultrasound and colour fundus.

Each is drawn by what makes its modality look as it does: speckle is the envelope of a band-limited echo of
random scatterers; the vessels of a retina branch out of the optic disc and arch around the macula.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from .fields import smooth, to_bytes

ULTRASOUND_CLASSES = ("normal", "benign", "malignant")
FUNDUS_CLASSES = ("normal", "retinopathy")


def ultrasound(rng: np.random.Generator, size: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """B-mode picture of a breast: skin, fat, gland, muscle, and the lesion that `label` asks for.

    Args:
        rng: generator of everything.
        size: pixels.
        label: one of ULTRASOUND_CLASSES.

    Returns:
        uint8 [size, size], depth downwards, and the lesion's mask uint8 {0, 1}.
    """
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(-0.5, 0.5, size), indexing="ij")
    wave = 0.030 * smooth(rng, (size, size), (1, 3))
    depth = y + wave
    skin, fat = rng.uniform(0.03, 0.06), rng.uniform(0.16, 0.30)
    gland, muscle = fat + rng.uniform(0.28, 0.42), rng.uniform(0.80, 0.9)
    septa = np.abs(smooth(rng, (size, size), (9, 6)))
    echo = np.full((size, size), 0.055)  # fat: dark with bright septa
    echo += 0.35 * (septa < 0.10)
    tissue = (depth > fat) & (depth < gland)
    texture = np.clip(0.34 + 0.2 * smooth(rng, (size, size), (16, 7)), 0.06, 1)
    echo = np.where(tissue, texture, echo)
    stripes = 0.10 + 0.28 * (np.sin(2 * np.pi * (depth * 26 + 0.6 * wave / 0.03)) > 0.75)
    echo = np.where(depth > muscle, stripes, echo)
    echo = np.where(np.abs(depth - muscle) < 0.008, 1.1, echo)
    echo = np.where(depth < skin, 0.8, echo)
    through = np.ones((size, size))  # what the tissue above lets through to each pixel
    for _ in range(rng.integers(1, 4)):  # lobules of fat inside the gland look like faint lesions
        inside = _blob(rng, x, y, (rng.uniform(-0.4, 0.4), rng.uniform(fat, gland)), 0.05, 0.45, 0.08) < 1
        echo = np.where(inside & tissue, 0.09, echo)
    mask = np.zeros((size, size), bool)
    if label != "normal":
        mask = _breast_lesion(rng, x, y, echo, through, (fat, gland), malignant=label == "malignant")
    attenuation = 10 ** (-(y * rng.uniform(0.7, 1.5)) * 0.5)
    return _b_mode(rng, echo * through * attenuation), mask.astype(np.uint8)


def _breast_lesion(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    echo: np.ndarray,
    through: np.ndarray,
    gland: tuple[float, float],
    *,
    malignant: bool,
) -> np.ndarray:
    """Change echo and transmission in place; returns the mask. Traits overlap between the two classes."""
    centre = (rng.uniform(-0.22, 0.22), rng.uniform(gland[0] + 0.06, gland[1] - 0.02))
    width = rng.uniform(0.09, 0.19) * (0.85 if malignant else 1.0)
    ratio = rng.uniform(0.62, 1.15) if malignant else rng.uniform(0.42, 0.82)
    spikes = rng.uniform(0.05, 0.12) if malignant else rng.uniform(0.0, 0.05)
    level = _blob(rng, x, y, centre, width, ratio, 0.07, spikes)
    mask = level < 1
    inside = rng.uniform(0.012, 0.05)
    grain = 1 + (0.7 if malignant else 0.25) * smooth(rng, x.shape, 16)
    echo[mask] = (inside * np.clip(grain, 0.2, 3))[mask]
    if malignant:
        halo = (level >= 1) & (level < 1.25)
        echo[halo] = np.maximum(echo[halo], 0.5)
        for _ in range(rng.integers(0, 5)):
            at = centre + rng.uniform(-0.5, 0.5, 2) * width
            echo[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 0.006**2] = 2.5
    else:
        echo[(level >= 0.94) & (level < 1.06)] = 0.45
    shadow = rng.random() < (0.75 if malignant else 0.12)
    column = np.exp(-(((x - centre[0]) / (0.85 * width)) ** 4))
    below = np.clip((y - centre[1]) / (ratio * width), 0, 1.5) / 1.5
    through *= 1 + (rng.uniform(-0.9, -0.6) if shadow else rng.uniform(0.1, 1.1)) * column * below
    return mask


def _blob(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    width: float,
    ratio: float,
    wobble: float,
    spikes: float = 0.0,
) -> np.ndarray:
    """Level (1 on the edge) of an ellipse whose radius varies with the angle."""
    tilt = rng.uniform(-0.25, 0.25)
    u = (x - centre[0]) * np.cos(tilt) + (y - centre[1]) * np.sin(tilt)
    v = (y - centre[1]) * np.cos(tilt) - (x - centre[0]) * np.sin(tilt)
    angle = np.arctan2(v / ratio, u)
    radius = np.ones_like(x)
    for order in (2, 3, 4):
        radius += wobble / order * 2 * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    for order in (7, 9, 12, 15):
        radius += spikes * rng.uniform(0.5, 1) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v / ratio) / (width * np.clip(radius, 0.3, None))


def _b_mode(rng: np.random.Generator, echo: np.ndarray) -> np.ndarray:
    """Log-compressed envelope of random scatterers seen through the transducer's point spread."""
    # Two looks (spatial compounding), each with a real and an imaginary part.
    scatter = rng.standard_normal((4, *echo.shape)).astype(np.float32) * np.clip(echo, 2e-3, None) ** 0.7
    spread = echo.shape[0] / 192
    blurred = gaussian_filter(scatter, (0, 0.8 * spread, 1.7 * spread))
    envelope = np.sqrt((blurred**2).sum(axis=0))
    decibel = 20 * np.log10(envelope / np.percentile(envelope, 99.7) + 1e-4)
    return to_bytes((decibel + rng.uniform(33, 40)) / 44)


def fundus(rng: np.random.Generator, size: int, grade: int, *, left: bool) -> np.ndarray:
    """Colour photograph of a retina.

    Args:
        rng: generator of everything.
        size: pixels.
        grade: 0 healthy, 1 few microaneurysms, 2 and 3 with haemorrhages and hard exudates.
        left: left eye: the disc lies left of the macula.

    Returns:
        uint8 RGB [size, size, 3].
    """
    scale = 2 * size  # drawn at twice the size, so that thin vessels keep smooth edges
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    radius = np.hypot(x, y)
    disc = np.array([rng.uniform(0.40, 0.50), rng.uniform(-0.06, 0.06)])
    macula = disc - [rng.uniform(0.60, 0.68), -rng.uniform(0.02, 0.08)]
    base = np.array([0.78, 0.37, 0.17]) * rng.uniform(0.85, 1.12) * rng.uniform(0.93, 1.07, 3)
    choroid = 0.035 * smooth(rng, (size, size), 16) + 0.05 * smooth(rng, (size, size), 3)
    picture = base * (1 + choroid[..., None] * [0.8, 1.2, 1.3])
    fovea = np.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / 0.022)
    picture *= 1 - fovea[..., None] * [0.25, 0.42, 0.40]
    vessels = _vessels(rng, scale, disc, macula).resize((size, size), Image.Resampling.LANCZOS)
    veins, arteries = (np.asarray(band, np.float32)[..., None] / 255 for band in vessels.split()[:2])
    away = np.hypot(x - disc[0], (y - disc[1]) * 0.92)
    size_of_disc = rng.uniform(0.125, 0.15)
    inside = 1 / (1 + np.exp((away - size_of_disc) / 0.010))[..., None]
    cup = 1 / (1 + np.exp((away - size_of_disc * rng.uniform(0.3, 0.55)) / 0.016))[..., None]
    picture = picture * (1 - inside) + inside * np.array([0.97, 0.74, 0.44])
    picture = picture * (1 - 0.6 * cup) + 0.6 * cup * np.array([1.0, 0.92, 0.74])
    picture *= 1 - veins * [0.42, 0.66, 0.52]
    picture *= 1 - arteries * [0.20, 0.50, 0.45]
    if grade:
        _retinopathy(rng, picture, x, y, macula, grade)
    light = 1.08 - 0.42 * np.hypot(x - rng.uniform(-0.25, 0.25), y - rng.uniform(-0.25, 0.25)) ** 2
    picture = gaussian_filter(picture * light[..., None], (rng.uniform(0.3, 0.9),) * 2 + (0,))
    picture += 0.012 * rng.standard_normal(picture.shape)
    picture *= (1 / (1 + np.exp((radius - 0.955) / 0.006)))[..., None]
    picture = to_bytes(picture)
    return np.ascontiguousarray(picture[:, ::-1]) if left else picture


def _vessels(rng: np.random.Generator, scale: int, disc: np.ndarray, macula: np.ndarray) -> Image.Image:
    """Veins (red band) and arteries (green band) that branch from the disc and arch around the macula."""
    canvas = Image.new("RGB", (scale, scale))
    draw = ImageDraw.Draw(canvas)
    stack = []
    for band in (0, 1):
        for upward in (-1, 1):
            for angle, width in ((np.pi - 0.95, 1.0), (np.pi - 1.5, 0.6), (0.55, 0.62)):
                start = disc + rng.normal(0, 0.015, 2) + [0, 0.02 * band]
                turn = angle + rng.normal(0, 0.12) + 0.10 * band
                calibre = width * (1.0 if band == 0 else 0.72)
                stack.append((float(start[0]), float(start[1]), upward * turn, calibre, band))
    pixels = scale / 2
    middle_x, middle_y, edge = float(macula[0]), float(macula[1]), float(disc[0]) - 0.05
    while stack:
        x, y, heading, width, band = stack.pop()
        # Large vessels bend around the macula at a distance; nothing crosses the fovea.
        for step, wobble in enumerate(rng.normal(0, 0.07, int(rng.integers(14, 30)))):
            pull = (math.atan2(middle_y - y, middle_x - x) - heading + math.pi) % (2 * math.pi) - math.pi
            bend = 0.055 if math.hypot(middle_x - x, middle_y - y) > 0.42 else -0.10
            heading += math.copysign(1, pull) * bend * (x < edge) + wobble
            new_x, new_y = x + 0.034 * math.cos(heading), y + 0.034 * math.sin(heading)
            if math.hypot(new_x, new_y) > 1.0 or math.hypot(middle_x - new_x, middle_y - new_y) < 0.15:
                break
            strength = int(150 + 105 * min(1.0, width))
            draw.line(
                [((x + 1) * pixels, (y + 1) * pixels), ((new_x + 1) * pixels, (new_y + 1) * pixels)],
                fill=(strength, 0, 0) if band == 0 else (0, strength, 0),
                width=max(1, round(width * scale / 62)),
            )
            x, y, width = new_x, new_y, 0.985 * width
            if step > 4 and width > 0.16 and rng.random() < 0.10:
                fork = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
                stack.append((x, y, fork, 0.62 * width, band))
        else:
            if width > 0.2:
                spread = rng.uniform(0.25, 0.5)
                stack.append((x, y, heading + spread, 0.74 * width, band))
                stack.append((x, y, heading - spread, 0.66 * width, band))
    return canvas.filter(ImageFilter.GaussianBlur(scale / 400))


def _retinopathy(
    rng: np.random.Generator,
    picture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    macula: np.ndarray,
    grade: int,
) -> None:
    """Microaneurysms and blot haemorrhages (dark red), hard exudates (yellow clusters), in place."""
    rough = 0.35 * smooth(rng, x.shape, 40)
    half = len(x) / 2

    def spot(centre: np.ndarray, radius: float, colour: np.ndarray, share: np.ndarray | float) -> None:
        """Blend `colour` into the picture in place, within twice the radius."""
        low = np.clip(np.floor((centre - 2 * radius + 1) * half), 0, len(x)).astype(int)
        high = np.clip(np.ceil((centre + 2 * radius + 1) * half) + 1, 0, len(x)).astype(int)
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        level = np.hypot(x[box] - centre[0], y[box] - centre[1]) / radius + rough[box]
        weight = np.clip((1.2 - level) / 0.3, 0, 1)[..., None] * share
        picture[box] += weight * (colour - picture[box])

    black, yellow = np.zeros(3), np.array([0.98, 0.86, 0.48])
    for _ in range(int(rng.integers(4, 9) * grade)):
        spot(rng.uniform(-0.75, 0.75, 2), rng.uniform(0.010, 0.018), black, np.array([0.45, 0.75, 0.7]))
    for _ in range(int(rng.integers(2, 6) * (grade - 1))):
        spot(rng.uniform(-0.7, 0.7, 2), rng.uniform(0.02, 0.045), black, np.array([0.35, 0.6, 0.6]))
    for _ in range(int(rng.integers(1, 3) * (grade - 1))):
        cluster = macula + rng.normal(0, 0.22, 2)
        for _ in range(int(rng.integers(5, 12))):
            spot(cluster + rng.normal(0, 0.06, 2), rng.uniform(0.010, 0.026), yellow, 0.8)
