"""Sections of small encoders of every family, and a size of image that each takes."""

VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "depth": 2}
ENCODERS = {
    "vit": ({**VIT, "img_size": 32, "patch_size": 8}, (48, 32)),
    "vit14": ({**VIT, "img_size": 28, "patch_size": 14}, (42, 28)),
    "convnext": ({"name": "convnet", "model": "convnext_atto"}, (64, 96)),
    "resnet": ({"name": "convnet", "model": "resnet10t"}, (64, 64)),
    "vit3d": ({"name": "vit3d", "size": "tiny", "depth": 2, "patch_size": [8, 8, 8]}, (16, 24, 16)),
    "thick": ({"name": "vit3d", "size": "tiny", "depth": 2, "patch_size": [2, 8, 8]}, (6, 24, 16)),
}  # fmt: skip
