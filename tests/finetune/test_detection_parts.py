"""What detection is made of: boxes of marks and masks, anchors, augmentation, windows, pyramids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from medloom.finetune.config import AugmentConfig, DetectionConfig
from medloom.finetune.detection.anchors import plan_anchors, possible_strides
from medloom.finetune.detection.augment import augment_boxes, visible
from medloom.finetune.detection.boxes import Boxes, mask_boxes, shape_boxes
from medloom.finetune.detection.network import BoxNetwork
from medloom.finetune.detection.windows import padded_shape, whole_maps, window_starts
from medloom.pretrain.encoders import build_encoder

SHARP = {"disc": 200.0, "square": 20.0}  # on a ground of 100


def test_boxes_of_marks_and_of_masks() -> None:
    shapes = [
        {"kind": "box", "label": "a", "points": [[1, 2], [5, 6]], "annotator": None, "group": None},
        {"kind": "polygon", "label": "b", "points": [[0, 0], [3, 9], [4, 1]], "annotator": None, "group": 1},
        {"kind": "polygon", "label": "b", "points": [[7, 0], [8, 2], [9, 1]], "annotator": None, "group": 1},
        {"kind": "point", "label": "a", "points": [[1, 1]], "annotator": None, "group": None},
        {"kind": "box", "label": "c", "points": [[1, 2], [5, 6]], "annotator": None, "group": None},
        {"kind": "box", "label": "a", "points": [[8, 8], [12, 12]], "annotator": None, "group": None},
    ]
    found = shape_boxes({"ndim": 2, "shape": [1, 10, 10], "shapes": shapes}, ["a", "b"])
    assert found.corners.tolist() == [[1, 2, 5, 6], [0, 0, 9, 9], [8, 8, 10, 10]]  # cut to the image
    assert found.labels.tolist() == [0, 1, 0]
    assert len(shape_boxes({"ndim": 3, "shape": [1, 4, 4, 4]}, ["a"])) == 0
    mask = np.zeros((3, 6, 8), dtype=np.uint8)
    mask[0, :2, :2] = mask[1, 2, 2] = 4  # they touch at a corner: one object
    mask[2, 5, 7] = 4
    mask[0, 5, 5:7] = 9
    found = mask_boxes(mask, {4: 0, 9: 1})
    assert sorted(map(tuple, found.corners.tolist())) == [
        (0, 0, 0, 2, 3, 3), (0, 5, 5, 1, 6, 7), (2, 5, 7, 3, 6, 8)
    ]  # fmt: skip
    assert len(mask_boxes(mask, {4: 0}, components=False)) == 1
    scaled = Boxes(np.array([[0.0, 2, 4, 8]]), np.zeros(1, int)).scaled((8, 8), (4, 16))
    assert scaled.corners.tolist() == [[0, 4, 2, 16]]


def test_anchors_follow_the_boxes() -> None:
    rng = np.random.default_rng(0)
    small = np.exp(rng.normal(np.log(12), 0.1, (500, 2)))
    large = np.exp(rng.normal(np.log([60, 30]), 0.1, (20, 2)))
    sides, labels = np.vstack([small, large]), np.repeat([0, 1], [500, 20])
    found = plan_anchors(sides, labels, [(8, 8)], (128, 128), levels=3, shapes=3)
    assert found.strides == [[4, 4], [8, 8], [16, 16]]
    shapes = np.concatenate([np.array(found.shapes) * scale for scale in found.scales])
    for wanted in ((12, 12), (60, 30)):  # the rare class too
        ratio = np.abs(np.log(shapes / wanted)).max(axis=1).min()
        assert ratio < np.log(1.3)
    assert found == plan_anchors(sides, labels, [(8, 8)], (128, 128), levels=3, shapes=3)
    assert possible_strides([(4, 8, 8)], (16, 32, 32)) == [(1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16)]
    assert possible_strides([(14, 14)], (98, 98)) == [(7, 7), (14, 14)]
    with pytest.raises(ValueError, match="no training box"):
        plan_anchors(np.zeros((0, 2)), np.zeros(0, int), [(8, 8)], (64, 64), levels=2, shapes=2)


@pytest.mark.parametrize("axes", [2, 3])
def test_boxes_follow_what_they_hold_through_augmentation(axes: int) -> None:
    shape, count = (40, 48, 32)[:axes], 24
    rng = np.random.default_rng(axes)
    image = torch.zeros(count, 1, *shape)
    boxes, labels = torch.zeros(count, 2, 2 * axes), torch.tensor([[5, -1]] * count)
    for index in range(count):
        low = [int(rng.integers(8, side - 20)) for side in shape]
        high = [a + int(rng.integers(8, 12)) for a in low]
        image[(index, 0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = 1
        boxes[index, 0] = torch.tensor([*low, *high], dtype=torch.float32)
    config = AugmentConfig(affine=0.7, intensity=0.0, noise=0.0)
    seen, targets = augment_boxes(
        image, boxes, labels, torch.arange(count), config, seed=1, flips=list(range(axes))
    )
    moved = 0
    for index, target in enumerate(targets):
        assert target["labels"].tolist() == [5]
        places = (seen[index, 0] > 0.5).nonzero().float()
        edges = torch.cat([places.min(dim=0).values, places.max(dim=0).values + 1])
        assert (edges - target["boxes"][0]).abs().max() <= 1.0
        moved += not torch.equal(target["boxes"][0], boxes[index, 0])
    assert moved > count / 2
    cut = visible(torch.tensor([[-4.0, 0, 6, 4], [-6, 0, 4, 4]]), torch.tensor([0, 1]), (20, 20))
    assert cut["boxes"].tolist() == [[0, 0, 6, 4]]
    assert cut["labels"].tolist() == [0]


def test_windows_joined_give_the_maps_of_the_whole_image() -> None:
    assert window_starts(20, 32, 8) == [0]
    assert window_starts(70, 32, 8) == [0, 16, 32, 40]
    assert padded_shape((70, 20), (32, 32), (8, 8)) == [72, 32]
    image = np.random.default_rng(0).normal(size=(2, 70, 20)).astype(np.float32)

    def means(x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"a": [torch.nn.functional.avg_pool2d(x, step) for step in (4, 8)]}

    maps, shape = whole_maps(
        means, image, (32, 32), [(4, 4), (8, 8)], batch=3, device=torch.device("cpu"), fill=-1.0
    )
    assert shape == [72, 32]
    padded = np.pad(image, [(0, 0), (0, 2), (0, 12)], constant_values=-1.0)
    for one, step in zip(maps["a"], (4, 8), strict=True):
        expected = torch.nn.functional.avg_pool2d(torch.from_numpy(padded)[None], step)
        assert torch.allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "depth": 4,
         "embed_dim": 24, "num_heads": 2},
        {"name": "vit3d", "depth": 4, "embed_dim": 24, "num_heads": 2, "patch_size": [4, 8, 8]},
        {"name": "convnet", "model": "resnet10t"},
        {"name": "resenc", "features": [8, 16, 32], "blocks": [1, 1, 1],
         "strides": [1, 2, 2], "kernels": [3, 3, 3]},
    ],
    ids=lambda section: section["name"],
)  # fmt: skip
def test_every_pyramid_can_carry_the_network(section: dict[str, Any]) -> None:
    encoder = build_encoder(section)
    ndim = encoder.ndim
    patch = [max(32, 2 * side) for side in encoder.patch_of(ndim)]
    from medloom.pretrain.decoders import pyramid_levels

    own = [level.stride for level in pyramid_levels(encoder, ndim)]
    sides = np.full((8, ndim), 14.0) * np.linspace(0.8, 1.4, 8)[:, None]
    anchors = plan_anchors(sides, np.zeros(8, int), own, patch, levels=2, shapes=2)
    network = BoxNetwork(
        encoder, 2, ndim=ndim, anchors=anchors, patch=patch, config=DetectionConfig(width=8, places=16)
    )
    x = torch.randn(2, encoder.in_channels, *patch)
    box = torch.tensor([[4.0] * ndim + [18.0] * ndim])
    targets = [
        {"boxes": box, "labels": torch.tensor([1])},
        {"boxes": box[:0], "labels": torch.zeros(0, dtype=torch.long)},
    ]
    network.loss(x, targets).backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if n.startswith("classification"))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    with torch.no_grad():
        network.eval()
        plain = network.mirrored(x[:1], [()])
        every = network.mirrored(x[:1].flip(2), [(0,)])
    for key, maps in plain.items():  # the mirror image of a mirrored image is the image
        for a, b in zip(maps, every[key], strict=True):
            signs = torch.ones(2 * ndim)
            signs[0] = -1
            turned = b.flip(2)
            if key == "box_regression":
                turned = turned * signs.repeat(2).view(1, -1, *[1] * ndim)
            assert torch.allclose(a, turned, atol=1e-5)
    boxes, labels, scores = network.selected(plain, patch)
    assert len(boxes) == len(labels) == len(scores)
    assert (boxes[:, ndim:] > boxes[:, :ndim]).all()
