"""What `medloom plan` counts, against formulas, torch's own allocator and real checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.stream.config import StreamConfig
from medloom.pretrain.config import load_config
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.plan.count import Line, _batch, _step, count
from medloom.pretrain.plan.demand import checkpoint_bytes
from medloom.pretrain.plan.halves import Halves, backward
from medloom.pretrain.plan.live import LiveBytes
from medloom.pretrain.speed import Operations
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .small import loaded_size, small_encoder, small_objective


def test_vit_large_is_six_n_d_and_its_attention() -> None:
    """6 N D of a training step (arXiv 2001.08361), N without embeddings, and 12 L T² E of attention."""
    with torch.device("meta"):
        encoder = build_encoder(
            {"name": "vit", "model": "vit_large_patch16_224", "img_size": 224, "in_channels": 3}
        )
    tokens, depth, width = 197, 24, 1024
    numbers = sum(p.numel() for layer in encoder.layer_groups()[1:-1] for _, p in layer)
    assert numbers == pytest.approx(12 * depth * width**2, rel=0.01)
    formula = 6 * numbers * tokens + 12 * depth * tokens**2 * width
    with Operations() as counted:
        backward(encoder(torch.zeros(1, 3, 224, 224, device="meta")).tokens.sum())
    assert counted.count == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize("name", ["tiny-mae-2d", "tiny-dinov2-2d", "tiny-ijepa-3d", "tiny-voco-3d"])
def test_a_sample_costs_the_same_in_any_batch(name: str) -> None:
    config = load_config(name)
    (cost,) = count(config, precision="32-true")
    (half,) = count(config, precision="bf16-mixed")
    assert cost.trained > cost.encoder * 0.9 and half.trained == cost.trained
    assert cost.operations.sample > 6 * 0.2 * cost.encoder, "at least some tokens a sample"
    assert half.operations == cost.operations, "precision changes no number of operations"
    assert 0.4 < half.activations.sample / cost.activations.sample < 1
    assert cost.copies == 0 < half.copies <= 2 * (half.trained + half.frozen)


def test_the_classes_of_a_run_are_counted_and_a_plan_stands_in_for_none() -> None:
    config = load_config("tiny-supervised-2d")
    (guess,) = count(config, precision="32-true")
    config.objective["classes"] = {"derm": [f"class {n}" for n in range(1000)]}
    (known,) = count(config, precision="32-true")
    assert known.trained - guess.trained > 900
    assert config.objective["classes"]["derm"][-1] == "class 999"


def allocated(run: Callable[[], object]) -> int:
    """Peak bytes that torch's CPU allocator gave out while `run` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("family", "objective", "ndim", "workspaces"),
    [
        ("vit", "mae", 2, 0.0),
        ("vit", "dinov2", 2, 0.0),
        ("vit3d", "ijepa", 3, 0.02),  # its peak is within an attention, which takes one too
        ("swin3d", "voco", 3, 0.0),
        ("resenc", "genesis", 3, 0.06),  # convolutions take workspaces
    ],
)
def test_the_memory_of_a_step_is_what_the_allocator_gives(
    family: str, objective: str, ndim: int, workspaces: float
) -> None:
    encoder = small_encoder(family)
    method, size = small_objective(objective, encoder), loaded_size(encoder, ndim)
    part = StreamConfig(ndim=ndim, crop=list(size), channels=1, batch_size=8)
    batch = _batch(part, 1, 8, "cpu")
    batch.image.normal_(generator=torch.Generator().manual_seed(0))
    for parameter in [*encoder.parameters(), *method.parameters()]:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> None:
        method.step(batch, encoder).loss.backward()

    for _ in range(2):  # what is made once and kept
        step()
    gc.collect()
    real = allocated(step)
    encoder.to("meta")
    method.to("meta")
    counted = _step(part, encoder, method, 8, None)[1] - batch.image.nbytes
    assert counted == pytest.approx(real, rel=0.005 + workspaces)
    assert counted <= real * 1.005, "kernels may take more than tensors do, never less"


def test_live_bytes_follow_births_deaths_and_views() -> None:
    with LiveBytes("cpu") as live:
        x = torch.ones(1000)
        y = x.view(10, 100)[1:]
        assert live.now == 4000
        z = y * 2
        assert live.now == live.peak == 4000 + 3600
        del x, y
        assert live.now == 3600, "a view keeps the whole storage, and now both are gone"
        assert live.peak == 7600 and float(z.sum()) == 1800


def test_halves_do_what_autocast_does() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(3, 8)
    with Halves(torch.bfloat16) as halves:
        ours = network(x)
        assert torch.softmax(ours, -1).dtype is torch.float32
        with torch.autocast("cpu", enabled=False):
            assert network[0](x).dtype is torch.float32
    assert halves.copies == 2 * sum(p.numel() for p in (*network[0].parameters(), *network[3].parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = network(x)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    assert torch.allclose(ours.float(), theirs.float(), atol=0.03)
    assert network(x).dtype is torch.float32 and torch.autocast.__module__.startswith("torch"), (
        "all is as before"
    )


def test_a_line_through_two_points() -> None:
    line = Line.through((2, 4), (10.0, 16.0))
    assert (line.fixed, line.sample, line.at(10)) == (4.0, 3.0, 34.0)
    assert Line.through((2, 4), (10.0, 9.0)) == Line(10.0, 0.0)


@pytest.mark.parametrize("objective", ["mae", "ijepa"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_the_size_of_a_checkpoint_is_known_to_a_hundredth(
    tiny_config: Callable[..., Any], tmp_path: Path, objective: str, optimiser: str
) -> None:
    from medloom.pretrain.run import pretrain

    wider = ("encoder.embed_dim=96", "trainer.steps=2", "probe.every_steps=0")
    config = tiny_config(tmp_path / "run", f"optim.name={optimiser}", *wider)
    if objective == "ijepa":
        config.objective = {"name": "ijepa", "predictor_dim": 24, "predictor_depth": 1, "predictor_heads": 2}
    run = pretrain(config)
    (cost,) = count(config, precision="32-true")
    guess = checkpoint_bytes([cost], moments=1 if optimiser == "sgd" else 2)
    assert guess == pytest.approx((run / "last.ckpt").stat().st_size, rel=0.01)
    saved = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert cost.tensors == len(saved)
    assert cost.trained + cost.frozen + cost.saved / 4 == sum(x.numel() for x in saved.values())
