"""Grey scale, colour, stain, resolution and noise against torchvision, scipy, NumPy and the papers."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from medloom.data.config import structured
from medloom.data.errors import ConfigError
from medloom.pretrain import views
from medloom.pretrain.views import ViewConfig
from medloom.pretrain.views.bias import terms
from torchvision.transforms.v2 import functional as tv

ONE, ZERO = torch.ones(4), torch.zeros(4)


def pictures(*shape, seed=0) -> torch.Tensor:
    return torch.rand(shape or (4, 3, 20, 24), generator=torch.Generator().manual_seed(seed))


def test_neutral_numbers_change_nothing_bit_for_bit():
    for x in (pictures() * 4 - 2, pictures(4, 1, 8, 10, 12) * 4 - 2):
        n = x.ndim - 2
        field = torch.randn(4, 1, *x.shape[2:])
        assert torch.equal(views.bias_field(x, torch.zeros(4, len(terms(n, 3))), 3, ZERO), x)
        assert torch.equal(views.low_resolution(x, torch.ones(4, n)), x)
        assert torch.equal(views.sharpen(x, ZERO), x)
        assert torch.equal(views.blur(x, torch.zeros(4, n), 4), x)
        assert torch.equal(views.rician(x, ZERO, ZERO, field, field), x)
        assert torch.equal(views.erase(x, torch.ones(4, n), torch.ones(4, n)), x)
    u = pictures()
    assert torch.equal(views.colour_jitter(u, ONE, ONE, ONE, ZERO), u)
    assert torch.equal(views.colour_jitter(u[:, :1], ONE, ONE, ONE, ZERO), u[:, :1])
    assert torch.equal(views.stain_jitter(u, torch.ones(4, 3), torch.zeros(4, 3)), u)
    assert torch.equal(views.solarise(u, ONE + 0.01), u)


def test_neutral_samples_stay_exact_beside_changed_ones():
    """Per-sample numbers: one neutral sample in a batch of others."""
    u = pictures()
    mixed = torch.tensor([1.0, 1.3, 1.0, 0.7])
    out = views.colour_jitter(u, mixed, mixed, mixed, mixed - 1)
    assert torch.equal(out[0], u[0]) and torch.equal(out[2], u[2]) and not torch.equal(out[1], u[1])
    alpha = mixed[:, None].expand(-1, 3)
    out = views.stain_jitter(u, alpha, torch.zeros(4, 3))
    assert torch.equal(out[0], u[0]) and not torch.equal(out[3], u[3])


@pytest.mark.parametrize("channels", [3, 1])
def test_colours_are_torchvisions(channels):
    u = pictures(4, channels, 20, 24)
    factors = [0.3, 0.8, 1.4, 2.5]
    f = torch.tensor(factors)
    brighter = views.colour_jitter(u, f, ONE, ONE, ZERO)
    contrasted = views.colour_jitter(u, ONE, f, ONE, ZERO)
    for b, factor in enumerate(factors):
        assert torch.allclose(brighter[b], tv.adjust_brightness(u[b], factor), atol=1e-6)
        assert torch.allclose(contrasted[b], tv.adjust_contrast(u[b], factor), atol=1e-6)
    if channels == 1:
        return
    saturated = views.colour_jitter(u, ONE, ONE, f, ZERO)
    hues = [-0.5, -0.2, 0.05, 0.4]
    turned = views.colour_jitter(u, ONE, ONE, ONE, torch.tensor(hues))
    everything = views.colour_jitter(u, f, f.flip(0), f, torch.tensor(hues))
    for b, (factor, hue) in enumerate(zip(factors, hues, strict=True)):
        assert torch.allclose(saturated[b], tv.adjust_saturation(u[b], factor), atol=1e-6)
        assert torch.allclose(turned[b], tv.adjust_hue(u[b], hue), atol=1e-5)
        expected = tv.adjust_contrast(tv.adjust_brightness(u[b], factor), factors[3 - b])
        expected = tv.adjust_hue(tv.adjust_saturation(expected, factor), hue)
        assert torch.allclose(everything[b], expected, atol=1e-4)


def test_hue_leaves_grey_and_primary_values_where_they_belong():
    grey = torch.full((1, 3, 2, 2), 0.37)
    assert torch.equal(views.colour_jitter(grey, ONE[:1], ONE[:1], ONE[:1], torch.tensor([0.3])), grey)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = views.colour_jitter(red, ONE[:1], ONE[:1], ONE[:1], torch.tensor([1 / 3]))
    assert torch.allclose(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_grey_and_solarised_are_torchvisions():
    u = pictures()
    assert torch.allclose(views.grayscale(u), tv.rgb_to_grayscale(u, num_output_channels=3), atol=1e-6)
    thresholds = [0.1, 0.5, 0.9, 1.0]
    out = views.solarise(u, torch.tensor(thresholds))
    for b, threshold in enumerate(thresholds):
        assert torch.allclose(out[b], tv.solarize(u[b], threshold))


def test_stains_follow_the_papers_matrix():
    """Densities -ln(light) by the inverse of Ruifrok and Johnston's matrix."""
    rgb_from_hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    u = pictures().clamp_min(0.02)
    alpha = 0.8 + 0.4 * pictures(4, 3, seed=1)
    beta = 0.1 * pictures(4, 3, seed=2) - 0.05
    got = views.stain_jitter(u, alpha, beta)
    for b in range(4):
        density = -np.log(u[b].double().numpy().reshape(3, -1).T)
        stains = density @ np.linalg.inv(rgb_from_hed)
        stains = stains * alpha[b].double().numpy() + beta[b].double().numpy()
        expected = np.exp(-stains @ rgb_from_hed).clip(0, 1).T.reshape(3, 20, 24)
        assert np.allclose(got[b].numpy(), expected, atol=1e-4)
    pure = torch.exp(-torch.tensor(rgb_from_hed[0])).float().view(1, 3, 1, 1)  # haematoxylin alone
    twice = torch.tensor([[1.0, 2.0, 2.0]])  # of the others
    assert torch.allclose(views.stain_jitter(pure, twice, torch.zeros(1, 3)), pure, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 12, 15), (2, 1, 8, 10, 12)], ids=["2d", "3d"])
@pytest.mark.parametrize("order", [1, 3])
def test_a_bias_field_is_the_exponential_of_numpys_polynomial(shape, order):
    n, x = len(shape) - 2, pictures(*shape)
    exponents = terms(n, order)
    assert all(0 < sum(e) <= order for e in exponents) and len(set(exponents)) == len(exponents)
    coefficients = pictures(shape[0], len(exponents), seed=1) - 0.5
    black = torch.full((shape[0],), -0.3)
    got = views.bias_field(x, coefficients, order, black)
    axes = [(2 * np.arange(s) + 1) / s - 1 for s in shape[2:]]
    evaluate = np.polynomial.polynomial.polygrid2d if n == 2 else np.polynomial.polynomial.polygrid3d
    for b in range(shape[0]):
        table = np.zeros([order + 1] * n)
        for column, e in enumerate(exponents):
            table[e] = coefficients[b, column]
        expected = -0.3 + (x[b].double().numpy() + 0.3) * np.exp(evaluate(*axes, table))
        assert np.allclose(got[b].numpy(), expected, atol=1e-4)


def test_a_bias_field_without_black_starts_at_the_darkest_pixel():
    x = pictures(4, 1, 16, 16) + 5
    out = views.random_bias_field(x, 0, torch.arange(4), strength=0.3)
    lowest = x.flatten(1).argmin(dim=1, keepdim=True)
    assert torch.allclose(out.flatten(1).gather(1, lowest), x.flatten(1).gather(1, lowest))
    assert not torch.allclose(out, x, atol=0.05)


@pytest.mark.parametrize("shape", [(2, 2, 12, 16), (2, 1, 8, 12, 16)], ids=["2d", "3d"])
def test_low_resolution_is_pooling_and_interpolating(shape):
    n, x = len(shape) - 2, pictures(*shape)
    pool, mode = (F.avg_pool2d, "bilinear") if n == 2 else (F.avg_pool3d, "trilinear")
    for factor in (2, 4):
        expected = F.interpolate(pool(x, factor), size=shape[2:], mode=mode, align_corners=False)
        got = views.low_resolution(x, torch.full((2, n), float(factor)))
        assert torch.allclose(got, expected, atol=1e-5)
    thick = torch.ones(2, n)
    thick[:, 0] = 4
    got = views.low_resolution(x, thick)
    kernel = [4] + [1] * (n - 1)
    expected = F.interpolate(pool(x, kernel), size=shape[2:], mode=mode, align_corners=False)
    assert torch.allclose(got, expected, atol=1e-5)


def test_any_factor_keeps_constants_and_the_mean():
    flat = torch.full((4, 1, 30, 31), 0.7)
    factor = torch.tensor([[1.0, 1.3], [1.9, 3.7], [7.2, 2.0], [29.0, 40.0]])
    assert torch.allclose(views.low_resolution(flat, factor), flat, atol=1e-5)
    x = pictures(4, 1, 30, 31)
    out = views.low_resolution(x, factor)
    assert torch.isfinite(out).all()
    assert torch.allclose(out.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)), atol=0.03)
    spread = out.std(dim=(1, 2, 3))
    assert spread[0] > spread[1] > spread[3]


def test_blur_of_each_axis_by_itself_agrees_with_scipy():
    x = pictures(2, 2, 14, 16, 12)
    sigma = torch.tensor([[0.0, 1.0, 2.0], [1.5, 0.4, 0.0]])
    got = views.blur(x, sigma, radius=8)
    for b in range(2):
        for c in range(2):
            expected = scipy.ndimage.gaussian_filter(
                x[b, c].double().numpy(), sigma[b].tolist(), mode="nearest", radius=8
            )
            assert np.allclose(got[b, c].numpy(), expected, atol=1e-5)


def test_sharpening_is_the_unsharp_mask():
    x = pictures(2, 1, 20, 20)
    got = views.sharpen(x, torch.tensor([0.5, 2.0]))
    for b, amount in enumerate((0.5, 2.0)):
        image = x[b, 0].double().numpy()
        soft = scipy.ndimage.gaussian_filter(image, 1.0, mode="nearest", radius=3)
        assert np.allclose(got[b, 0].numpy(), image + amount * (image - soft), atol=1e-5)


def test_rician_noise_has_the_moments_of_the_distribution():
    """Of no signal a Rayleigh distribution, mean sigma sqrt(pi / 2); of a strong one nearly a Gaussian."""
    x = torch.zeros(2, 1, 300, 300)
    x[1] = 10.0
    at = torch.arange(2)
    real, imaginary = (
        torch.randn(2, 1, 300, 300, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    out = views.rician(x, torch.full((2,), 0.5), torch.zeros(2), real, imaginary)
    assert out.min() >= 0
    assert float(out[0].mean()) == pytest.approx(0.5 * (np.pi / 2) ** 0.5, rel=0.01)
    assert float(out[1].mean()) == pytest.approx((100 + 0.25) ** 0.5, rel=0.001)
    assert float(out[1].std()) == pytest.approx(0.5, rel=0.02)
    drawn = views.random_rician(x[1:], 0, at[1:], sigma=0.5, black=torch.tensor([-3.0]))
    assert drawn.shape == x[1:].shape and drawn.min() >= -3


def test_grey_pictures_in_three_channels_stay_grey():
    grey = pictures(4, 1, 16, 16).expand(-1, 3, -1, -1).contiguous()
    config = ViewConfig(
        affine=1.0, bias=1.0, intensity=1.0, colour=1.0, grayscale=0.5, blur=1.0, lowres=1.0, noise=1.0,
        rician=1.0, solarise=0.5, erase=1.0, sharpen=1.0, modalities={},
    )  # fmt: skip
    limits = views.Limits(torch.zeros(4, 3), torch.ones(4, 3))
    out = views.random_view(grey, config, 0, torch.arange(4), limits=limits)
    assert torch.allclose(out[:, 0], out[:, 1], atol=1e-6) and torch.allclose(out[:, 0], out[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blur", 1.5, "probability"),
        ("gamma", [2.0, 1.0], "low <= high"),
        ("lowres_factor", [0.5, 1.0], "from 1"),
        ("blur_least", 3.0, "blur_sigma"),
        ("padding", "refection", "reflection"),
        ("lowres_axes", "on", "one"),
        ("modalities", {"bais": ["mri"]}, "bias"),
        ("modalities", {"bias": ["mrt"]}, "mri"),
    ],
)
def test_wrong_values_are_refused_with_the_mend(key, value, message):
    with pytest.raises(ConfigError, match=message):
        structured(ViewConfig, {key: value})


def test_a_recipe_changes_one_modality_list_and_keeps_the_others():
    config = structured(ViewConfig, {"bias": 0.3, "modalities": {"stain": ["histology", "cytology"]}})
    assert [str(m) for m in config.only("stain")] == ["histopathology", "cytology"]
    assert "mri" in config.only("bias") and config.only("blur") == []
