"""Views of published methods, as they would stand in a recipe: each a list of `CropConfig` sections.

Numbers are the sources'; where a transform differs in kind, a comment says so. For all of them: resizing is
antialiased bilinear where torchvision's recipes are bicubic; the order of colour jitter is fixed; scales are
shares of what the loader read, so `data.crop_scale` belongs at [1, 1] and `data.crop` above the largest crop.
Left-right flips suit where the side of the body is no label (`view.flip=0` otherwise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...data.config import structured
from ...data.errors import ConfigError, nearest
from .config import CropConfig

_JITTER = {"colour": 0.8, "colour_brightness": 0.4, "colour_contrast": 0.4, "colour_saturation": 0.2,
           "colour_hue": 0.1, "grayscale": 0.2}  # fmt: skip
_BLUR = {"blur_least": 0.1, "blur_sigma": 2.0}  # pixels at 224
# DINO cuts the kernel at 9 pixels, SimCLR at a tenth of the side; ours reaches 3 sigma.
_FIRST = {**_JITTER, **_BLUR, "blur": 1.0}
_SECOND = {**_JITTER, **_BLUR, "blur": 0.1, "solarise": 0.2}
_SCANNER = {  # of 3DINO: flips of all axes; a grey scale change; smooth or sharpen (both may meet here)
    "flip": 0.3, "flip_axes": [0, 1, 2], "intensity": 0.5, "gamma": [0.5, 2.0], "brightness": 0.0,
    "contrast": [1.0, 1.0], "noise": 0.3, "noise_sigma": 0.002, "blur_sigma": 1.5, "blur_least": 0.25,
}  # fmt: skip
_NNUNET = {  # grey scale, sharpness and noise of nnU-Net, see nnunet-3d below
    "noise": 0.1, "noise_sigma": 0.1, "blur": 0.2, "blur_least": 0.5, "blur_sigma": 1.0, "intensity": 0.3,
    "brightness": 0.0, "contrast": [0.75, 1.25], "gamma": [0.7, 1.5], "lowres": 0.25,
    "lowres_factor": [1.0, 2.0],
}  # fmt: skip
# nnssl's SimCLR: two crops that share half, nnU-Net's grey scale, mirrors; here boxes of 0.3-1, resized
_PAIR = {"size": [96, 96, 96], "scale": [0.3, 1.0], "aspect": [0.9, 1 / 0.9],
         "view": {**_NNUNET, "flip_axes": [0, 1, 2], "intensity": 0.8}}  # fmt: skip

PRESETS: dict[str, list[dict[str, Any]]] = {
    # facebookresearch/mae main_pretrain.py: RandomResizedCrop(224, (0.2, 1)), flip, nothing else
    "mae": [{"name": "view", "count": 1, "size": [224, 224], "scale": [0.2, 1.0]}],
    # Chen et al. 2020 (arXiv 2002.05709), appendix A: colour strength 1, blur p 0.5
    "simclr": [
        {"name": "view", "count": 2, "size": [224, 224], "scale": [0.08, 1.0],
         "view": {**_BLUR, "colour": 0.8, "colour_brightness": 0.8, "colour_contrast": 0.8,
                  "colour_saturation": 0.8, "colour_hue": 0.2, "grayscale": 0.2, "blur": 0.5}},
    ],
    # facebookresearch/moco-v3 main_moco.py: BYOL's asymmetric pair, crop-min 0.08
    "mocov3": [
        {"name": "view", "count": 1, "size": [224, 224], "scale": [0.08, 1.0], "view": _FIRST},
        {"name": "view", "count": 1, "size": [224, 224], "scale": [0.08, 1.0], "view": _SECOND},
    ],
    "simclr-3d": [{"name": "view", "count": 2, **_PAIR}],
    # LeJEPA (arXiv 2511.08544), 2 global and 6 local views, colours and blur as DINO
    "lejepa": [
        {"name": "global", "count": 2, "size": [224, 224], "scale": [0.3, 1.0],
         "view": {**_JITTER, **_BLUR, "blur": 0.5, "solarise": 0.2}},
        {"name": "local", "count": 6, "size": [96, 96], "scale": [0.05, 0.3],
         "view": {**_JITTER, **_BLUR, "blur": 0.5, "solarise": 0.2}},
    ],
    "lejepa-3d": [
        {"name": "global", "count": 2, **_PAIR},
        {"name": "local", "count": 4, **_PAIR, "size": [48, 48, 48], "scale": [0.05, 0.3]},
    ],
    # facebookresearch/dinov2 dinov2/data/augmentations.py, configs/ssl_default_config.yaml
    "dinov2": [
        {"name": "global", "count": 1, "size": [224, 224], "scale": [0.32, 1.0], "view": _FIRST},
        {"name": "global", "count": 1, "size": [224, 224], "scale": [0.32, 1.0], "view": _SECOND},
        {"name": "local", "count": 8, "size": [96, 96], "scale": [0.05, 0.32],
         "view": {**_JITTER, **_BLUR, "blur": 0.5}},
    ],
    # 3DINO (arXiv 2501.11755): in-plane 0.48-1 and 0.16-0.48, slices 0.5-1 and 0.2-0.5, aspect 0.9-1.11;
    # its quarter turns, histogram shifts and Gibbs ringing are left out
    "dinov2-3d": [
        {"name": "global", "count": 1, "size": [96, 96, 96], "scale": [0.48, 1.0], "depth": [0.5, 1.0],
         "aspect": [0.9, 1 / 0.9], "view": {**_SCANNER, "blur": 0.5, "sharpen": 0.5}},
        {"name": "global", "count": 1, "size": [96, 96, 96], "scale": [0.48, 1.0], "depth": [0.5, 1.0],
         "aspect": [0.9, 1 / 0.9], "view": {**_SCANNER, "blur": 0.1, "sharpen": 0.1}},
        {"name": "local", "count": 8, "size": [48, 48, 48], "scale": [0.16, 0.48], "depth": [0.2, 0.5],
         "aspect": [0.9, 1 / 0.9], "view": {**_SCANNER, "blur": 0.5}},
    ],
    # MIC-DKFZ/nnUNet nnUNetTrainer.get_training_transforms, 3D: rotation +-30 degrees and zoom 0.7-1.4 at 0.2
    # each (here together), noise 0.1, blur 0.2, brightness and contrast 0.15 each and gamma 0.3 (here
    # together), low resolution 0.25; its inverted gamma is left out, and it averages nothing on the way down
    "nnunet-3d": [
        {"name": "view", "count": 1, "size": [96, 96, 96], "scale": [],
         "view": {**_NNUNET, "flip_axes": [0, 1, 2], "affine": 0.2, "degrees": 30.0,
                  "scale": [0.7, 1.4], "shift": 0.0, "padding": "zeros"}},
    ],
    # nnssl MAE trainers: rotation, zoom 0.7-1.4 at 0.2 and mirrors; intensities stay, they are the target
    "mae-3d": [
        {"name": "view", "count": 1, "size": [96, 96, 96], "scale": [],
         "view": {"flip_axes": [0, 1, 2], "affine": 0.2, "degrees": 30.0, "scale": [0.7, 1.4],
                  "shift": 0.0, "padding": "zeros"}},
    ],
}  # fmt: skip


@dataclass(kw_only=True)
class _Section:
    crops: list[CropConfig] = field(default_factory=list)


def preset(name: str) -> list[CropConfig]:
    """The crops of a method. Raises ConfigError for a name not in `PRESETS`."""
    if name not in PRESETS:
        raise ConfigError(f"views have no preset {name!r}{nearest(name, set(PRESETS))}")
    return crop_configs(PRESETS[name], where=f"preset {name}")


def crop_configs(sections: Sequence[Mapping[str, Any]], where: str = "crops") -> list[CropConfig]:
    """`CropConfig`s from the sections of a recipe. Raises ConfigError as `structured`."""
    return structured(_Section, {"crops": [dict(section) for section in sections]}, where=where).crops
