"""What transformers share: rotary positions, hidden tokens, stochastic depth, recomputation, two stems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, Hide, build_encoder
from medloom.pretrain.encoders.blocks import add_part, run_block, run_blocks
from medloom.pretrain.encoders.patches import PatchEmbed
from medloom.pretrain.encoders.positions import rotate, rotations
from medloom.pretrain.weights import load_into, save_encoder
from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch.nn import functional

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}
ANY = {"name": "vit_any", "patch_size": [2, 8, 8], "patch_size_2d": [8, 8], "in_channels": 2, **SMALL}
WINDOWS = {"depths": [1, 1, 2, 1], "embed_dim": 12, "num_heads": [1, 2, 2, 2], "window_size": 4}
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", **SMALL}, (64, 48)),
    "registers": ({"name": "vit", "model": "vit_small_patch14_reg4_dinov2", **SMALL}, (56, 42)),
    "dinov3": ({"name": "vit", "model": "vit_small_patch16_dinov3", **SMALL}, (64, 48)),
    "mixed-rope": ({"name": "vit", "model": "vit_small_patch16_rope_mixed_224", **SMALL}, (64, 48)),
    "vit3d": ({"name": "vit3d", "patch_size": [4, 8, 8], **SMALL}, (8, 24, 16)),
    "vit3d-rope": ({"name": "vit3d", "patch_size": [8, 8, 8], "positions": "rope", **SMALL}, (16, 16, 24)),
    "vit_any-2d": (ANY, (24, 16)),
    "vit_any-3d": (ANY, (4, 24, 16)),
    "swin": ({"name": "swin", "img_size": 64, "kwargs": WINDOWS}, (64, 96)),
    "swinv2": ({"name": "swin", "model": "swinv2_tiny_window8_256", "img_size": 64, "kwargs": WINDOWS},
               (64, 96)),
}  # fmt: skip
PLAIN = [key for key in CASES if "swin" not in key]


def make(key: str, **changes: Any) -> tuple[Encoder, torch.Tensor]:
    """A small encoder in evaluation mode and two images for it."""
    torch.manual_seed(0)
    config, spatial = CASES[key]
    encoder = build_encoder({**config, **changes}).eval()
    return encoder, torch.randn(2, encoder.in_channels, *spatial)


def embedded_nothing(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    """The token [1, 1, E] that an empty patch becomes behind the patch embedding."""
    zeros = torch.zeros_like(x[:1])
    if x.ndim == 4 and len(encoder.axes) > 1:
        return encoder.get_submodule("patch_embed_2d")(zeros)[:, :1]
    inner = "model.patch_embed" if encoder.inner else "patch_embed"
    return encoder.get_submodule(inner)(zeros).reshape(1, -1, encoder.token_dim)[:, :1]


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_a_token_of_nothing_in_place_of_a_patch_is_the_image_with_an_empty_patch(key: str) -> None:
    encoder, x = make(key)
    grid = encoder.grid(x.shape[2:])
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(2, torch.Size(grid).numel(), generator=generator) < 0.5
    pixels = mask.reshape(2, 1, *grid)
    for axis, side in enumerate(encoder.patch_of(x.ndim - 2), start=2):
        pixels = pixels.repeat_interleave(side, dim=axis)
    hidden = encoder(x, hide=Hide(mask, embedded_nothing(encoder, x)))
    blanked = encoder(x.masked_fill(pixels, 0.0))
    assert torch.allclose(hidden.tokens, blanked.tokens, atol=1e-5)
    assert torch.allclose(hidden.pooled, blanked.pooled, atol=1e-5)
    assert hidden.grid == grid and not torch.allclose(hidden.tokens, encoder(x).tokens, atol=1e-3)
    # What is hidden cannot be seen: other pixels there change nothing.
    noise = torch.where(pixels, 9 * torch.randn_like(x), x)
    assert torch.equal(encoder(noise, hide=Hide(mask, embedded_nothing(encoder, x))).tokens, hidden.tokens)


@pytest.mark.parametrize("key", CASES)
def test_the_hiding_token_is_learnt_and_hiding_nothing_changes_nothing(key: str) -> None:
    encoder, x = make(key)
    n = torch.Size(encoder.grid(x.shape[2:])).numel()
    token = torch.zeros(1, 1, encoder.token_dim, requires_grad=True)
    nothing = encoder(x, hide=Hide(torch.zeros(2, n, dtype=torch.bool), token))
    assert torch.equal(nothing.tokens, encoder(x).tokens)
    half = torch.arange(n).expand(2, -1) % 2 == 0
    levels = encoder(x, hide=Hide(half, token), pyramid=True).pyramid
    assert levels is not None
    (levels[-1] * torch.randn_like(levels[-1])).sum().backward()
    assert token.grad is not None and token.grad.abs().sum() > 0


def test_hiding_and_keeping_together_are_refused() -> None:
    encoder, x = make("vit")
    hide = Hide(torch.zeros(2, 12, dtype=torch.bool), torch.zeros(1, 1, 48))
    with pytest.raises(ConfigError, match="one of them"):
        encoder(x, keep=torch.tensor([[0], [0]]), hide=hide)


@pytest.mark.parametrize("key", CASES)
def test_recomputation_gives_the_same_gradients_from_less_memory(key: str) -> None:
    encoder, x = make(key)
    gradients: list[dict[str, torch.Tensor]] = []
    stored: list[int] = []
    for recompute in (False, True):
        encoder.recompute = recompute
        encoder.zero_grad()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: s.append(t.numel()) or t, lambda t: t
        ):
            features = encoder(x, pyramid=True)
        stored.append(sum(saved))
        assert features.pyramid is not None
        (features.pooled.square().mean() + sum(p.square().mean() for p in features.pyramid)).backward()
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-8), name
    assert stored[1] < 0.6 * stored[0]


def test_recomputation_drops_the_same_samples_again() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, drop_path=0.5).train()
    x = torch.randn(8, 5, 16)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        block.zero_grad()
        run_blocks([block], x, recompute=recompute)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("batch", [2, 8])
@torch.no_grad()
def test_stochastic_depth_preserves_the_mean(batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 3)
    # Of 8 samples two are always left out; of 2 samples each is dropped for itself.
    drawn = torch.stack([add_part(x, lambda tokens, *_: tokens + 1, 0.25) for _ in range(4000)])
    assert torch.allclose(drawn.mean(0), 2 * x + 1, atol=0.15)
    assert float((drawn == x).all(-1).float().mean()) == pytest.approx(0.25, abs=0.02)


@torch.no_grad()
def test_stochastic_depth_computes_only_what_it_keeps() -> None:
    torch.manual_seed(0)
    seen: list[int] = []

    def part(tokens: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
        seen.append(len(tokens))
        return torch.ones_like(tokens)

    out = add_part(torch.zeros(10, 2), part, 0.3)
    assert seen == [7]
    assert sorted(out[:, 0].tolist()) == pytest.approx([0.0] * 3 + [10 / 7] * 7)
    add_part(torch.zeros(1, 2), part, 0.3)  # of one sample nothing can be left out beforehand
    add_part(torch.zeros(3, 2), part, 0.99)
    assert seen == [7, 1, 1]


BLOCKS = {
    "vit": (lambda rate: Block(16, 2, init_values=0.5, drop_path=rate), (6, 5, 16)),
    "eva": (lambda rate: EvaBlock(16, 2, init_values=0.5, drop_path=rate), (6, 5, 16)),
    "swin": (lambda rate: SwinTransformerBlock(16, (8, 8), 2, window_size=4, shift_size=2, drop_path=rate),
             (6, 8, 8, 16)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
@torch.no_grad()
def test_blocks_run_as_timm_wrote_them_and_skip_when_they_drop(kind: str) -> None:
    torch.manual_seed(0)
    build, shape = BLOCKS[kind]
    block, x = build(0.5), torch.randn(shape)
    assert torch.equal(run_block(block.eval(), x), block(x))
    seen: list[int] = []
    block.norm1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    block.norm2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    run_block(block.train(), x)
    assert seen == [3, 3]


@torch.no_grad()
def test_each_sample_keeps_its_own_rotations_when_others_are_dropped() -> None:
    torch.manual_seed(0)
    own = torch.randn(8, 1, 5, 4)
    out = add_part(torch.zeros(8, 5, 4), lambda _, rope, __: rope[:, 0], 0.5, own)  # type: ignore[index]
    kept = out.any(-1).any(-1)
    assert int(kept.sum()) == 4 and torch.equal(out[kept], 2 * own[kept, 0])
    shared = add_part(torch.zeros(8, 5, 4), lambda x, rope, _: rope.expand_as(x), 0.5, own[0, 0])  # type: ignore[union-attr]
    assert torch.equal(shared[shared.any(-1).any(-1)], 2 * own[0, 0].expand(4, -1, -1))


def test_rotations_are_their_closed_form() -> None:
    table = rotations((2, 3), 10, base=100.0)  # 2 pairs an axis, 1 pair left over
    assert table.shape == (6, 10)
    row = table[1 * 3 + 2]
    angles = torch.tensor([1.0, 0.1, 2.0, 0.2, 0.0])
    assert torch.allclose(row, torch.cat([angles.sin(), angles.cos()]), atol=1e-6)
    vector = torch.randn(10, generator=torch.Generator().manual_seed(0))
    pairs = torch.complex(vector[:5], vector[5:]) * torch.polar(torch.ones(5), angles)
    assert torch.allclose(rotate(vector, row), torch.cat([pairs.real, pairs.imag]), atol=1e-6)
    with pytest.raises(ValueError, match="at least 6"):
        rotations((2, 2, 2), 4)


@pytest.mark.parametrize(("grid", "shift"), [((9, 8), (2, 3)), ((5, 6, 7), (1, 2, 3))])
def test_attention_depends_on_the_distance_only(grid: tuple[int, ...], shift: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 24, generator=generator)
    table = rotations(grid, 24).reshape(*grid, 24)
    at = tuple(1 for _ in grid)
    other = tuple(range(len(grid)))
    for first, second in ((at, other), (other, at)):
        here = rotate(query, table[first]) @ rotate(key, table[second])
        moved = [tuple(i + s for i, s in zip(place, shift, strict=True)) for place in (first, second)]
        there = rotate(query, table[moved[0]]) @ rotate(key, table[moved[1]])
        assert float(there) == pytest.approx(float(here), abs=1e-4)
        assert abs(float(rotate(query, table[first]) @ rotate(key, table[moved[1]]) - here)) > 1e-2


@torch.no_grad()
def test_blocks_with_rotations_see_the_same_thing_anywhere() -> None:
    encoder = make("vit3d-rope")[0]
    for name, parameter in encoder.named_parameters():
        if "qkv.weight" in name:
            parameter.mul_(20.0)  # attention far from even, so that places matter
    blocks = list(encoder.get_submodule("blocks").children())
    table = rotations((5, 6, 7), 16).reshape(5, 6, 7, 16)
    tokens = torch.randn(2, 8, 48)
    near, far = (part.reshape(8, 16) for part in (table[:2, :2, :2], table[2:4, 3:5, 1:3]))
    here = run_blocks(blocks, tokens, rope=near)[0]
    assert torch.allclose(run_blocks(blocks, tokens, rope=far)[0], here, atol=1e-4)
    assert not torch.allclose(run_blocks(blocks, tokens, rope=far.flip(0))[0], here, atol=0.1)
    assert not torch.allclose(run_blocks(blocks, tokens)[0], here, atol=0.1)


@pytest.mark.parametrize("positions", ["sincos", "rope", "both"])
@torch.no_grad()
def test_a_volume_of_depth_1_is_the_picture_for_shared_weights(positions: str) -> None:
    encoder = make("vit_any-2d", patch_size=[1, 8, 8], positions=positions)[0]
    state = encoder.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed_2d.proj.weight"].unsqueeze(2)
    state["patch_embed.proj.bias"] = state["patch_embed_2d.proj.bias"]
    encoder.load_state_dict(state)
    x = torch.randn(2, 2, 24, 16)
    picture, volume = encoder(x, pyramid=True), encoder(x[:, :, None], pyramid=True)
    assert torch.allclose(volume.tokens, picture.tokens, atol=1e-5)
    assert torch.allclose(volume.pooled, picture.pooled, atol=1e-5)
    assert (picture.grid, volume.grid) == ((3, 2), (1, 3, 2))
    keep = torch.tensor([[0, 3, 5], [4, 1, 2]])
    kept = [encoder(image, keep=keep).tokens for image in (x, x[:, :, None])]
    assert torch.allclose(kept[0], kept[1], atol=1e-5)


def test_each_kind_of_image_trains_all_that_is_shared_and_leaves_the_other_stem_a_zero() -> None:
    for key, own, other in (
        ("vit_any-2d", "patch_embed_2d.", "patch_embed."),
        ("vit_any-3d", "patch_embed.", "patch_embed_2d."),
    ):
        encoder, x = make(key)
        features = encoder.train()(x)
        (features.tokens.square().sum() + features.pooled.square().sum()).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert bool(parameter.grad.any()) is not name.startswith(other), name
        assert any(name.startswith(own) for name, _ in encoder.named_parameters())
    with pytest.raises(ConfigError, match="2D and 3D"):
        encoder.grid((8, 8, 8, 8))


@pytest.mark.parametrize(("patch", "spatial"), [((4, 6), (12, 18)), ((2, 4, 6), (4, 12, 18))])
def test_some_patches_are_embedded_as_among_all(patch: tuple[int, ...], spatial: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(patch, 2, 12).double()
    x = torch.randn(3, 2, *spatial, dtype=torch.float64)
    keep = torch.stack([torch.randperm(9)[:4] for _ in range(3)])
    every = embed(x).gather(1, keep[..., None].expand(-1, -1, 12))
    convolution = functional.conv3d if len(patch) == 3 else functional.conv2d
    assert torch.allclose(embed(x).mT.flatten(2), convolution(x, embed.proj.weight, embed.proj.bias,
                                                             stride=patch).flatten(2))  # fmt: skip
    assert torch.allclose(embed(x, keep), every)
    gradients = [
        torch.autograd.grad(out.square().sum(), embed.proj.weight)[0] for out in (every, embed(x, keep))
    ]
    assert torch.allclose(*gradients)


@pytest.mark.parametrize("key", PLAIN)
def test_masked_forwards_embed_visible_patches_only(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x = make(key)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            monkeypatch.setattr(module, "forward", lambda *_: pytest.fail("all patches were embedded"))
    assert encoder(x, keep=torch.tensor([[0, 3], [2, 1]])).tokens.shape == (2, 2, 48)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
@torch.no_grad()
def test_weights_of_pictures_start_both_stems(model: str, tmp_path: Path) -> None:
    flat = build_encoder({"name": "vit", "model": model, "in_channels": 3, **SMALL}).eval()
    save_encoder(tmp_path, flat, {})
    scales = {"layer_scale": 1e-5, "registers": 4} if "dinov3" in model else {}
    both = build_encoder({**ANY, "in_channels": 1, **scales}).eval()
    report = load_into(both, tmp_path)
    assert not report.missing and not report.unexpected
    assert "starts the stems of pictures and of volumes" in str(report)
    assert "patch of [16, 16] -> [8, 8] pixels" in str(report) and "3 -> 1 channels" in str(report)
    picture = torch.randn(1, 1, 24, 16)
    flat_tokens = both.get_submodule("patch_embed_2d")(picture)
    volume = picture[:, :, None].expand(-1, -1, 2, -1, -1)  # alike along depth
    assert torch.allclose(both.get_submodule("patch_embed")(volume), flat_tokens, atol=1e-5)
    assert float(flat_tokens.std()) > 0.1


@torch.no_grad()
def test_names_of_the_eva_family_are_translated() -> None:
    """With rotations taken away, a DINOv3 network and the adopted weights give the same."""
    flat = build_encoder({"name": "vit", "model": "vit_small_patch16_dinov3_qkvb", **SMALL}).eval()
    flat.get_submodule("model").rope = None
    for name, parameter in flat.named_parameters():
        if "gamma" in name or "bias" in name:
            parameter.normal_()
    solid = build_encoder({"name": "vit3d", "patch_size": [1, 16, 16], "positions": "rope", "in_channels": 3,
                           "registers": 4, "layer_scale": 1.0, **SMALL}).eval()  # fmt: skip
    tensors = {name.removeprefix("model."): tensor for name, tensor in flat.state_dict().items()}
    solid.adopt(tensors, flat)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].unsqueeze(2)
    solid.load_state_dict(tensors)
    x = torch.randn(1, 3, 16, 16)  # one patch: nothing to turn
    assert torch.allclose(solid(x[:, :, None]).tokens, flat(x).tokens, atol=1e-3)  # eps of its norms: 1e-5


@torch.no_grad()
def test_pooled_is_the_class_token_or_the_mean_of_the_patches() -> None:
    section = {"name": "vit3d", "patch_size": [8, 8, 8], "depth": 2, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(0)
    token = build_encoder(section).eval()
    mean = build_encoder({**section, "pool": "mean"}).eval()
    mean.load_state_dict(token.state_dict())
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(token(x).tokens, mean(x).tokens)
    torch.testing.assert_close(mean(x).pooled, mean(x).tokens.mean(dim=1))
    assert not torch.allclose(token(x).pooled, mean(x).pooled, atol=1e-3)
    with pytest.raises(ConfigError, match="did you mean mean"):
        build_encoder({**section, "pool": "men"})
