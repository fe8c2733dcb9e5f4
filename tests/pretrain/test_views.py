"""Views: exact where nothing is drawn, equal to references, keyed by the position and by nothing else."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from medloom.data.draws import uniform_torch
from medloom.pretrain import views
from medloom.pretrain.views import ViewConfig

SHAPES = [(4, 3, 20, 24), (4, 1, 10, 12, 14)]
EVERYTHING = ViewConfig(flip=0.5, flip_axes=[-1, -2], affine=0.7, intensity=0.7, noise=0.7, blur=0.7)


@pytest.fixture(params=SHAPES, ids=["2d", "3d"])
def x(request) -> torch.Tensor:
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


def still(x):
    n = x.ndim - 2
    return torch.zeros(len(x), 1 if n == 2 else 3), torch.ones(len(x)), torch.zeros(len(x), n)


def test_to_float_clips_normalises_and_repeats_grey():
    image = torch.tensor([-2000, -1000, 0, 500, 3000], dtype=torch.int16).view(1, 1, 1, 5)
    ct = {"low": -1000.0, "high": 1000.0, "mean": 0.0, "std": 1000.0}
    batch = {"image": image} | {name: torch.tensor([[value]]) for name, value in ct.items()}
    got = views.to_float(batch, 3)
    assert got.dtype == torch.float32 and got.shape == (1, 3, 1, 5)
    assert torch.equal(got[0, 0, 0], torch.tensor([-1, -1, 0, 0.5, 1]))
    assert torch.equal(got[:, 0], got[:, 2])
    with pytest.raises(ValueError, match="2 channels"):
        views.to_float(batch | {"image": image.repeat(1, 2, 1, 1)}, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
def test_to_float_takes_every_stored_dtype(dtype):
    batch = {"image": torch.tensor([[[0, 200]]]).to(dtype)}
    batch |= {
        n: torch.tensor([[v]]) for n, v in (("low", 0.0), ("high", 100.0), ("mean", 50.0), ("std", 25.0))
    }
    assert views.to_float(batch, 1).flatten().tolist() == [-2, 2]


def test_identity_is_exact(x):
    spacing = torch.rand(len(x), x.ndim - 2) + 0.3
    assert torch.equal(views.affine(x, views.affine_matrix(*still(x), spacing)), x)
    assert torch.equal(views.flip(x, torch.zeros(len(x), x.ndim - 2, dtype=torch.bool)), x)
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    assert torch.equal(views.intensity(x, zero, one, one), x)
    assert torch.equal(views.blur(x, zero, 3), x)
    assert torch.equal(views.noise(x, zero, torch.randn_like(x[:, :1])), x)


def test_random_view_is_a_function_of_seed_position_and_name(x):
    spacing = torch.rand(len(x), x.ndim - 2) + 0.5
    args = (x, EVERYTHING, 7, torch.arange(len(x)))
    first = views.random_view(*args, spacing=spacing)
    assert first.shape == x.shape and torch.isfinite(first).all()
    assert torch.equal(first, views.random_view(*args, spacing=spacing))
    assert not torch.equal(first, views.random_view(*args, spacing=spacing, stream="view:1"))
    default = views.random_view(x, ViewConfig(), 7, torch.arange(len(x)))
    assert all(torch.equal(d, a) or torch.equal(d, a.flip(-1)) for d, a in zip(default, x, strict=True))


def test_random_equals_its_twin_with_the_same_draws(x):
    """The draws are those documented: column 0 decides, the rest are the parameters."""
    n, positions = x.ndim - 2, torch.tensor([3, 1, 4, 15])
    turns = 1 if n == 2 else 3
    u = uniform_torch(2, "affine", positions, 2 + turns + n).float()
    angles = (2 * u[:, 2 : 2 + turns] - 1) * math.radians(30)
    zoom = torch.exp(math.log(0.5) + u[:, 1] * math.log(4))
    shift = (2 * u[:, 2 + turns :] - 1) * 0.1 * torch.tensor(x.shape[2:])
    twin = views.affine(x, views.affine_matrix(angles, zoom, shift))
    got = views.random_affine(x, 2, positions, degrees=30, scale=(0.5, 2.0), shift=0.1)
    assert torch.allclose(got, twin, atol=1e-5)

    u = uniform_torch(2, "intensity", positions, 4).float()
    twin = views.intensity(x, (2 * u[:, 1] - 1) * 0.3, 0.5 * 4 ** u[:, 2], 0.5 * 4 ** u[:, 3])
    got = views.random_intensity(x, 2, positions, brightness=0.3, contrast=(0.5, 2.0), gamma=(0.5, 2.0))
    assert torch.allclose(got, twin, atol=1e-5)

    u = uniform_torch(2, "blur", positions, 2).float()
    assert torch.allclose(
        views.random_blur(x, 2, positions, sigma=2.0), views.blur(x, 2 * u[:, 1], 6), atol=1e-6
    )


def test_affine_agrees_with_scipy(x):
    rng = np.random.default_rng(0)
    n = x.ndim - 2
    angles = torch.tensor(rng.uniform(-1, 1, (len(x), 1 if n == 2 else 3)), dtype=torch.float32)
    scale = torch.tensor(rng.uniform(0.7, 1.4, len(x)), dtype=torch.float32)
    shift = torch.tensor(rng.uniform(-3, 3, (len(x), n)), dtype=torch.float32)
    spacing = torch.tensor(rng.uniform(0.5, 3, (len(x), n)), dtype=torch.float32)
    matrix = views.affine_matrix(angles, scale, shift, spacing)
    got = views.affine(x, matrix)
    centre = (np.asarray(x.shape[2:]) - 1) / 2
    for b in range(len(x)):
        linear, offset = matrix[b, :, :n].double().numpy(), matrix[b, :, n].double().numpy()
        reference = scipy.ndimage.affine_transform(
            x[b, 0].double().numpy(),
            linear,
            offset=offset + centre - linear @ centre,
            order=1,
            mode="nearest",
        )
        assert np.allclose(got[b, 0].numpy(), reference, atol=1e-4)


def test_affine_to_another_size_is_a_centre_crop_for_the_identity():
    x = torch.randn(2, 1, 20, 24)
    got = views.affine(x, views.affine_matrix(*still(x)), size=(10, 12))
    assert torch.allclose(got, x[:, :, 5:15, 6:18], atol=1e-5)


def test_a_quarter_turn_and_a_shift_move_the_content_as_documented():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 6] = 1  # right of the centre
    angles, scale, shift = still(x)
    moved = views.affine(x, views.affine_matrix(angles, scale, torch.tensor([[2.0, -1.0]])))
    assert torch.allclose(moved[0, 0, 6, 5], torch.tensor(1.0), atol=1e-5)
    turned = views.affine(x, views.affine_matrix(angles + math.pi / 2, scale, shift))
    assert torch.allclose(turned[0, 0, 2, 4] + turned[0, 0, 6, 4], torch.tensor(1.0), atol=1e-5)
    zoomed = views.affine(x, views.affine_matrix(angles, scale * 2, shift))
    assert zoomed[0, 0, 4, 8] == pytest.approx(1, abs=1e-5)


def test_rotation_happens_in_millimetres():
    """A ball in millimetres stays that ball under any rotation, also with slices four times as thick."""
    spacing = torch.tensor([[4.0, 1.0, 1.0]])
    d, h, w = torch.meshgrid(
        torch.arange(9) - 4.0, torch.arange(33) - 16.0, torch.arange(33) - 16.0, indexing="ij"
    )
    ball = torch.exp(-((4 * d) ** 2 + h**2 + w**2) / (2 * 6.0**2))[None, None]
    angles, scale, shift = torch.tensor([[0.5, 0.9, 0.4]]), torch.ones(1), torch.zeros(1, 3)
    turned = views.affine(ball, views.affine_matrix(angles, scale, shift, spacing))
    assert (turned - ball).abs().max() < 0.06  # linear interpolation between thick slices
    sheared = views.affine(ball, views.affine_matrix(angles, scale, shift))
    assert (sheared - ball).abs().max() > 0.3


def test_blur_agrees_with_scipy(x):
    sigma = torch.tensor([0.5, 1.0, 1.5, 2.0])
    got = views.blur(x, sigma, radius=6)
    for b, s in enumerate(sigma.tolist()):
        reference = scipy.ndimage.gaussian_filter(x[b, 0].double().numpy(), s, mode="nearest", radius=6)
        assert np.allclose(got[b, 0].numpy(), reference, atol=1e-5)


def test_intensity_follows_its_formula(x):
    half, two = torch.full((len(x),), 0.5), torch.full((len(x),), 2.0)
    got = views.intensity(x, half, two, torch.ones(len(x)))
    mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
    assert torch.allclose(got, mean + 2 * (x - mean) + 0.5, atol=1e-5)
    curved = views.intensity(x, torch.zeros(len(x)), torch.ones(len(x)), two)
    axes = tuple(range(2, x.ndim))
    assert torch.allclose(curved.amin(axes), x.amin(axes)) and torch.allclose(curved.amax(axes), x.amax(axes))
    assert curved.mean() < x.mean()
    flat = torch.full_like(x, 3.0)
    assert torch.isfinite(views.intensity(flat, half, two, two)).all()


def test_grey_stays_grey():
    grey = torch.randn(4, 1, 16, 16).expand(4, 3, 16, 16).contiguous()
    out = views.random_view(grey, EVERYTHING, 0, torch.arange(4))
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])


def test_flip_touches_the_chosen_axes_only():
    x = torch.randn(64, 1, 4, 5, 6)
    out = views.random_flip(x, 0, torch.arange(64), axes=(0, -1))
    seen = set()
    for got, source in zip(out, x, strict=True):
        match = [axes for axes in ((), (1,), (3,), (1, 3)) if torch.equal(got, source.flip(axes))]
        assert match
        seen.add(match[0])
    assert len(seen) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_views_on_cuda_equal_the_cpu(x):
    cpu = views.random_view(x, EVERYTHING, 7, torch.arange(len(x)))
    gpu = views.random_view(x.cuda(), EVERYTHING, 7, torch.arange(len(x)).cuda())
    assert torch.allclose(cpu, gpu.cpu(), atol=1e-4)
    words = uniform_torch(1, "x", torch.arange(50), 9)
    assert torch.equal(words, uniform_torch(1, "x", torch.arange(50).cuda(), 9).cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("host", [True, False])
def test_cuda_never_waits(x, host):
    """The driver's own guard: any synchronisation is an error. Positions on the host and on the device."""
    at, on_gpu = torch.arange(len(x)), x.cuda()
    positions = at if host else at.cuda()
    crops = [views.CropConfig(size=[8] * (x.ndim - 2), scale=[0.3, 1.0], view=EVERYTHING)]
    spacing = torch.ones(len(x), x.ndim - 2, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        view = views.random_view(on_gpu, EVERYTHING, 7, positions, spacing=spacing)
        (crop,) = views.multi_crop(on_gpu, crops, 7, positions, spacing=spacing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = views.random_view(x, EVERYTHING, 7, at, spacing=spacing.cpu())
    assert torch.allclose(view.cpu(), expected, atol=1e-4) and torch.isfinite(crop.image).all()
