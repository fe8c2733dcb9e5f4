"""Geometry: one resampling for crop, flip and affine map, as scipy and torchvision; labels stay labels."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from medloom.data.draws import uniform_torch
from medloom.pretrain import views
from medloom.pretrain.views import CropConfig, ViewConfig
from torchvision.transforms.v2 import functional as tv

AT = torch.arange(8)


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(x: np.ndarray, matrix: np.ndarray, size, order=1, mode="nearest") -> np.ndarray:
    """scipy's affine_transform with coordinates from the centres of both images."""
    n = x.ndim
    linear, offset = matrix[:, :n].astype(np.float64), matrix[:, n].astype(np.float64)
    here, there = (np.asarray(x.shape) - 1) / 2, (np.asarray(size) - 1) / 2
    return scipy.ndimage.affine_transform(
        x.astype(np.float64), linear, offset=offset + here - linear @ there, output_shape=tuple(size),
        order=order, mode=mode,
    )  # fmt: skip


def drawn_matrix(n: int, batch: int) -> torch.Tensor:
    rng = np.random.default_rng(n)
    angles = torch.tensor(rng.uniform(-0.6, 0.6, (batch, 1 if n == 2 else 3)), dtype=torch.float32)
    scale = torch.tensor(rng.uniform(0.7, 1.4, batch), dtype=torch.float32)
    shift = torch.tensor(rng.uniform(-3, 3, (batch, n)), dtype=torch.float32)
    spacing = torch.tensor(rng.uniform(0.5, 3, (batch, n)), dtype=torch.float32)
    return views.affine_matrix(angles, scale, shift, spacing)


@pytest.mark.parametrize("padding", ["border", "reflection", "zeros"])
@pytest.mark.parametrize("shape", [(3, 1, 20, 24), (2, 1, 9, 12, 14)], ids=["2d", "3d"])
def test_paddings_agree_with_scipy(shape, padding):
    x, size = noise(*shape), [s + 3 for s in shape[2:]]
    matrix = drawn_matrix(len(size), len(x))
    mode = {"border": "nearest", "reflection": "reflect", "zeros": "grid-constant"}[padding]
    for kind, order in (("linear", 1), ("nearest", 0)):
        got = views.affine(x, matrix, size=size, mode=kind, padding=padding)
        for b in range(len(x)):
            expected = reference(x[b, 0].numpy(), matrix[b].numpy(), size, order, mode)
            same = np.isclose(got[b, 0].numpy(), expected, atol=1e-4)
            assert same.mean() > (
                0.999 if order == 0 else 0.9999
            )  # a point between two voxels may go either way


@pytest.mark.parametrize("padding", ["border", "reflection", "zeros"])
@pytest.mark.parametrize("shape", [(3, 30, 34), (2, 16, 18, 20)], ids=["2d", "3d"])
def test_labels_win_as_in_a_resampled_one_hot_map(shape, padding):
    blobs = F.interpolate(noise(shape[0], 5, *[5] * (len(shape) - 1)), size=shape[1:], mode="nearest")
    names = torch.tensor([0, 3, 7, 200, 90])
    labels = names[blobs.argmax(dim=1)]
    matrix = drawn_matrix(len(shape) - 1, len(labels))
    size = [s - 2 for s in shape[1:]]
    got = views.affine_labels(labels, matrix, size=size, padding=padding)
    maps = [(labels == name)[:, None].float() for name in names.tolist()]
    shares = torch.cat([views.affine(m, matrix, size=size, padding=padding) for m in maps], dim=1)
    if padding == "zeros":
        shares[:, 0] += 1 - shares.sum(dim=1)  # outside is background
    top = shares.topk(2, dim=1)
    clear = top.values[:, 0] - top.values[:, 1] > 1e-3
    assert clear.float().mean() > 0.95
    assert torch.equal(got[clear], names[top.indices[:, 0]][clear])
    assert set(got.unique().tolist()) <= set(names.tolist())
    assert views.affine_labels(labels.to(torch.uint8), matrix).dtype == torch.uint8


def test_nearest_labels_agree_with_scipy():
    labels = torch.randint(0, 9, (2, 16, 18, 20), generator=torch.Generator().manual_seed(0))
    matrix = drawn_matrix(3, 2)
    got = views.affine_labels(labels, matrix, mode="nearest", padding="reflection")
    for b in range(2):
        expected = reference(labels[b].numpy(), matrix[b].numpy(), labels.shape[1:], 0, "reflect")
        assert (got[b].numpy() == expected).mean() > 0.999


def test_an_identity_leaves_labels_alone():
    labels = torch.randint(0, 9, (2, 16, 18, 20), generator=torch.Generator().manual_seed(0))
    still = views.affine_matrix(torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3))
    for mode in ("vote", "nearest"):
        assert torch.equal(views.affine_labels(labels, still, mode=mode), labels)


@pytest.mark.parametrize("box", [(3, 5, 25, 29), (0, 0, 40, 44), (7, 2, 11, 40), (10, 10, 34, 34)])
@pytest.mark.parametrize("size", [(24, 24), (10, 13), (50, 61)])
def test_resizing_is_torchvisions_antialiased_crop(box, size):
    x = noise(2, 3, 40, 44)
    top, left, bottom, right = box
    edges = torch.tensor([[[top, bottom], [left, right]]], dtype=torch.float32).expand(2, -1, -1)
    expected = tv.resized_crop(x, top, left, bottom - top, right - left, list(size), antialias=True)
    assert torch.allclose(views.resize(x, edges, size), expected, atol=1e-5)
    flips = torch.tensor([[False, True], [True, False]])
    mirrored = torch.stack([expected[0].flip(-1), expected[1].flip(-2)])
    assert torch.allclose(views.resize(x, edges, size, flips), mirrored, atol=1e-5)


def test_resizing_a_volume_is_resizing_its_axes():
    x = noise(1, 2, 12, 14, 16)
    edges = torch.tensor([[[1.0, 9.0], [0.0, 14.0], [3.0, 11.0]]])
    flat = views.resize(x[:, :, :, :, 0:1].transpose(2, 4).reshape(1, 2, 14, 12), edges[:, [1, 0]], (7, 4))
    volume = views.resize(x[:, :, :, :, 0:1].expand(-1, -1, -1, -1, 16).contiguous(), edges, (4, 7, 8))
    assert torch.allclose(volume[..., 0], flat.reshape(1, 2, 7, 4).transpose(2, 3), atol=1e-5)
    assert torch.equal(views.resize(x, edges, (8, 14, 8)), x[:, :, 1:9, :, 3:11])


def test_a_box_below_a_pixel_shows_that_pixel():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    edges = torch.tensor([[[2.1, 2.3], [1.6, 1.9]]])
    assert torch.allclose(views.resize(x, edges, (3, 3)), torch.full((1, 1, 3, 3), 9.0))


@pytest.mark.parametrize("shape", [(8, 2, 20, 24), (8, 1, 10, 12, 14)], ids=["2d", "3d"])
def test_one_resampling_for_everything(shape):
    """Crop, flip, turn, zoom and shift through one matrix: scipy's result with the steps multiplied out."""
    x, n = noise(*shape), len(shape) - 2
    size = [s - 3 for s in shape[2:]]
    spacing = 0.5 + torch.rand(8, n, generator=torch.Generator().manual_seed(2))
    config = ViewConfig(
        size=size, flip_axes=list(range(n)), affine=1.0, degrees=40.0, scale=[0.8, 1.3], shift=0.1
    )
    place = views.random_placement(x, config, 4, AT, spacing=spacing)
    turns = 1 if n == 2 else 3
    u = uniform_torch(4, "view:affine", AT, 2 + turns + n).float()
    angles = (2 * u[:, 2 : 2 + turns] - 1) * math.radians(40)
    moves = (2 * u[:, 2 + turns :] - 1) * 0.1 * torch.tensor(size)
    own = views.affine_matrix(
        angles, torch.exp(math.log(0.8) + u[:, 1] * math.log(1.3 / 0.8)), moves, spacing
    )
    flips = uniform_torch(4, "view:flip", AT, n) < 0.5
    sides = torch.tensor(size).float().expand(8, n)
    assert torch.equal(place.flips, flips)
    assert torch.equal(place.box[..., 1] - place.box[..., 0], sides)
    got = place.image(x)
    assert got.shape == (*shape[:2], *size)
    for b in range(8):
        sign = np.diag(1.0 - 2.0 * flips[b].numpy())
        middle = place.box[b].sum(dim=1).numpy() / 2 - np.asarray(shape[2:]) / 2
        matrix = sign @ own[b].numpy()
        matrix[:, n] += middle
        assert np.allclose(matrix, place.matrix[b].numpy(), atol=1e-5)
        for c in range(shape[1]):
            assert np.allclose(got[b, c].numpy(), reference(x[b, c].numpy(), matrix, size), atol=2e-4)
    assert torch.equal(got, views.random_view(x, config, 4, AT, spacing=spacing))


@pytest.mark.parametrize("shape", [(8, 2, 20, 24), (8, 1, 10, 12, 14)], ids=["2d", "3d"])
def test_without_an_affine_map_a_crop_is_exact(shape):
    """Every view is a slice of its image, mirrored or not; the jitter reaches every origin."""
    x, n = noise(1, *shape[1:]).expand(400, *shape[1:]), len(shape) - 2
    size = [s - 2 for s in shape[2:]]
    config = ViewConfig(size=size, flip_axes=[-1])
    place = views.random_placement(x, config, 0, torch.arange(400))
    out = place.image(x)
    starts = place.box[..., 0].int().tolist()
    for b in range(400):
        part = x[(b, slice(None), *(slice(o, o + s) for o, s in zip(starts[b], size, strict=True)))]
        assert torch.equal(out[b], part.flip(-1) if place.flips[b, -1] else part)
    assert {tuple(start) for start in starts} == set(np.ndindex(*[3] * n))
    middle = views.random_placement(x, ViewConfig(size=size, jitter=0.0), 0, torch.arange(400))
    assert torch.equal(middle.box[..., 0], torch.ones(400, n))


def test_spared_samples_stay_exact_beside_turned_ones():
    x = noise(64, 1, 16, 18)
    config = ViewConfig(affine=0.5, flip=0.5, size=[12, 12])
    place = views.random_placement(x, config, 1, torch.arange(64))
    out = place.image(x)
    exact = [
        torch.equal(out[b], part.flip(-1) if place.flips[b, 1] else part)
        for b in range(64)
        for y, left in [place.box[b, :, 0].int().tolist()]
        for part in [x[b, :, y : y + 12, left : left + 12]]
    ]
    assert exact == (~place.turned.on).tolist() and 15 < sum(exact) < 49


def test_labels_follow_the_image():
    rough = F.interpolate(noise(16, 1, 4, 4, 4), size=(20, 24, 28), mode="trilinear")
    labels = (rough[:, 0] > 0.3).long() * 4
    config = ViewConfig(size=[16, 20, 20], flip_axes=[0, 1, 2], affine=0.5, degrees=30, padding="reflection")
    spacing = torch.tensor([[2.0, 1.0, 0.7]]).expand(16, -1)
    place = views.random_placement(rough, config, 0, torch.arange(16), spacing=spacing)
    moved, image = place.labels(labels), place.image((labels == 4)[:, None].float())
    assert set(moved.unique().tolist()) == {0, 4}
    assert torch.equal((image[:, 0] > 0.5)[image[:, 0] != 0.5], (moved == 4)[image[:, 0] != 0.5])
    nearest = place.labels(labels, mode="nearest")
    assert 0.9 < float((nearest == moved).float().mean()) < 1


def test_zooming_out_far_is_smoothed_first():
    """Stripes of two pixels, shown at a third of their size, are grey and not other stripes."""
    x = (torch.arange(96) % 2).float().expand(4, 1, 96, 96).contiguous()
    config = ViewConfig(flip=0.0, affine=1.0, degrees=20.0, scale=[1 / 3, 1 / 3], shift=0.0)
    out = views.random_view(x, config, 0, torch.arange(4))[:, :, 36:60, 36:60]
    assert out.std() < 0.12 and abs(float(out.mean()) - 0.5) < 0.05
    crops = [CropConfig(size=[32, 32], scale=[1, 1], aspect=[1, 1], count=1)]
    (shrunk,) = views.multi_crop(x, crops, 0, torch.arange(4))
    assert shrunk.image.std() < 0.12 and abs(float(shrunk.image.mean()) - 0.5) < 0.05


def test_a_view_larger_than_its_image_is_refused():
    with pytest.raises(ValueError, match=r"view is \[16, 16\] and the image \[12, 20\]"):
        views.random_view(noise(8, 1, 12, 20), ViewConfig(size=[16, 16]), 0, AT)


def test_many_channels_and_odd_sizes_pass_through_every_axis():
    x = noise(2, 5, 7, 9, 11)
    edges = torch.tensor([[[0.0, 7.0], [0.0, 9.0], [0.0, 11.0]]]).expand(2, -1, -1)
    got = views.resize(x, edges, (5, 12, 11))
    expected = F.interpolate(x, size=(5, 9, 11), mode="area")  # other filter, same shape and mean
    assert got.shape == (2, 5, 5, 12, 11)
    assert abs(float(got.mean() - expected.mean())) < 0.05
    for c in range(5):
        assert torch.allclose(got[:, c : c + 1], views.resize(x[:, c : c + 1], edges, (5, 12, 11)), atol=1e-6)


def test_growing_boxes_of_pictures_are_interpolated_as_resizing_does():
    """Where nothing shrinks, a picture is sampled instead of resized: the same but at the edge of the box."""
    x, at = noise(8, 2, 30, 34), AT
    crops = [CropConfig(count=1, size=[34, 34], scale=[0.2, 0.6], view=ViewConfig(flip_axes=[0, 1]))]
    (got,) = views.multi_crop(x, crops, 0, at)
    expected = views.resize(x, got.box, (34, 34), got.flips)
    assert torch.allclose(got.image[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-4)
    assert not torch.equal(got.image, expected)
