"""Every random transform: its twin with the drawn numbers, its own sample alone, no wait for the device."""

import importlib
import math
from functools import partial

import numpy as np
import pytest
import torch
from medloom.data.draws import normal_torch, uniform_torch
from medloom.data.sample import MODALITIES, Modality
from medloom.pretrain import views
from medloom.pretrain.views import CropConfig, Limits, ViewConfig
from medloom.pretrain.views.bias import terms
from torch.utils._python_dispatch import TorchDispatchMode

POSITIONS = torch.tensor([3, 11, 2**40, 7])
PICTURE, VOLUME = (4, 3, 20, 24), (4, 1, 10, 12, 14)
COLOUR = {"random_colour", "random_grayscale", "random_solarise", "random_stain"}
GREY = {
    "random_affine", "random_bias_field", "random_intensity", "random_sharpen", "random_blur",
    "random_low_resolution", "random_noise", "random_rician", "random_erase",
}  # fmt: skip
ALL_ON = ViewConfig(
    flip_axes=[-1, -2], affine=0.5, bias=0.5, intensity=0.5, sharpen=0.5, blur=0.5, lowres=0.5, noise=0.5,
    rician=0.5, erase=0.5, erase_count=2, lowres_axes="one", modalities={},
)  # fmt: skip
IN_COLOUR = ViewConfig(**{**vars(ALL_ON), "colour": 0.5, "stain": 0.5, "grayscale": 0.3, "solarise": 0.3})


def images(shape, seed=0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def cases():
    for name in sorted(COLOUR | GREY):
        yield pytest.param(getattr(views, name), PICTURE, id=f"{name}-2d")
        if name in GREY:
            yield pytest.param(getattr(views, name), VOLUME, id=f"{name}-3d")


def limits_of(x: torch.Tensor) -> Limits:
    return Limits(torch.zeros(x.shape[:2]), torch.ones(x.shape[:2]))


def draws_on_the_device(monkeypatch) -> None:
    """Make the transforms behave as with positions on a GPU: nothing is known to the host."""
    monkeypatch.setattr("medloom.pretrain.views.draw._on_host", lambda positions: False)


class NoWaiting(TorchDispatchMode):
    """Refuse what makes the host wait for a device: reading a number, counting a mask, sending a list."""

    BANNED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")

    def __init__(self, lists: bool = False) -> None:
        super().__init__()
        # A tensor of a list and one that shares an array's memory look alike here; the host's draws are the
        # latter, and are sent without waiting.
        self.banned = self.BANNED if lists else (*self.BANNED, "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert name not in self.banned, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: torch.equal(x, x),
    ],
    ids=["item", "bool", "mask", "nonzero", "list", "equal"],
)
def test_the_guard_against_waiting_sees_it(wait):
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        wait(torch.randn(5))


@pytest.mark.parametrize("blind", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("shape", [PICTURE, VOLUME], ids=["2d", "3d"])
def test_nothing_waits_for_the_device(monkeypatch, shape, blind):
    if blind:
        draws_on_the_device(monkeypatch)
    x, config = images(shape), IN_COLOUR if shape is PICTURE else ALL_ON
    spacing, modality = torch.ones(len(x), x.ndim - 2), torch.zeros(4, dtype=torch.int64)
    config = ViewConfig(**{**vars(config), "size": [8] * (x.ndim - 2), "modalities": {"blur": ["x-ray"]}})
    crops = [CropConfig(view=ViewConfig(**{**vars(config), "size": []}), size=[9] * (x.ndim - 2))]
    common = {"spacing": spacing, "modality": modality, "limits": limits_of(x)}
    labels = torch.randint(0, 5, (4, *shape[2:]))
    with NoWaiting(lists=not blind):
        views.random_view(x, config, 0, POSITIONS, **common)
        views.multi_crop(x, crops, 0, POSITIONS, **common)
        views.random_placement(x, config, 0, POSITIONS, spacing=spacing).labels(labels)


@pytest.mark.parametrize(("random", "shape"), cases())
def test_probability_zero_returns_the_sample_bit_for_bit(random, shape):
    x = images(shape)
    assert torch.equal(random(x, 0, POSITIONS, probability=0.0), x)


@pytest.mark.parametrize(("random", "shape"), cases())
def test_a_sample_depends_on_its_own_position_only(monkeypatch, random, shape):
    """Alone, in another order and drawn on the device: the same; another position or seed: another."""
    x = images(shape)[:1].expand(shape).contiguous()
    batch = random(x, 3, POSITIONS, probability=0.7)
    alone = torch.cat([random(x[:1], 3, POSITIONS[i : i + 1], probability=0.7) for i in range(4)])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(batch, alone, atol=1e-6)
    assert torch.allclose(random(x, 3, POSITIONS[order], probability=0.7), batch[order], atol=1e-6)
    many = x[:1].expand(40, *shape[1:])
    first = random(many, 3, torch.arange(40), probability=0.7)
    assert not torch.equal(first, random(many, 4, torch.arange(40), probability=0.7))
    assert not torch.equal(first, random(many, 3, torch.arange(40), probability=0.7, stream="other"))
    assert 0 < sum(torch.equal(a, b) for a, b in zip(first, many, strict=True)) < 40
    draws_on_the_device(monkeypatch)
    assert torch.allclose(random(x, 3, POSITIONS, probability=0.7), batch, atol=1e-6)


@pytest.mark.parametrize(("random", "shape"), [case for case in cases() if "affine" not in str(case.id)])
def test_only_keeps_a_transform_from_other_samples(random, shape):
    x, only = images(shape), torch.tensor([True, False, True, False])
    out = random(x, 0, POSITIONS, only=only, probability=1.0)
    everyone = random(x, 0, POSITIONS, probability=1.0)
    assert torch.equal(out[~only], x[~only])
    assert torch.allclose(out[only], everyone[only], atol=1e-6)
    assert not torch.equal(out[only], x[only])


@pytest.mark.parametrize("shape", [PICTURE, VOLUME], ids=["2d", "3d"])
def test_a_view_does_not_depend_on_its_batch(monkeypatch, shape):
    """Permuted, split over two ranks, drawn on the device: the same views to 1e-6; and no two alike."""
    x = images((16, *shape[1:]))
    config, at = IN_COLOUR if shape is PICTURE else ALL_ON, torch.arange(100, 116)
    config = ViewConfig(**{**vars(config), "size": [9] * (x.ndim - 2)})
    spacing, bounds = 0.5 + images((16, x.ndim - 2), 1), limits_of(x)

    def view(rows):
        part = Limits(bounds.black[rows], bounds.white[rows])
        return views.random_view(x[rows], config, 5, at[rows], spacing=spacing[rows], limits=part)

    whole = view(torch.arange(16))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(view(order), whole[order], atol=1e-6)
    assert torch.allclose(torch.cat([view(order[:5]), view(order[5:])]), whole[order], atol=1e-6)
    twice = views.random_view(x, config, 5, at + 16, spacing=spacing, limits=bounds)
    assert not any(torch.equal(a, b) for a, b in zip(whole, twice, strict=True))
    draws_on_the_device(monkeypatch)
    assert torch.allclose(view(torch.arange(16)), whole, atol=1e-5)


def test_twins_with_the_documented_draws():
    """Column 0 decides, the rest are the parameters in the order of the signatures."""
    x, zero, one = images(PICTURE), torch.zeros(4, 3), torch.ones(4, 3)

    def u(stream, n):
        return uniform_torch(2, stream, POSITIONS, n).float()

    d = u("bias", 1 + len(terms(2, 3)))
    twin = views.bias_field(x, 0.4 * d[:, 1:] - 0.2, 3, torch.zeros(4))
    got = views.random_bias_field(x, 2, POSITIONS, strength=0.2, black=torch.zeros(4))
    assert torch.allclose(got, twin, atol=1e-6)

    d = u("colour", 5)
    twin = views.colour_jitter(x, 0.6 + 0.8 * d[:, 1], 2 * d[:, 2], 0.9 + 0.2 * d[:, 3], 0.4 * d[:, 4] - 0.2)
    numbers = {"brightness": 0.4, "contrast": 1.0, "saturation": 0.1, "hue": 0.2}
    assert torch.allclose(views.random_colour(x, 2, POSITIONS, **numbers), twin, atol=1e-6)

    d = u("stain", 7)
    twin = views.stain_jitter(x, 0.9 + 0.2 * d[:, 1:4], 0.2 * d[:, 4:] - 0.1)
    got = views.random_stain(x, 2, POSITIONS, sigma=0.1, limits=Limits(zero, one))
    assert torch.allclose(got, twin, atol=1e-6)

    d = u("lowres", 3)
    factor = (1.5 * 2 ** d[:, 1])[:, None]
    twin = views.low_resolution(x, factor.expand(4, 2))
    assert torch.allclose(views.random_low_resolution(x, 2, POSITIONS, factor=(1.5, 3)), twin, atol=1e-6)
    one_axis = torch.where((d[:, 2:] * 2).floor() == torch.arange(2), factor, 1.0)
    got = views.random_low_resolution(x, 2, POSITIONS, factor=(1.5, 3), axes="one")
    assert torch.allclose(got, views.low_resolution(x, one_axis), atol=1e-6)

    assert torch.allclose(
        views.random_sharpen(x, 2, POSITIONS, amount=2.0), views.sharpen(x, 2 * u("sharpen", 2)[:, 1])
    )
    got = views.random_blur(x, 2, POSITIONS, sigma=(1.0, 2.0))
    assert torch.allclose(got, views.blur(x, 1 + u("blur", 2)[:, 1], 6), atol=1e-6)
    at_half = views.solarise(x, torch.full((4,), 0.5))
    assert torch.allclose(views.random_solarise(x, 2, POSITIONS, probability=1.0), at_half)
    assert torch.equal(views.random_grayscale(x, 2, POSITIONS, probability=1.0), views.grayscale(x))


def test_noise_twins_with_the_documented_fields():
    x = images(PICTURE)
    sigma = 0.3 * uniform_torch(2, "noise", POSITIONS, 2).float()[:, 1]

    def field(name):
        return normal_torch(2, name, POSITIONS, 20 * 24).view(4, 1, 20, 24)

    assert torch.allclose(
        views.random_noise(x, 2, POSITIONS, sigma=0.3), views.noise(x, sigma, field("noise:field")), atol=1e-6
    )
    sigma = 0.3 * uniform_torch(2, "rician", POSITIONS, 2).float()[:, 1]
    twin = views.rician(x, sigma, torch.zeros(4), field("rician:real"), field("rician:imaginary"))
    got = views.random_rician(x, 2, POSITIONS, sigma=0.3, black=torch.zeros(4))
    assert torch.allclose(got, twin, atol=1e-6)


def test_erased_boxes_are_those_drawn():
    x = images((64, 1, 40, 50)) + 1
    at = torch.arange(64)
    out = views.random_erase(x, 0, at, area=(0.1, 0.3), aspect=(0.5, 2))
    share = (out == 0).float().mean(dim=(1, 2, 3))
    assert float(share.min()) > 0.07 and float(share.max()) < 0.33 and float(share.std()) > 0.03
    u = uniform_torch(0, "erase", at, 5).float()
    side, stretch = (0.1 + 0.2 * u[:, 1]) ** 0.5, (0.5 * 4 ** u[:, 2]) ** 0.5
    sides = torch.stack([(side / stretch * 40).clamp_max(40), (side * stretch * 50).clamp_max(50)], dim=1)
    start = u[:, 3:] * (torch.tensor([40, 50]) - sides)
    assert torch.equal(out, views.erase(x, start, start + sides))
    twice = views.random_erase(x, 0, at, area=(0.1, 0.3), aspect=(0.5, 2), count=2)
    assert torch.equal(twice.where(out != 0, 0), twice) and (twice == 0).sum() > (out == 0).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_refused(dtype):
    x = images(PICTURE).to(dtype)
    with pytest.raises(TypeError, match="float32"):
        views.random_view(x, ViewConfig(), 0, POSITIONS)
    with pytest.raises(TypeError, match="float32"):
        views.multi_crop(x, [CropConfig()], 0, POSITIONS)
    for random in (views.random_flip, views.random_blur, views.random_erase):
        with pytest.raises(TypeError, match="float32"):
            random(x, 0, POSITIONS)


def test_autocast_does_not_coarsen_a_view():
    """bfloat16 has 8 bits: a grid of 96 voxels, or an image, that passed through it would be off by far."""
    x = images((2, 1, 96, 96))
    config = ViewConfig(affine=1.0, blur=1.0, lowres=1.0, bias=1.0, modalities={})
    crops = [CropConfig(size=[48, 48], count=1)]
    at = torch.tensor([1, 2])
    plain = views.random_view(x, config, 0, at), views.multi_crop(x, crops, 0, at)[0].image
    with torch.autocast("cpu", torch.bfloat16):
        cast = views.random_view(x, config, 0, at), views.multi_crop(x, crops, 0, at)[0].image
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-5)


def test_transforms_are_for_their_modalities():
    x = images((64, 3, 16, 16))
    config = ViewConfig(flip=0.0, bias=1.0, stain=1.0)
    kinds = [Modality.MRI, Modality.CT, Modality.HISTOPATHOLOGY, Modality.FUNDUS] * 16
    modality = torch.tensor([MODALITIES.index(kind) for kind in kinds])
    view = partial(views.random_view, x, config, 0, torch.arange(64), limits=limits_of(x))
    out = view(modality=modality)
    changed = [not torch.equal(a, b) for a, b in zip(out, x, strict=True)]
    assert changed == [True, False, True, False] * 16
    bias = views.random_view(x, ViewConfig(flip=0.0, bias=1.0), 0, torch.arange(64), limits=limits_of(x))
    assert torch.allclose(out[0::4], bias[0::4], atol=1e-6)
    assert all(not torch.equal(a, b) for a, b in zip(view(), x, strict=True))  # unsaid: of the right one


def test_colours_need_to_know_black_and_white():
    with pytest.raises(ValueError, match="limits"):
        views.random_view(images(PICTURE), ViewConfig(colour=1.0), 0, POSITIONS)
    with pytest.raises(ValueError, match="3 channels"):
        views.random_stain(images((4, 1, 8, 8)), 0, POSITIONS)


def test_colours_of_a_normalised_picture_are_those_of_the_picture():
    """ImageNet's mean and deviation before, the same after: the jitter sees 0 to 1 in between."""
    picture = images((4, 3, 20, 24))
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.22])
    batch = {
        "image": (picture * 255).round().to(torch.uint8),
        "low": torch.zeros(4, 3),
        "high": torch.full((4, 3), 255.0),
        "mean": (255 * mean).expand(4, 3),
        "std": (255 * std).expand(4, 3),
    }
    x = views.to_float(batch, 3)
    exact = (picture * 255).round() / 255
    kept = {"seed": 1, "positions": POSITIONS}
    for random in (views.random_colour, views.random_stain, partial(views.random_solarise, probability=1)):
        got = random(x, limits=views.limits(batch, 3), **kept)
        back = got * std.view(3, 1, 1) + mean.view(3, 1, 1)
        assert torch.allclose(back, random(exact, **kept), atol=1e-4)


def test_draws_follow_the_probability():
    x = torch.ones(4000, 1, 2, 2)
    out = views.random_intensity(x, 0, torch.arange(4000), probability=0.3)
    share = float((out != x).flatten(1).any(dim=1).float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)


def test_the_host_computes_drawn_samples_only():
    """The affine map of a fifth of the batch is taken of a fifth of the batch."""
    affine = importlib.import_module("medloom.pretrain.views.affine")  # the package exports its function
    seen, whole = [], affine.resample

    def counted(x, *arguments, **options):
        seen.append(len(x))
        return whole(x, *arguments, **options)

    x = images((100, 1, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine, "resample", counted)
        views.random_affine(x, 0, torch.arange(100), probability=0.2)
    drawn = int((uniform_torch(0, "affine", torch.arange(100), 1) < 0.2).sum())
    assert seen == [drawn] and 5 < drawn < 40
    assert np.isclose(drawn / 100, 0.2, atol=0.2)


def test_training_draws_on_the_host():
    """The data module keeps the positions back; the batch of the objectives draws with them."""
    from medloom.data.datamodule import PretrainData
    from medloom.data.stream.config import StreamConfig
    from medloom.pretrain.objectives.base import Batch

    sent = {"position": torch.tensor([5, 8]), "replaced": [None, None]}
    kept = PretrainData(StreamConfig(), steps=1).on_before_batch_transfer(sent, 0)["host_position"]
    assert isinstance(kept, np.ndarray) and kept.tolist() == [5, 8]
    image, away = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64, device="meta")
    batch = Batch(image=image, position=away, seed=0, host_position=torch.from_numpy(kept))
    assert torch.equal(batch.keys, torch.tensor([5, 8]))
    assert Batch(image=image, position=away, seed=0).keys is away
