"""RetinaNet (arXiv 1708.02002) with any of our encoders below it, and its loss, by MONAI's parts.

The maps of the encoder's pyramid feed a feature pyramid (arXiv 1612.03144). A plain transformer has one grid:
finer maps are grown from it by transposed convolutions and coarser ones by pooling, as in ViTDet (arXiv
2203.16527, section 3), but from the four depths joined. Heads, anchors, matching (ATSS, arXiv 1912.02424) and
box arithmetic are MONAI's, with the settings of its lung nodule detection: four candidates a map, centres may
lie outside, and of the background the places that look most like objects are learnt (hard negatives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn

from ...pretrain.decoders import pyramid_levels
from ...pretrain.encoders.base import Encoder
from ..config import DetectionConfig
from .anchors import Anchors, possible_strides

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_POSITIVE, _POOL_SIZE = 0.3, 20.0  # share of objects among the places learnt; hardness (see MONAI's sampler)


class BoxNetwork(RetinaNet):
    """Images [B, C, *spatial] -> maps of logits and box offsets, {"classification", "box_regression"}.

    Args:
        classes: number of labels.
        ndim: spatial axes.
        anchors: see `plan_anchors`; the strides must be possible for this encoder.
        patch: pixels of the images.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        ndim: int,
        anchors: Anchors,
        patch: Sequence[int],
        config: DetectionConfig,
    ) -> None:
        neck = Neck(encoder, anchors.strides, patch, width=config.width, ndim=ndim)
        super().__init__(ndim, classes, len(anchors.shapes), neck, anchors.strides[-1])
        self.encoder = encoder
        generator = AnchorGeneratorWithAnchorShape(anchors.scales, anchors.shapes)
        detector = RetinaNetDetector(self, generator)
        detector.proposal_matcher = Matcher(config.candidates, center_in_gt=False)
        detector.set_hard_negative_sampler(
            config.places, _POSITIVE, min_neg=config.places // 4, pool_size=_POOL_SIZE
        )
        detector.set_box_selector_parameters(
            score_thresh=config.least_score, nms_thresh=config.nms, detections_per_img=config.most
        )
        self._detector = (detector,)  # in a tuple: a module that holds this one must not be its part

    @property
    def detector(self) -> RetinaNetDetector:
        """MONAI's detector around this network: anchors, loss, selection of boxes."""
        return self._detector[0]

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        pyramid = self.encoder(images, pyramid=True).pyramid
        assert pyramid is not None
        maps = self.feature_extractor(pyramid)
        return {
            self.cls_key: [one.float() for one in self.classification_head(maps)],
            self.box_reg_key: [one.float() for one in self.regression_head(maps)],
        }

    def loss(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """Cross-entropy of the classes and smooth L1 of the offsets; targets: boxes and labels an image."""
        maps = self(images)
        detector = self.detector
        anchors, places = self._anchored(images.shape, maps)
        rows = {key: detector._reshape_maps(found) for key, found in maps.items()}
        losses = detector.compute_loss(rows, targets, anchors, places)
        return losses[self.cls_key] + losses[self.box_reg_key]

    def selected(self, maps: Mapping[str, list[Tensor]], spatial: Sequence[int]) -> tuple[Tensor, ...]:
        """Boxes [N, 2 * axes], labels [N] and scores [N] of one image from its maps [1, ...], best first.

        Args:
            spatial: sides of the image that the maps were made of; they are multiples of the strides.
        """
        detector = self.detector
        anchors, places = self._anchored((1, 1, *spatial), maps)
        rows = {key: detector._reshape_maps(found) for key, found in maps.items()}
        [found] = detector.postprocess_detections(rows, anchors, [list(spatial)], places)
        return found["boxes"], found["labels"], found["labels_scores"]

    def mirrored(self, images: Tensor, flips: Sequence[tuple[int, ...]]) -> dict[str, list[Tensor]]:
        """Maps averaged over mirror images; an offset along a mirrored axis changes its sign.

        Args:
            flips: spatial axes, from 0, of each mirror image; () is the image itself.
        """
        sums: dict[str, list[Tensor]] = {}
        for axes in flips:
            maps = self(images.flip([axis + 2 for axis in axes]))
            signs = images.new_ones(2 * self.spatial_dims)
            signs[list(axes)] = -1.0
            signs = signs.repeat(self.num_anchors).view(1, -1, *[1] * self.spatial_dims)
            for key, found in maps.items():
                turned = [one.flip([axis + 2 for axis in axes]) for one in found]
                if key == self.box_reg_key:
                    turned = [one * signs for one in turned]
                before = sums.get(key)
                sums[key] = turned if before is None else [a + b for a, b in zip(before, turned, strict=True)]
        return {key: [one / len(flips) for one in found] for key, found in sums.items()}

    def _anchored(
        self, shape: Sequence[int], maps: Mapping[str, list[Tensor]]
    ) -> tuple[list[Tensor], list[int]]:
        """Anchors of each image, and the places of each map."""
        logits = maps[self.cls_key]
        images = logits[0].new_zeros(1).expand(*shape)  # only its shape is looked at
        anchors = self.detector.anchor_generator(images, logits)
        return anchors, [one.shape[2:].numel() for one in logits]


class Matcher(ATSSMatcher):
    """ATSS, but no object goes without an anchor.

    The adaptive threshold (mean and deviation of the candidates' overlaps) can lie above all of them where
    there are few, as on a patch of small volumes: such an object gets the anchor that overlaps it most.
    """

    def compute_matches(
        self,
        boxes: Tensor,
        anchors: Tensor,
        num_anchors_per_level: Sequence[int],
        num_anchors_per_loc: int,
    ) -> tuple[Tensor, Tensor]:
        overlap, matches = super().compute_matches(boxes, anchors, num_anchors_per_level, num_anchors_per_loc)
        for index in range(len(boxes)):
            if not (matches == index).any():
                matches[overlap[index].argmax()] = index
        return overlap, matches


class Neck(nn.Module):
    """The encoder's pyramid -> one map of `width` channels at each stride, fine to coarse."""

    def __init__(
        self,
        encoder: Encoder,
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
        *,
        width: int,
        ndim: int,
    ) -> None:
        super().__init__()
        levels = pyramid_levels(encoder, ndim)
        own = [level.stride for level in levels]
        chain = possible_strides(own, patch)
        self.out_channels = width
        self.wanted = [chain.index(tuple(stride)) for stride in strides]
        self.places = [chain.index(stride) for stride in own]
        self.norms = nn.ModuleList(nn.GroupNorm(1, level.channels) for level in levels)
        channels = [0] * len(chain)
        for place, level in zip(self.places, levels, strict=True):
            channels[place] += level.channels
        self.finer = nn.ModuleDict()
        for place in range(min(self.places) - 1, min(self.wanted) - 1, -1):
            factor = _ratio(chain[place + 1], chain[place])
            grow = _TRANSPOSED[ndim](channels[place + 1], width, factor, stride=factor)
            self.finer[str(place)] = nn.Sequential(grow, nn.GroupNorm(8, width), nn.GELU())
            channels[place] = width
        self.coarser = nn.ModuleDict()
        for place in range(max(self.places) + 1, max(self.wanted) + 1):
            self.coarser[str(place)] = _POOL[ndim](_ratio(chain[place], chain[place - 1]))
            channels[place] = channels[place - 1]
        self.fpn = FeaturePyramidNetwork(ndim, [channels[place] for place in self.wanted], width)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        parts: dict[int, list[Tensor]] = {}
        for place, norm, maps in zip(self.places, self.norms, pyramid, strict=True):
            parts.setdefault(place, []).append(norm(maps))
        found = {place: torch.cat(maps, dim=1) for place, maps in parts.items()}
        for name, grow in self.finer.items():
            found[int(name)] = grow(found[int(name) + 1])
        for name, pool in self.coarser.items():
            found[int(name)] = pool(found[int(name) - 1])
        return list(self.fpn({str(place): found[place] for place in self.wanted}).values())


def _ratio(coarse: Sequence[int], fine: Sequence[int]) -> tuple[int, ...]:
    return tuple(a // b for a, b in zip(coarse, fine, strict=True))
