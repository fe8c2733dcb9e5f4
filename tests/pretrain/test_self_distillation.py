"""DINO and DINOv2: who sees what, what moves when, one rank and two, and that they learn."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives import Batch, Output
from medloom.pretrain.objectives.dino import DINO
from medloom.pretrain.objectives.dinov2 import DINOv2
from medloom.pretrain.schedules import cosine
from torch import Tensor, nn

from .overfit import overfit
from .ranks_harness import on_two_ranks, one_process
from .small import small_batch, small_encoder, small_objective


def crops(ndim: int = 2, large: int = 32, small: int = 16) -> list[dict[str, Any]]:
    """Two global crops and three local ones."""
    return [
        {"name": "local", "count": 3, "size": [small] * ndim, "scale": [0.1, 0.3]},
        {"name": "global", "count": 2, "size": [large] * ndim},
    ]


def make(name: str, family: str = "vit", **changes: Any) -> tuple[Any, Encoder, Batch]:
    encoder = small_encoder(family)
    objective = small_objective(name, encoder, **{"crops": crops(encoder.ndim), **changes})
    return objective, encoder, small_batch(encoder, encoder.ndim)


def record(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the images that an encoder is given."""
    shapes: list[tuple[int, ...]] = []
    forward = module.forward

    def spy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(x.shape))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(module, "forward", spy)
    return shapes


# ---- who sees what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dino", "dinov2"])
@pytest.mark.parametrize("family", ["vit", "vit3d"])
def test_equal_sizes_share_a_forward_and_the_teacher_sees_global_crops_only(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, encoder, batch = make(name, family)
    student, teacher = record(monkeypatch, encoder), record(monkeypatch, objective.teacher.encoder)
    output = objective.step(batch, encoder)
    n = encoder.ndim
    assert student == [(8, 1, *[32] * n), (12, 1, *[16] * n)]
    assert teacher == [(8, 1, *[32] * n)]
    assert objective.sizes(batch.image.shape[2:]) == [(32,) * n, (16,) * n]
    assert output.views is not None and torch.equal(output.features, output.views[0])
    assert output.views.shape == (2, 4, encoder.embed_dim)


def test_crops_of_one_size_are_one_forward_and_only_global_ones_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, encoder, batch = make("dinov2", crops=crops(small=32), mask_share=1.0)
    hides: list[Any] = []
    forward = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda x, keep=None, hide=None, only=None: (
            hides.append((len(x), hide)), forward(x, keep, hide=hide, only=only)
        )[1]
    )  # fmt: skip
    teacher = record(monkeypatch, objective.teacher.encoder)
    objective.step(batch, encoder)
    ((rows, hide),) = hides
    assert rows == 20 and teacher == [(8, 1, 32, 32)]
    assert hide.mask[:8].any(dim=1).all() and not hide.mask[8:].any()


def test_masks_have_the_share_asked_for_and_differ_between_the_crops() -> None:
    objective, encoder, _ = make("dinov2", mask_share=0.5, mask_ratio=[0.25, 0.5])
    batch = small_batch(encoder, 2, count=200)
    groups = objective_views(objective, batch)
    hidden, wanted = objective.hide(groups, 400, batch, encoder)
    share = hidden.mask.float().mean(dim=1)  # of 16 tokens
    masked = share > 0
    assert 0.4 < float(masked.float().mean()) < 0.6
    assert float(share[masked].min()) >= 0.25 - 1 / 32 and float(share.max()) <= 0.5 + 1 / 32
    assert not torch.equal(hidden.mask[:200], hidden.mask[200:])
    assert torch.equal(hidden.index.sort().values, hidden.mask.flatten().nonzero()[:, 0])
    assert torch.equal(wanted.pick(torch.arange(400 * 16).view(400, 16, 1))[:, 0], hidden.index)
    assert float(hidden.weight.sum()) == pytest.approx(float(masked.sum()), rel=1e-4)


def objective_views(objective: DINO, batch: Batch) -> Any:
    from medloom.pretrain.objectives.crops import make as cut

    return cut(batch, objective.crops)[0]


def test_the_token_loss_looks_at_hidden_tokens_alone() -> None:
    objective, encoder, batch = make("dinov2", centring="centre")
    groups = objective_views(objective, batch)
    hidden, wanted = objective.hide(groups, 8, batch, encoder)
    assert hidden.mask.any() and not hidden.mask.all()
    tokens = torch.randn(8, 16, 48, requires_grad=True)
    objective.tokens_agree(wanted.pick(tokens), wanted.pick(torch.randn(8, 16, 48)), hidden, batch).backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad.abs().sum(dim=2) > 0, hidden.mask)


def test_a_step_with_some_tokens_is_the_step_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of student and teacher computes class tokens and hidden ones; nothing else changes."""
    results, rows = [], []
    for whole in (False, True):
        objective, encoder, batch = make("dinov2")
        if whole:
            for network in (encoder, objective.teacher.encoder):
                monkeypatch.setattr(network, "some", partial(Encoder.some, network))
        else:
            mlp = next(m for name, m in encoder.named_modules() if name.endswith("blocks.1.mlp"))
            mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
        output = objective.step(batch, encoder)
        output.loss.backward()
        trained = [*encoder.parameters(), *objective.parameters()]
        results.append([output.loss, output.features, *(p.grad for p in trained if p.grad is not None)])
    assert len(results[0]) == len(results[1]) and rows[0] < 20 * 16 / 2
    for some, all_of_them in zip(*results, strict=True):
        torch.testing.assert_close(some, all_of_them, rtol=1e-4, atol=1e-5)


# ---- what moves when -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_the_teacher_is_the_average_of_the_closed_form(name: str) -> None:
    objective, encoder, _ = make(name)
    expected = {key: p.detach().clone().double() for key, p in encoder.named_parameters()}
    start, end = objective.config.momentum
    for step in range(4):
        with torch.no_grad():
            for parameter in (*encoder.parameters(), *objective.head.parameters()):
                parameter.add_(torch.randn_like(parameter))
        objective.after_update(step, 10, encoder)
        m = cosine(step, 10, start, end)
        for key, p in encoder.named_parameters():
            expected[key] = m * expected[key] + (1 - m) * p.detach().double()
    released = objective.released(encoder)
    assert released is not encoder and not any(p.requires_grad for p in released.parameters())
    for key, p in released.named_parameters():
        assert torch.allclose(p.double(), expected[key], atol=1e-5), key


def test_prototypes_stay_still_at_first() -> None:
    objective, encoder, batch = make("dinov2", freeze_prototypes=0.3)
    for step, moves in ((0, False), (2, False), (3, True)):
        objective.step(batch, encoder).loss.backward()
        objective.before_update(step, 10, encoder)
        for head in (objective.head, objective.token_head):
            assert (head.prototypes.grad is not None) is moves
            assert all(p.grad is not None for p in head.mlp.parameters())


def test_the_teachers_temperature_warms_up() -> None:
    objective, _, batch = make(
        "dino", teacher_temperature=[0.04, 0.08], temperature_warmup=0.5, centring="centre"
    )
    logits = torch.randn(3, 64)
    for step, temperature in ((0, 0.04), (25, 0.06), (50, 0.08), (99, 0.08)):
        batch.step, batch.steps = step, 100
        assert torch.allclose(
            objective.assign(logits, batch, objective.centre), (logits / temperature).softmax(1)
        )


def test_a_step_changes_nothing_and_centres_move_after_the_update() -> None:
    objective, encoder, batch = make("dinov2", centring="centre")
    before = copy.deepcopy(objective.state_dict())
    first = objective.step(batch, encoder).loss
    assert torch.equal(objective.step(batch, encoder).loss, first)
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    objective.after_update(0, 10, encoder)
    for key in ("centre.value", "token_centre.value"):
        assert objective.state_dict()[key].abs().sum() > 0  # and it is saved


def test_gram_takes_its_snapshots_when_it_should() -> None:
    gram = {"weight": 1.0, "snapshot": 0.2, "start": 0.5, "every": 0.2}
    objective, encoder, batch = make("dinov2", momentum=[0.0, 0.0], gram=gram)
    weight = next(objective.anchor.teacher.encoder.parameters())
    mine = next(encoder.parameters())
    first, values = float(weight.detach().flatten()[0]), []
    batch.steps = 10
    for step in range(10):
        batch.step = step
        assert ("gram" in objective.step(batch, encoder).terms) is (step >= 5)
        with torch.no_grad():
            mine.fill_(float(step))
        objective.after_update(step, 10, encoder)
        values.append(float(weight.detach().flatten()[0]))
    assert values == [first, 1, 1, 1, 1, 1, 6, 6, 8, 8]  # after 2 steps of 10; then 7 and 9
    assert any(key.startswith("anchor.teacher.") for key in objective.state_dict())


def test_gram_is_nothing_for_the_weights_that_it_was_taken_of() -> None:
    gram = {"weight": 3.0, "snapshot": 0.0, "start": 0.0}
    objective, encoder, batch = make("dinov2", gram=gram, mask_ratio=[0.0, 0.07], mask_share=0.01)
    encoder.eval()
    plain = float(objective.step(batch, encoder).terms["gram"])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert plain < 1e-6 < 1e-3 < float(objective.step(batch, encoder).terms["gram"])


def test_gram_sees_the_same_place_twice_as_fine_and_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [{**c, "view": {"flip": 0.5, "noise": 1.0, "noise_sigma": 3.0}} for c in crops(large=16, small=8)]
    gram = {"weight": 1.0, "snapshot": 0.0, "start": 0.0, "scale": 2.0}
    objective, encoder, batch = make("dinov2", crops=noisy, gram=gram)
    assert objective.sizes((32, 32)) == [(16, 16), (8, 8), (32, 32)]
    x = torch.linspace(-1, 1, 32)
    batch.image = (x[:, None] + 3 * x[None]).expand(4, 1, 32, 32).contiguous()
    seen: list[Tensor] = []
    forward = objective.anchor.teacher.encoder.forward
    monkeypatch.setattr(
        objective.anchor.teacher.encoder, "forward", lambda x: (seen.append(x), forward(x))[1]
    )
    objective.step(batch, encoder)
    clean = [{**c, "view": {"flip": 0.5}} for c in crops(large=16, small=8)]
    expected = objective_views(make("dinov2", crops=clean)[0], batch).image[:8]
    assert seen[0].shape == (8, 1, 32, 32)
    assert torch.allclose(nn.functional.avg_pool2d(seen[0], 2), expected, atol=0.08)


# ---- ranks, precision, refusals --------------------------------------------------------------------------


def loss_of_a_step(image: Tensor, position: Tensor, name: str, centring: str, family: str) -> Tensor:
    """A step with fixed weights, as a function of the images."""
    encoder = small_encoder(family)
    large = image.shape[-1]
    objective = small_objective(
        name, encoder, crops=crops(encoder.ndim, large, large // 2), centring=centring, koleo_weight=0.1,
        kde_weight=0.1,
    )  # fmt: skip
    return objective.step(Batch(image=image, position=position, seed=3), encoder).loss


@pytest.mark.parametrize(
    ("name", "centring", "family", "spatial"),
    [
        ("dino", "centre", "convnet", (64, 64)),
        ("dinov2", "sinkhorn", "vit", (32, 32)),
    ],
)
def test_two_ranks_are_one_process_with_the_whole_batch(
    name: str, centring: str, family: str, spatial: tuple[int, ...]
) -> None:
    image = torch.randn(4, 1, *spatial, generator=torch.Generator().manual_seed(2))
    options = {"name": name, "centring": centring, "family": family}
    whole = one_process(loss_of_a_step, image, torch.arange(4), **options)
    halves = on_two_ranks(loss_of_a_step, image, torch.arange(4), **options)
    assert torch.allclose(halves[0], whole[0], rtol=1e-5)
    scale = float(whole[1][0].abs().max())
    assert torch.allclose(halves[1][0], whole[1][0], atol=1e-4 * scale) and scale > 0


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_bfloat16_gives_about_the_same_loss(name: str) -> None:
    objective, encoder, batch = make(name)
    exact = objective.step(batch, encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective.step(batch, encoder)
    assert rounded.loss.dtype == torch.float32
    for key in ("dino", "teacher_entropy"):
        assert float(rounded.terms[key]) == pytest.approx(float(exact.terms[key]), rel=0.05)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.name=dino"):
        make("dinov2", "convnet")
    with pytest.raises(ConfigError, match="named global have one size, these have 16×16, 32×32"):
        make("dino", crops=[{"count": 1, "size": [16, 16]}, {"count": 1, "size": [32, 32]}])
    with pytest.raises(ConfigError, match=r"named global have one visible, these have 1, 0\.5"):
        make("dino", crops=[{"count": 1}, {"count": 1, "visible": 0.5}])
    with pytest.raises(ConfigError, match="these have none"):
        make("dino", crops=[{"name": "view", "size": [16, 16]}])
    with pytest.raises(ConfigError, match="nothing to agree with"):
        make("dino", crops=[{"count": 1}])
    with pytest.raises(ConfigError, match="did you mean sinkhorn"):
        make("dino", centring="sinkhorm")
    with pytest.raises(ConfigError, match="teacher_temperature"):
        make("dino", teacher_temperature=[0.04])
    with pytest.raises(ConfigError, match="mask_share"):
        make("dinov2", mask_share=0.0)
    with pytest.raises(ConfigError, match="snapshot"):
        make("dinov2", gram={"weight": 1.0, "snapshot": 0.9, "start": 0.5})
    assert DINO.least_batch == DINOv2.least_batch == 2


def test_the_panel_shows_crops_of_each_size() -> None:
    objective, encoder, batch = make("dinov2")
    panel = objective.panel(batch, encoder)
    assert {tuple(picture.shape[2:]) for name, picture in panel.items() if name != "input"} == {
        (32, 32),
        (16, 16),
    }


def test_where_nothing_is_given_the_published_crops_are_taken() -> None:
    encoder = small_encoder("vit")
    objective = DINOv2(DINOv2.Config(prototypes=64), encoder)
    assert objective.sizes((256, 256)) == [(224, 224), (96, 96)]
    assert [(c.name, c.count) for c in objective.crops[2]] == [("global", 1), ("global", 1), ("local", 8)]


# ---- learning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "family"), [("dino", "vit"), ("dinov2", "vit"), ("dinov2", "vit3d")])
def test_32_images_are_learnt_by_heart(name: str, family: str) -> None:
    encoder = small_encoder(family)
    large, small = ([32] * 2, [16] * 2) if encoder.ndim == 2 else ([16] * 3, [8] * 3)
    each = [
        {"name": "global", "count": 2, "size": large, "scale": [0.6, 1.0], "view": {"flip": 0.0}},
        {"name": "local", "count": 2, "size": small, "scale": [0.3, 0.6], "view": {"flip": 0.0}},
    ]
    objective = small_objective(
        name, encoder, crops=each, prototypes=16, momentum=[0.9, 1.0], teacher_temperature=[0.04, 0.04],
        koleo_weight=0.1, freeze_prototypes=0.0,
    )  # fmt: skip
    entropies: list[list[float]] = []
    step = objective.step

    def watched(batch: Batch, encoder: Encoder) -> Output:
        output = step(batch, encoder)
        entropies.append([float(output.terms[key]) for key in ("teacher_entropy", "marginal_entropy")])
        return output

    objective.step = watched  # type: ignore[method-assign]
    first, last, _ = overfit(objective, encoder, large, steps=60, lr=2e-3)
    assert last < 0.7 * first
    teacher, marginal = entropies[-1]
    assert teacher < 0.9 < marginal  # the targets tell the images apart and use all prototypes
