"""Views on the device: normalisation, geometry, intensity, colour and noise, batched, in 2D and 3D.

Every random transform has a deterministic twin. The random one only draws parameters, keyed by (seed,
position, stream), and calls the twin; nothing depends on the rank, the batch or the number of draws made
before. A sample that a draw spares comes back bit for bit. `random_view` makes one view of a configuration,
`multi_crop` several crops.

The choice: after loading, on the device, in float32. One 96^3 affine costs a CPU core 37 ms, nine to twenty
times the loading of the crop. The price: a sampling grid of 4 n bytes a voxel (n = 2 or 3) while it runs.

Legend: x is [B, C, H, W] or [B, C, D, H, W], n its number of spatial axes; parameters are [B, ...] on the
device of x. docs/augmentation.md lists the transforms with their units and sources.
"""

from .affine import affine, affine_matrix, random_affine
from .bias import bias_field, random_bias_field
from .blur import blur, random_blur, random_sharpen, sharpen
from .boxes import jittered_boxes, overlap, random_boxes
from .colour import colour_jitter, grayscale, random_colour, random_grayscale, random_solarise, solarise
from .config import CropConfig, ViewConfig
from .erase import erase, random_erase
from .flips import flip, random_flip
from .intensity import intensity, random_intensity
from .labels import affine_labels
from .lowres import low_resolution, random_low_resolution
from .multicrop import Crops, multi_crop, random_crop
from .noise import noise, random_noise, random_rician, rician
from .normalise import Limits, limits, to_float
from .placement import Placement, random_placement
from .presets import PRESETS, preset
from .separable import pick, resize
from .stain import random_stain, stain_jitter
from .view import random_appearance, random_view

__all__ = [
    "PRESETS", "CropConfig", "Crops", "Limits", "Placement", "ViewConfig", "affine", "affine_labels",
    "affine_matrix", "bias_field", "blur", "colour_jitter", "erase", "flip", "grayscale", "intensity",
    "jittered_boxes", "limits", "low_resolution", "multi_crop", "noise", "overlap", "pick", "preset",
    "random_affine", "random_appearance", "random_bias_field", "random_blur", "random_boxes",
    "random_colour", "random_crop", "random_erase", "random_flip", "random_grayscale", "random_intensity",
    "random_low_resolution", "random_noise", "random_placement", "random_rician", "random_sharpen",
    "random_solarise", "random_stain", "random_view", "resize", "rician", "sharpen", "solarise",
    "stain_jitter", "to_float",
]  # fmt: skip
