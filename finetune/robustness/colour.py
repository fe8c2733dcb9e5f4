"""Colour: another lamp or camera, another laboratory's stain. Three channels, red, green and blue, 0 .. 1."""

from __future__ import annotations

import math

import numpy as np

from .scene import Scene

# Absorption of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston, AQCH 2001, table 1).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def white_balance(x: np.ndarray, scene: Scene, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Another light: the channels' gains move apart by exp(+-amount), their product stays (von Kries)."""
    angle = rng.uniform(0, 2 * math.pi)
    gains = np.cos(angle + np.array([0, 2, 4]) * math.pi / 3)
    gains /= np.abs(gains).max()
    return np.clip(x * np.exp(amount * gains).astype(np.float32)[:, None, None], 0, 1)


def stain(x: np.ndarray, scene: Scene, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Another stain: the amounts of haematoxylin, eosin and rest are scaled by exp(+-amount).

    Colour deconvolution (Ruifrok and Johnston, AQCH 2001) in optical density, as in the HED augmentation of
    Tellez et al., TMI 2018; haematoxylin and eosin never change alike, which would be an exposure.
    """
    direction = rng.choice([-1.0, 1.0]) * np.array([1.0, -1.0, 0.0]) * rng.uniform(0.6, 1.0, 3)
    axes = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    mixed = np.linalg.inv(axes) @ np.diag(np.exp(amount * direction)) @ axes  # density -> density
    density = -np.log((np.clip(x, 0, 1) * 255 + 1) / 256)
    changed = np.tensordot(mixed.T.astype(np.float32), density, axes=1)
    return np.clip((np.exp(-changed) * 256 - 1) / 255, 0, 1).astype(np.float32)
