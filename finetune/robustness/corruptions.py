"""Every corruption by name with its five severities, and which of them befall which modality.

`corrupt(image, meta, name, severity)` is a pure function of the case's key, the corruption and the severity:
what is drawn (a field, a direction, a place) belongs to case and corruption, and the severity only makes it
stronger, so that harm grows with it and two encoders meet the same pixels. The amounts are set so that 1 is
what a careful reader notices and 5 what one would send back; they are choices, not measurements of a clinic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data.draws import stream_key
from ...data.errors import ConfigError, nearest
from ...data.sample import Modality
from . import colour, jpeg, noise, optics, resonance, sampling
from .scene import Scene, is_colour, is_grey, scene_of

VERSION = 1  # change it with any change of what a severity does: scores of two versions do not compare
SEVERITIES = (1, 2, 3, 4, 5)
_LEAST_SLICES = 4  # of a volume whose slices are to be thickened

Apply = Callable[[np.ndarray, Scene, float, np.random.Generator], np.ndarray]
Needs = Literal["", "picture", "volume", "colour"]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way in which images go wrong."""

    name: str
    title: str  # for tables and pictures
    apply: Apply
    amounts: tuple[float, float, float, float, float]  # of severities 1 to 5
    unit: str  # of the amounts
    needs: Needs = ""


CORRUPTIONS: dict[str, Corruption] = {
    one.name: one
    for one in (
        Corruption("noise", "Noise", noise.gaussian, (0.03, 0.06, 0.1, 0.15, 0.22), "sd, share of the range"),
        Corruption("low_dose", "Low dose", noise.low_dose, (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32),
                   "share of the dose"),
        Corruption("quantum_noise", "Quantum noise", noise.quantum, (2e4, 6e3, 2e3, 800, 300),
                   "photons a square unit in air"),
        Corruption("low_count", "Low count", noise.low_count, (400, 150, 60, 25, 10),
                   "counts in the brightest voxel"),
        Corruption("rician_noise", "Rician noise", noise.rician, (0.02, 0.04, 0.07, 0.11, 0.16),
                   "sd, share of the range"),
        Corruption("speckle", "Speckle", noise.speckle, (0.15, 0.25, 0.4, 0.55, 0.75), "share of the light"),
        Corruption("motion", "Motion", resonance.motion, (2, 4, 7, 11, 16), "units of displacement"),
        Corruption("ghosting", "Ghosting", resonance.ghosting, (0.1, 0.2, 0.3, 0.45, 0.65),
                   "share of the signal"),
        Corruption("bias_field", "Bias field", resonance.bias_field, (0.15, 0.3, 0.5, 0.7, 1.0), "log gain"),
        Corruption("blur", "Blur", optics.blur, (0.8, 1.4, 2.2, 3.2, 4.5), "sd, units"),
        Corruption("motion_blur", "Motion blur", optics.motion_blur, (4, 7, 10, 14, 20), "units of length"),
        Corruption("exposure", "Exposure", optics.exposure, (0.5, 1.0, 1.5, 2.0, 2.6), "stops"),
        Corruption("contrast", "Contrast", optics.haze, (0.75, 0.6, 0.45, 0.3, 0.2), "share that is left",
                   "colour"),
        Corruption("gamma", "Tone curve", optics.tone, (0.2, 0.4, 0.6, 0.8, 1.1), "log gamma"),
        Corruption("shadow", "Acoustic shadow", optics.shadow, (0.35, 0.5, 0.65, 0.8, 0.95), "share lost"),
        Corruption("colour_shift", "Colour shift", colour.white_balance, (0.1, 0.2, 0.3, 0.42, 0.6),
                   "log gain", "colour"),
        Corruption("stain", "Stain", colour.stain, (0.15, 0.3, 0.45, 0.65, 0.9), "log amount", "colour"),
        Corruption("jpeg", "JPEG", jpeg.jpeg, (50, 30, 18, 10, 5), "quality", "picture"),
        Corruption("resolution", "Resolution", sampling.resolution, (1.5, 2, 2.5, 3, 4), "times the pixel"),
        Corruption("anisotropy", "Anisotropy", sampling.anisotropy, (1.5, 2, 3, 4, 6), "times the pixel"),
        Corruption("slice_thickness", "Slice thickness", sampling.slice_thickness, (1.5, 2, 3, 4, 6),
                   "times the slice", "volume"),
        Corruption("cropping", "Cropping", sampling.cropping, (0.95, 0.9, 0.8, 0.7, 0.6), "share of a side"),
    )
}  # fmt: skip

_EVERYWHERE = ("resolution", "cropping")
_CAMERA = (
    "noise", "blur", "motion_blur", "exposure", "contrast", "colour_shift", "gamma", "jpeg", *_EVERYWHERE,
)  # fmt: skip
_RADIOGRAPH = ("quantum_noise", "blur", "motion_blur", "exposure", "gamma", "jpeg", *_EVERYWHERE)
_CT = ("low_dose", "blur", "motion_blur", "anisotropy", "slice_thickness", *_EVERYWHERE)
_MR = (
    "rician_noise", "motion", "ghosting", "bias_field", "gamma", "blur", "anisotropy", "slice_thickness",
    *_EVERYWHERE,
)  # fmt: skip
_EMISSION = ("low_count", "blur", "motion_blur", "slice_thickness", *_EVERYWHERE)
_COHERENT = ("speckle", "blur", "motion_blur", "exposure", "gamma", "jpeg", *_EVERYWHERE)
_MICROSCOPE = ("noise", "blur", "exposure", "contrast", "colour_shift", "gamma", "jpeg", *_EVERYWHERE)
_STAINED = ("noise", "blur", "stain", "exposure", "contrast", "colour_shift", "jpeg", *_EVERYWHERE)

BY_MODALITY: dict[Modality, tuple[str, ...]] = {
    Modality.XRAY: _RADIOGRAPH,
    Modality.MAMMOGRAPHY: _RADIOGRAPH,
    Modality.DBT: ("quantum_noise", "blur", "motion_blur", "gamma", "slice_thickness", *_EVERYWHERE),
    Modality.DSA: _RADIOGRAPH,
    Modality.FLUOROSCOPY: _RADIOGRAPH,
    Modality.CT: _CT,
    Modality.CBCT: _CT,
    Modality.MRI: _MR,
    Modality.FMRI: _MR,
    Modality.DMRI: _MR,
    Modality.PET: _EMISSION,
    Modality.SPECT: _EMISSION,
    Modality.ULTRASOUND: ("speckle", "shadow", "blur", "exposure", "gamma", "jpeg", *_EVERYWHERE),
    Modality.OCT: _COHERENT,
    Modality.OCTA: _COHERENT,
    Modality.SLO: _COHERENT,
    Modality.FUNDUS: _CAMERA,
    Modality.FLUORESCEIN_ANGIOGRAPHY: _CAMERA,
    Modality.SLIT_LAMP: _CAMERA,
    Modality.ENDOSCOPY: _CAMERA,
    Modality.COLPOSCOPY: _CAMERA,
    Modality.DERMOSCOPY: _CAMERA,
    Modality.PHOTOGRAPHY: _CAMERA,
    Modality.INFRARED: _CAMERA,
    Modality.HISTOPATHOLOGY: _STAINED,
    Modality.CYTOLOGY: _STAINED,
    Modality.MICROSCOPY: _MICROSCOPE,
    Modality.EM: ("noise", "blur", "exposure", "gamma", "jpeg", "slice_thickness", *_EVERYWHERE),
    Modality.OTHER: ("noise", "blur", "gamma", "jpeg", "slice_thickness", *_EVERYWHERE),
}


def corruption(name: str) -> Corruption:
    """A corruption by its name. Raises ConfigError with near names."""
    if name not in CORRUPTIONS:
        raise ConfigError(f"corruptions: unknown corruption {name!r}{nearest(name, set(CORRUPTIONS))}")
    return CORRUPTIONS[name]


def usual(meta: Mapping[str, Any]) -> list[str]:
    """Corruptions that befall an image with this `key.json`: those of its modality that it can take."""
    return [name for name in BY_MODALITY[Modality(meta["modality"])] if fits(CORRUPTIONS[name], meta)]


def fits(one: Corruption, meta: Mapping[str, Any]) -> bool:
    """Whether an image can take a corruption at all: colours, slices, a picture."""
    match one.needs:
        case "picture":
            return int(meta["ndim"]) == 2
        case "volume":
            return int(meta["ndim"]) == 3 and int(meta["shape"][1]) >= _LEAST_SLICES
        case "colour":
            return is_colour(meta)
        case _:
            return True


def corrupt(image: np.ndarray, meta: Mapping[str, Any], name: str, severity: int) -> np.ndarray:
    """The image [C, *spatial] as it would be with this fault: the same shape and dtype, native units.

    Args:
        image: as stored.
        meta: its `key.json`: key, modality, spacing and statistics of the stored image.
        name: of `CORRUPTIONS`.
        severity: 1 to 5; 0 leaves the image as it is.

    Raises:
        ConfigError: unknown corruption or severity, or one that this image cannot take.
    """
    one = corruption(name)
    check_severities([severity], least=0)
    if severity == 0:
        return image
    if not fits(one, meta):
        raise ConfigError(f"corruptions: {name} needs a {one.needs} image, and {meta['key']} is none")
    grey = is_grey(meta)  # a grey picture in three channels stays one: its noise is not coloured
    stored = image[:1] if grey else image
    scene = scene_of({**meta, "stats": _first(meta["stats"])} if grey else meta, stored.shape)
    found = one.apply(scene.to_unit(stored), scene, one.amounts[severity - 1], generator(meta["key"], name))
    native = scene.to_native(found, image.dtype)
    return np.repeat(native, len(image), axis=0) if grey else native


def generator(key: str, name: str) -> np.random.Generator:
    """Draws of a case and a corruption, the same at every severity."""
    case = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([stream_key(VERSION, f"robustness.{name}"), case])


def check_severities(severities: Sequence[int], *, least: int = 1) -> None:
    """Raise ConfigError for what is not a severity."""
    for severity in severities:
        if not least <= severity <= SEVERITIES[-1]:
            raise ConfigError(f"severities: {severity}: give numbers from {least} (mild) to 5 (severe)")


def _first(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the first channel alone."""
    kept = {name: stats[name][:1] for name in ("min", "max", "mean", "std")}
    return {**stats, **kept, "percentiles": {p: v[:1] for p, v in stats["percentiles"].items()}}
