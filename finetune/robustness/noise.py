"""Noise by its physics: electronic, quanta counted, magnitude of a complex signal, coherent echoes.

Each function takes float32 [C, *spatial] (0 black, 1 white), the scene, the severity's amount and a
generator; what is drawn does not depend on the amount, so a higher severity is the same field, stronger.
Doses and counts use the Gaussian limit of Poisson's law for the same reason; it holds down to some ten quanta
a pixel.
"""

from __future__ import annotations

import math

import numpy as np

from .scene import Scene

NOISE_HU = 12.0  # standard deviation of a routine CT of the abdomen at full dose
ATTENUATION = math.log(50.0)  # of X-rays from the darkest to the brightest part of a radiograph


def gaussian(x: np.ndarray, scene: Scene, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Electronic noise of a detector; `sd` as a share of black to white."""
    return x + np.float32(sd) * scene.grain(rng, len(x))


def low_dose(x: np.ndarray, scene: Scene, dose: float, rng: np.random.Generator) -> np.ndarray:
    """CT at a share of the dose: variance is inverse to dose, texture that of filtered back-projection.

    White noise is weighted with the ramp filter under a Hann window in every slice (Kak and Slaney 1988,
    chapter 5), standing for the anti-correlated grain of a reconstruction; `NOISE_HU` at full dose.
    """
    sd = NOISE_HU / scene.span_hu * math.sqrt(1 / dose - 1)
    rows, columns = scene.shape[-2:]
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    ramp = (radius * np.cos(np.pi * np.minimum(radius, 0.5)) ** 2).astype(np.float32)
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-2]):  # slice by slice: the spectrum of a volume is twice its size
        white = rng.standard_normal((rows, columns), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(white) * ramp, s=(rows, columns))
        out[index] = x[index] + np.float32(sd / max(float(field.std()), 1e-6)) * field
    return out


def quantum(x: np.ndarray, scene: Scene, photons: float, rng: np.random.Generator) -> np.ndarray:
    """A radiograph with `photons` a square length unit where it is darkest (least attenuated).

    Brightness is proportional to attenuation (Lambert-Beer), so dense parts, which few photons pass, become
    the noisiest.
    """
    passed = photons * np.exp(-ATTENUATION * np.clip(x, 0, 1))
    counted = np.maximum(passed + np.sqrt(passed) * scene.grain(rng, len(x)), 1.0)
    return (x + np.log(passed / counted) / ATTENUATION).astype(np.float32)


def low_count(x: np.ndarray, scene: Scene, counts: float, rng: np.random.Generator) -> np.ndarray:
    """Emission tomography with `counts` in the brightest voxel: the deviation grows as the root of uptake."""
    field = scene.grain(rng, len(x), 4.0)  # as wide as a reconstruction's filter: 2 mm
    return x + np.sqrt(np.maximum(x, 0) / np.float32(counts)) * field


def rician(x: np.ndarray, scene: Scene, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a signal with noise in both parts (Gudbjartsson and Patz, MRM 1995, equation 1)."""
    real, imaginary = scene.grain(rng, len(x)), scene.grain(rng, len(x))
    return np.hypot(x + np.float32(sd) * real, np.float32(sd) * imaginary)


def speckle(x: np.ndarray, scene: Scene, share: float, rng: np.random.Generator) -> np.ndarray:
    """Coherent speckle: `share` of the brightness is multiplied with a Rayleigh-distributed envelope.

    At 1 the speckle is fully developed (Goodman 2007, chapter 3); the mean brightness stays.
    """
    envelope = np.hypot(scene.grain(rng, len(x), 2.0), scene.grain(rng, len(x), 2.0))
    return x * (1 - share + np.float32(share / math.sqrt(math.pi / 2)) * envelope)
