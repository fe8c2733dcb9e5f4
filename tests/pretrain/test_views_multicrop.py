"""Several crops of one image: torchvision's geometry, keyed streams, boxes that tell the truth."""

import math

import numpy as np
import pytest
import torch
from medloom.data.config import read_yaml, structured, to_dict
from medloom.data.errors import ConfigError
from medloom.pretrain import views
from medloom.pretrain.views import PRESETS, CropConfig, Limits, ViewConfig, multi_crop, overlap, preset
from medloom.pretrain.views.presets import crop_configs
from torchvision.transforms import RandomResizedCrop

STILL = ViewConfig(flip=0.0)


def ramps(batch: int, *spatial: int) -> torch.Tensor:
    """Images whose channels are the coordinates of the voxel centres: a crop tells where it is from."""
    axes = torch.meshgrid(*[torch.arange(s) + 0.5 for s in spatial], indexing="ij")
    return torch.stack(axes).expand(batch, -1, *spatial).contiguous()


def test_crops_are_grouped_by_size_and_named():
    x = torch.randn(3, 1, 40, 40)
    crops = [
        CropConfig(name="global", count=1, size=[32, 32]),
        CropConfig(name="local", count=3, size=[16, 16], scale=[0.05, 0.3]),
        CropConfig(name="global", count=1, size=[32, 32], view=ViewConfig(blur=1.0)),
    ]
    spacing = torch.tensor([[0.5, 1.0], [0.5, 1.0], [2.0, 2.0]])
    large, small = multi_crop(x, crops, 0, torch.arange(3), spacing=spacing)
    assert large.names == ("global:0", "global:1") and small.names == ("local:0", "local:1", "local:2")
    assert large.image.shape == (6, 1, 32, 32) and small.image.shape == (9, 1, 16, 16)
    assert small.sample.tolist() == [0, 1, 2] * 3 and small.box.shape == (9, 2, 2)
    assert torch.equal(small.of("local:1"), small.image[3:6])
    sides = (small.box[..., 1] - small.box[..., 0]) / 16
    assert small.spacing is not None and torch.allclose(small.spacing, spacing.repeat(3, 1) * sides)
    alone = multi_crop(x, crops[1:2], 0, torch.arange(3))[0]
    assert torch.equal(alone.image, small.image)  # other crops do not disturb it
    assert len({tuple(image.flatten()[:5].tolist()) for image in small.image}) == 9


def test_each_crop_depends_on_its_position_only():
    x = torch.rand(6, 3, 40, 44)
    bounds = Limits(torch.zeros(6, 3), torch.ones(6, 3))
    crops = [
        CropConfig(name=c.name, count=c.count, size=[24, 24] if c.name == "global" else [12, 12],
                   scale=c.scale, view=c.view)
        for c in preset("dinov2")
    ]  # fmt: skip
    at = torch.arange(10, 16)
    whole = multi_crop(x, crops, 1, at, limits=bounds)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for rows in (order, order[:2], order[2:]):
        part = Limits(bounds.black[rows], bounds.white[rows])
        for group, expected in zip(multi_crop(x[rows], crops, 1, at[rows], limits=part), whole, strict=True):
            for name in group.names:
                assert torch.allclose(group.of(name), expected.of(name)[rows], atol=1e-6)
    again = multi_crop(x, crops, 1, at + 6, limits=bounds)
    for group, expected in zip(again, whole, strict=True):
        same = (group.image == expected.image).flatten(1).all(dim=1)
        assert not same.any()


@pytest.mark.parametrize(("spatial", "size"), [((60, 80), (24, 24)), ((24, 30, 36), (8, 12, 12))])
def test_boxes_and_matrices_say_what_is_shown(spatial, size):
    """The coordinates that a crop shows are those that its box (or matrix) names, flipped and turned too."""
    n, x, at = len(spatial), ramps(64, *spatial), torch.arange(64)
    crop = CropConfig(count=1, size=list(size), scale=[0.2, 0.6], view=ViewConfig(flip_axes=list(range(n))))
    (out,) = multi_crop(x, [crop], 0, at)
    for axis in range(n):
        shown = out.image[:, axis].movedim(axis + 1, 1).flatten(2).mean(dim=2)  # [B, size]
        step = (out.box[:, axis, 1] - out.box[:, axis, 0]) / size[axis]
        expected = out.box[:, axis, :1] + (torch.arange(size[axis]) + 0.5) * step[:, None]
        expected = torch.where(out.flips[:, axis, None], expected.flip(1), expected)
        inner = slice(1, -1)  # at the edge the filter has one side only
        assert torch.allclose(shown[:, inner], expected[:, inner], atol=0.15)
    turned = CropConfig(
        count=1, size=list(size), scale=[0.1, 0.2],
        view=ViewConfig(affine=1.0, degrees=30, flip_axes=list(range(n))),
    )  # fmt: skip
    spacing = torch.tensor([[2.0, 1.0, 0.8][-n:]]).expand(64, -1)
    for section in (crop, turned):
        (out,) = multi_crop(x, [section], 0, at, spacing=spacing)
        grid = torch.stack(
            torch.meshgrid(*[torch.arange(s) - (s - 1) / 2 for s in size], indexing="ij"), dim=-1
        ).reshape(-1, n)
        source = torch.einsum("bij,pj->bpi", out.matrix[:, :, :n], grid) + out.matrix[:, None, :, n]
        source = source + torch.tensor(spatial) / 2
        inside = ((source > 1.5) & (source < torch.tensor(spatial) - 1.5)).all(dim=2)
        middle = (grid.abs() < torch.tensor(size) / 2 - 1).all(dim=1)
        shown = out.image.flatten(2).movedim(1, 2)
        keep = inside & middle
        assert keep.float().mean() > 0.3
        assert torch.allclose(shown[keep], source[keep], atol=0.15)


def test_the_geometry_is_that_of_random_resized_crop():
    """Shares and aspects of boxes have torchvision's distribution (its rejections included)."""
    scale, ratio, count = (0.2, 1.0), (0.75, 4 / 3), 4000
    x = torch.empty(count, 1, 60, 100)
    box = views.random_boxes(x, 0, torch.arange(count), size=(32, 32), scale=scale, aspect=ratio)
    sides = box[..., 1] - box[..., 0]
    assert (box[..., 0] >= 0).all() and (box[..., 1] <= torch.tensor([60.0, 100.0]) + 1e-3).all()
    image = torch.empty(1, 600, 1000)  # finer, as theirs are whole pixels
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    from scipy.stats import ks_2samp

    ours_area, ours_ratio = sides.prod(dim=1) / 6000, sides[:, 1] / sides[:, 0]
    fits = ours_area > 0.2 - 1e-6
    assert fits.float().mean() > 0.99
    for a, b in (
        (ours_area.numpy(), theirs[:, 2] * theirs[:, 3] / 600_000),
        (ours_ratio.numpy(), theirs[:, 3] / theirs[:, 2]),
        (box[:, 0, 0].numpy() / 60, theirs[:, 0] / 600),
        (box[:, 1, 0].numpy() / 100, theirs[:, 1] / 1000),
    ):
        assert ks_2samp(a, b).statistic < 1.95 * math.sqrt(2 / count)  # 0.1 %


def test_volumes_keep_their_proportions_or_have_a_range_of_slices():
    x = torch.empty(500, 1, 64, 96, 96)
    at = torch.arange(500)
    box = views.random_boxes(x, 0, at, size=(32, 32, 32), scale=(0.1, 0.4), aspect=(1, 1))
    sides = box[..., 1] - box[..., 0]
    assert torch.allclose(sides, sides[:, :1].expand(-1, 3), atol=1e-3)
    share = sides.prod(dim=1) / (64 * 96 * 96)
    assert share.min() > 0.1 - 1e-4 and share.max() < 0.4 + 1e-4
    box = views.random_boxes(
        x, 0, at, size=(32, 32, 32), scale=(0.16, 0.48), aspect=(0.9, 1 / 0.9), depth=(0.2, 0.5)
    )
    sides = box[..., 1] - box[..., 0]
    assert float(sides[:, 0].min()) >= 0.2 * 64 and float(sides[:, 0].max()) <= 0.5 * 64
    area = sides[:, 1] * sides[:, 2] / 96**2
    assert area.min() > 0.16 - 1e-4 and area.max() < 0.48 + 1e-4
    stretch = sides[:, 2] / sides[:, 1]
    assert stretch.min() > 0.9 - 1e-4 and stretch.max() < 1 / 0.9 + 1e-4 and stretch.std() > 0.03
    assert (box[..., 0] >= 0).all() and (box[..., 1] <= torch.tensor([64.0, 96.0, 96.0]) + 1e-3).all()


def test_a_box_that_cannot_fit_is_shrunk_as_a_whole():
    x = torch.empty(50, 1, 10, 200)
    box = views.random_boxes(x, 0, torch.arange(50), size=(32, 32), scale=(0.9, 1.0), aspect=(1, 1))
    sides = box[..., 1] - box[..., 0]
    assert torch.allclose(sides, torch.full((50, 2), 10.0), atol=1e-3)
    assert box[:, 1, 0].std() > 20


def test_overlap_is_the_shared_share():
    a = torch.tensor([[0.0, 4.0], [0.0, 10.0]])
    b = torch.tensor([[[2.0, 6.0], [5.0, 10.0]], [[4.0, 9.0], [0.0, 10.0]], [[0.0, 4.0], [0.0, 10.0]]])
    assert torch.allclose(overlap(a, b), torch.tensor([0.25, 0.0, 1.0]))
    assert torch.allclose(overlap(b, a), torch.tensor([0.5, 0.0, 1.0]))
    assert overlap(b[:, None], b[None]).shape == (3, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recipes_that_run(name, tmp_path):
    """Each survives YAML, and gives crops of its size with finite numbers (sizes divided to be quick)."""
    crops = preset(name)
    ndim = len(crops[0].size)
    path = tmp_path / "recipe.yaml"
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"crops": [to_dict(crop) for crop in crops]})))
    assert crop_configs(read_yaml(path)["crops"]) == crops
    for crop in crops:
        crop.size = [side // 8 for side in crop.size]
    channels = 3 if ndim == 2 else 1
    x = torch.rand(4, channels, *[s + s // 4 for s in crops[0].size])
    bounds = Limits(torch.zeros(4, channels), torch.ones(4, channels))
    groups = multi_crop(x, crops, 0, torch.arange(4), limits=bounds)
    assert sum(len(group.names) for group in groups) == sum(crop.count for crop in crops)
    for group in groups:
        assert torch.isfinite(group.image).all() and group.image.std() > 0.01


def test_presets_have_the_sources_numbers():
    first, second, local = preset("dinov2")
    assert [c.name for c in (first, second, local)] == ["global", "global", "local"]
    assert (first.scale, local.scale, local.count) == ([0.32, 1.0], [0.05, 0.32], 8)
    assert [c.view.blur for c in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [c.view.solarise for c in (first, second, local)] == [0.0, 0.2, 0.0]
    assert all(c.view.colour == 0.8 and c.view.grayscale == 0.2 for c in (first, second, local))
    one, two = preset("mocov3")
    assert one.scale == [0.08, 1.0] and (one.view.blur, two.view.blur, two.view.solarise) == (1.0, 0.1, 0.2)
    (simclr,) = preset("simclr")
    assert (simclr.count, simclr.view.colour_brightness, simclr.view.colour_hue) == (2, 0.8, 0.2)
    (mae,) = preset("mae")
    assert mae.scale == [0.2, 1.0] and mae.view == ViewConfig()
    (nnunet,) = preset("nnunet-3d")
    assert (nnunet.view.degrees, nnunet.view.scale, nnunet.view.lowres) == (30.0, [0.7, 1.4], 0.25)
    with pytest.raises(ConfigError, match="dinov2"):
        preset("dinov")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"count": 0}, "at least 1"),
        ({"scale": [0.5, 1.5]}, "<= 1"),
        ({"aspect": [0.0, 1.0]}, "low <= high"),
        ({"depth": [0.5]}, "two numbers"),
        ({"view": {"size": [4, 4]}}, "crops.size"),
        ({"view": {"blurr": 1.0}}, "blur"),
    ],
)
def test_wrong_sections_are_refused_with_the_mend(section, message):
    with pytest.raises(ConfigError, match=message):
        structured(CropConfig, section)


def test_a_size_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match="no size of images"):
        multi_crop(torch.rand(1, 1, 8, 8, 8), [CropConfig(size=[4, 4], view=STILL)], 0, torch.arange(1))


def test_without_a_scale_a_box_of_the_size_is_cut_out():
    """No resizing: every voxel of the crop is one of the image, at any whole offset."""
    x, at = torch.randn(1, 1, 12, 14, 16).expand(60, -1, -1, -1, -1), torch.arange(60)
    (out,) = multi_crop(x, [CropConfig(count=1, size=[8, 8, 8], scale=[], view=STILL)], 0, at)
    for b, (z, y, left) in enumerate(out.box[..., 0].int().tolist()):
        assert torch.equal(out.image[b], x[b, :, z : z + 8, y : y + 8, left : left + 8])
    assert len({tuple(box[:, 0].tolist()) for box in out.box}) > 30
