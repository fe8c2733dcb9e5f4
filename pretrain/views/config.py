"""What a view is made of: one dataclass, everything but the flips off by default.

Lengths are pixels of the view, or voxels; intensities are units of the normalised image (a deviation for MR,
1000 HU for CT, about a quarter of the range for pictures). A probability is per sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.errors import CollectionError, ConfigError, nearest
from ...data.sample import Modality, parse_modality
from .affine import PADDINGS
from .lowres import AXES

MR = ["mri", "fmri", "dmri"]
COLOUR = [
    "fundus", "slit-lamp", "endoscopy", "colposcopy", "dermoscopy", "photography", "histopathology",
    "cytology", "microscopy",
]  # fmt: skip
PROBABILITIES = (
    "flip", "affine", "bias", "intensity", "stain", "colour", "grayscale", "sharpen", "blur", "lowres",
    "noise", "rician", "solarise", "erase",
)  # fmt: skip
RANGES = ("scale", "contrast", "gamma", "lowres_factor", "erase_area", "erase_aspect")


def _for_whom() -> dict[str, list[str]]:
    return {"bias": list(MR), "rician": list(MR), "stain": ["histopathology"], "grayscale": list(COLOUR)}


@dataclass(kw_only=True)
class ViewConfig:
    """Augmentation of one view; the defaults are MAE's: left-right flips and nothing else."""

    # Geometry: one resampling for all of it, none for samples that are only mirrored and cut.
    size: list[int] = field(default_factory=list)  # pixels of the view; empty: those of the image
    jitter: float = 1.0  # place of a smaller view in its image: 0 the middle, 1 anywhere
    flip: float = 0.5  # probability of a flip, for each axis of flip_axes by itself
    flip_axes: list[int] = field(default_factory=lambda: [-1])  # spatial axes; -1 is left-right
    affine: float = 0.0  # probability of a rotation, scaling and shift
    degrees: float = 15.0  # rotation about every axis, uniform in +- degrees, in millimetres' space
    scale: list[float] = field(default_factory=lambda: [0.9, 1.1])  # zoom, log-uniform
    shift: float = 0.05  # translation, uniform in +- this share of the side
    padding: str = "border"  # beyond the image: border | reflection | zeros (0 is about its mean)
    # Grey scale
    bias: float = 0.0  # probability of a bias field (MR)
    bias_strength: float = 0.2  # coefficients of the logarithm of the field, uniform in +- this
    bias_order: int = 3  # degree of the polynomial
    intensity: float = 0.0  # probability of a change of brightness, contrast and gamma
    brightness: float = 0.2  # added, uniform in +- this many units of the normalised image
    contrast: list[float] = field(default_factory=lambda: [0.8, 1.25])  # factor about the mean, log-uniform
    gamma: list[float] = field(default_factory=lambda: [0.7, 1.5])  # exponent on [min, max], log-uniform
    # Colour; shares of the range from black to white, as in torchvision
    stain: float = 0.0  # probability of a change of the stains (histology)
    stain_sigma: float = 0.1  # factor in 1 +- this, offset in +- this (optical density, ln) for each stain
    colour: float = 0.0  # probability of colour jitter: brightness, contrast, saturation, hue in this order
    colour_brightness: float = 0.4  # factor, uniform in 1 +- this
    colour_contrast: float = 0.4  # factor, uniform in 1 +- this
    colour_saturation: float = 0.2  # factor, uniform in 1 +- this; grey pictures have none
    colour_hue: float = 0.1  # share of a turn, uniform in +- this
    grayscale: float = 0.0  # probability of the grey picture
    solarise: float = 0.0  # probability of inverting all that is brighter than ...
    solarise_threshold: float = 0.5  # ... this share of the range
    # Sharpness and noise
    sharpen: float = 0.0  # probability of an unsharp mask, sigma 1 pixel
    sharpen_amount: float = 1.0  # largest share of the detail that is added
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: float = 1.5  # largest sigma, in pixels
    blur_least: float = 0.0  # smallest sigma, in pixels
    lowres: float = 0.0  # probability of a lower resolution: averaged and interpolated back
    lowres_factor: list[float] = field(default_factory=lambda: [1.0, 2.0])  # pixels averaged, log-uniform
    lowres_axes: str = "all"  # all: the same factor for all | one: a drawn axis, as thick slices
    noise: float = 0.0  # probability of Gaussian noise
    noise_sigma: float = 0.1  # largest sigma, in units of the normalised image
    rician: float = 0.0  # probability of Rician noise (MR), sigma up to noise_sigma
    erase: float = 0.0  # probability of boxes set to 0
    erase_count: int = 1  # boxes
    erase_area: list[float] = field(default_factory=lambda: [0.02, 0.2])  # share of the view, uniform
    erase_aspect: list[float] = field(default_factory=lambda: [0.3, 3.3])  # width / height, log-uniform
    # Which modalities a transform is for (key: the name of its probability); absent or empty: all. Geometry
    # is for all. A batch that does not say its modalities is of the right one.
    modalities: dict[str, list[str]] = field(default_factory=_for_whom)

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"view.{name} is {getattr(self, name)}: it is a probability, 0 to 1")
        for name in RANGES:
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ConfigError(f"view.{name} is {list(limits)}: write two numbers, 0 < low <= high")
        if not 0 <= self.blur_least <= self.blur_sigma:
            raise ConfigError(
                f"view.blur_least {self.blur_least} lies outside 0 .. view.blur_sigma {self.blur_sigma}"
            )
        if self.lowres_factor[0] < 1:
            raise ConfigError(
                f"view.lowres_factor {list(self.lowres_factor)}: 2 halves the resolution; from 1"
            )
        for name, words in (("padding", PADDINGS), ("lowres_axes", AXES)):
            if getattr(self, name) not in words:
                word = getattr(self, name)
                raise ConfigError(
                    f"view.{name} is {word!r}: write {' or '.join(words)}{nearest(word, words)}"
                )
        known = [name for name in PROBABILITIES if name not in ("flip", "affine")]
        for name in self.modalities:
            if name not in known:
                raise ConfigError(f"view.modalities names {name!r}{nearest(name, known)}")
            try:
                self.only(name)
            except CollectionError as error:
                raise ConfigError(f"view.modalities.{name}: {error}") from error

    def only(self, transform: str) -> list[Modality]:
        """Modalities that `transform` is for; empty: all."""
        return [parse_modality(word) for word in self.modalities.get(transform, ())]


@dataclass(kw_only=True)
class CropConfig:
    """Some crops of each loaded image, all drawn alike. Crops of one `name` are numbered through."""

    name: str = "global"  # the i-th crop of a name draws from the stream "name:i"
    count: int = 2
    size: list[int] = field(default_factory=list)  # pixels of the crop; empty: those of the loaded image
    # Share of the area or volume of the image, uniform; empty: a box of `size` pixels, not resized.
    scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    aspect: list[float] = field(default_factory=lambda: [0.75, 4 / 3])  # in-plane stretch, log-uniform
    depth: list[float] = field(
        default_factory=list
    )  # 3D: share of the slices, uniform, and `scale` is then in-plane; empty: `scale` is of the volume
    visible: float = 1.0  # share of the patches that the trained encoder computes, drawn for each crop
    view: ViewConfig = field(default_factory=ViewConfig)  # without size and jitter, which the crop decides

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"crops.count is {self.count}: write at least 1, or leave {self.name!r} out")
        if not 0 < self.visible <= 1:
            raise ConfigError(f"crops.visible is {self.visible}: a share of the patches, above 0 and up to 1")
        for name, highest in (("scale", 1), ("aspect", None), ("depth", 1)):
            limits = getattr(self, name)
            if name != "aspect" and not limits:
                continue
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] or (highest and limits[1] > highest):
                bound = " <= 1" if highest else ""
                raise ConfigError(
                    f"crops.{name} is {list(limits)}: write two numbers, 0 < low <= high{bound}"
                )
        if self.view.size:
            raise ConfigError(f"crops.view.size is {list(self.view.size)}: a crop has its own, crops.size")
