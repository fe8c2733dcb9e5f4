"""finetune/protocols: every protocol on every kind, in 2D and 3D; restarts; what each trains and keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.config import PROTOCOLS as NAMES
from medloom.finetune.config import FinetuneConfig
from medloom.finetune.probes import Attentive, LinearProbe, Neighbours
from medloom.finetune.protocols import PROTOCOLS
from medloom.finetune.protocols.average import Average
from medloom.finetune.protocols.gradient import groups
from medloom.finetune.protocols.linear import Grid
from medloom.finetune.protocols.lora import inject, merge
from medloom.finetune.protocols.phases import freeze_steps, head_alone, sawtooth, together, unfreeze
from medloom.pretrain.encoders import Encoder, build_encoder
from torch import nn

STEPPED = ("full", "sawtooth", "unfreeze", "lora")
PROBES = ("linear", "attentive", "logistic", "knn")
TINY_VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "depth": 5,
            "embed_dim": 24, "num_heads": 2}  # fmt: skip
ATTENTION: dict[str, dict[str, Any]] = {
    "vit": TINY_VIT,
    "eva": {**TINY_VIT, "model": "eva02_tiny_patch14_224"},
    "vit3d": {"name": "vit3d", "depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": [8, 8, 8],
              "positions": "both"},
    "swin": {"name": "swin", "model": "swin_tiny_patch4_window7_224", "img_size": 32,
             "kwargs": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}},
    "swin3d": {"name": "swin3d", "feature_size": 12, "depths": [1, 1], "num_heads": [1, 2],
               "window": [4, 4, 4]},
    "primus": {"name": "primus", "embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": [16, 16, 16]},
}  # fmt: skip


def built(section: dict[str, Any], seed: int = 3) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(section).eval()


def facts_of(arm: Path) -> dict[str, Any]:
    return json.loads((arm / "arm.json").read_text())


def config_of(**changes: Any) -> FinetuneConfig:
    config = FinetuneConfig.__new__(FinetuneConfig)
    plain = FinetuneConfig(task=None, encoder="none")  # type: ignore[arg-type]
    config.__dict__.update(plain.__dict__ | changes)
    return config


def test_the_names_of_the_configuration_are_those_of_the_protocols() -> None:
    assert tuple(PROTOCOLS) == NAMES


# Phases


@pytest.mark.parametrize("decay", ["cosine", "poly", "constant"])
def test_the_sawtooth_has_two_teeth_and_the_encoder_only_the_second(decay: str) -> None:
    config = config_of(steps=100)
    config.optim.decay, config.optim.freeze_fraction, config.optim.warmup_fraction = decay, 0.2, 0.1
    shares = [sawtooth(step, config) for step in range(100)]
    encoder, head = np.array(shares).T
    assert not encoder[:20].any()
    assert (encoder[20:] == head[20:]).all()
    assert head[9] == head[29] == 1.0  # both ramps reach the peak
    assert head[20] == pytest.approx(0.1)  # the second starts low again
    assert (encoder[20:] > 0).all()
    if decay != "constant":
        assert head[19] < 0.3
        assert head[99] < 0.05


def test_unfreezing_leaves_the_head_alone_and_freezes_a_part_of_the_steps() -> None:
    config = config_of(steps=50)
    config.optim.freeze_fraction = 0.3
    encoder, head = np.array([unfreeze(step, config) for step in range(50)]).T
    assert (encoder > 0).argmax() == freeze_steps(config) == 15
    assert head.tolist() == [together(step, config)[1] for step in range(50)]
    assert not any(head_alone(step, config)[0] for step in range(50))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("phases", [together, head_alone, unfreeze, sawtooth])
def test_the_shortest_runs_have_a_schedule(phases: Any, steps: int) -> None:
    config = config_of(steps=steps)
    config.optim.freeze_fraction = 0.9
    for step in range(steps):
        shares = phases(step, config)
        assert all(0 <= share <= 1 for share in shares)
        assert shares[1] > 0


# The average


def test_the_average_is_the_sum_that_its_definition_gives() -> None:
    network = nn.Linear(3, 2)
    average = Average(network, decay=0.5)
    expected = network.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            network.weight.add_(step + 1.0)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    last = network.weight.detach().clone()
    with average.inside(network):
        torch.testing.assert_close(network.weight.detach(), expected)
    assert torch.equal(network.weight.detach(), last)
    other = Average(network, decay=0.5)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.weights[0], average.weights[0])


# Adapters


@pytest.mark.parametrize("name", ATTENTION)
def test_adapters_learn_and_merging_changes_nothing(name: str) -> None:
    if name == "primus":
        pytest.importorskip("dynamic_network_architectures")
    pytest.importorskip("peft")
    encoder = built(ATTENTION[name])
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    size = [2 * side for side in encoder.patch_size]
    image = torch.randn(2, encoder.in_channels, *size, generator=torch.Generator().manual_seed(0))
    plain = encoder(image).tokens
    adapters = inject(encoder, config_of())
    torch.testing.assert_close(encoder(image).tokens, plain)  # they add nothing at first
    assert [n for n, p in encoder.named_parameters() if p.requires_grad] == list(adapters)
    with torch.no_grad():
        for key, parameter in adapters.items():
            if "lora_B" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    changed = encoder(image).tokens
    assert not torch.allclose(changed, plain, atol=1e-3)
    pooled = encoder.embed(image)
    changed.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    merge(encoder)
    torch.testing.assert_close(encoder(image).tokens, changed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.embed(image), pooled, rtol=1e-4, atol=1e-4)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved and all(".attn." in key and key.endswith("weight") for key in moved)


def test_adapters_need_attention() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="no attention to adapt"):
        inject(built({"name": "convnet", "model": "resnet10t"}), config_of())


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'medloom\[lora\]'"):
        inject(built(TINY_VIT), config_of())


def test_rates_fall_with_depth_and_what_was_added_has_the_head_s(task_of: Any, pictures: Path) -> None:
    pytest.importorskip("peft")
    task = task_of(pictures, "protocol=full", "batch_size=2")
    network = PROTOCOLS["full"].network(task, built(TINY_VIT))
    found = groups(network, task.config, pretrained=True)
    peaks = [g["peak"] for g in found if g["encoder"]]
    assert min(peaks) == pytest.approx(2e-4 * 0.75**7)  # the patch embedding, below five blocks and a norm
    assert max(peaks) == pytest.approx(2e-4 * 0.75)
    assert {g["peak"] for g in found if not g["encoder"]} == {1e-3}
    assert len({id(p) for g in found for p in g["params"]}) == len(list(network.parameters()))
    alike = groups(network, task.config, pretrained=False)
    assert {g["peak"] for g in alike if g["encoder"]} == {5e-4}
    encoder = network.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    adapters = inject(encoder, task.config)
    found = groups(network, task.config, pretrained=True, added=list(adapters.values()))
    assert {g["peak"] for g in found} == {1e-3}
    assert sum(len(g["params"]) for g in found if g["encoder"]) == len(adapters)


# Probes


def test_votes_are_those_of_the_nearest_by_hand() -> None:
    network = Neighbours(built(TINY_VIT))
    bank = torch.randn(30, 48, generator=torch.Generator().manual_seed(0))
    ballots = torch.eye(3)[torch.arange(30) % 3]
    network.fill(bank, ballots, temperature=0.1)
    network.k.fill_(4)
    query = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    for row, found in zip(query.numpy(), network.answer(query).numpy(), strict=True):
        cosine = bank.numpy() @ row / np.linalg.norm(bank.numpy(), axis=1) / np.linalg.norm(row)
        nearest = np.argsort(-cosine)[:4]
        weight = np.exp(cosine[nearest] / 0.1)
        expected = (weight[:, None] * ballots.numpy()[nearest]).sum(axis=0) / weight.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    other = Neighbours(network.encoder)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.answer(query), network.answer(query))


@pytest.mark.parametrize("section", [TINY_VIT, {"name": "convnet", "model": "resnet10t"}])
def test_the_linear_probe_reads_what_its_name_says(section: dict[str, Any]) -> None:
    network = LinearProbe(built(section), 3)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = network.described(image)
    output = network.encoder(image)
    width = network.encoder.embed_dim
    assert rows.shape == (2, sum(network.widths))
    torch.testing.assert_close(rows[:, -width:], output.tokens.mean(dim=1))
    torch.testing.assert_close(rows[:, -2 * width : -width], output.pooled)
    read = {key: int(columns.sum()) for key, columns in network.readings().items()}
    assert read == {(1, False): width, (1, True): 2 * width, (4, False): len(rows[0]) - width,
                    (4, True): len(rows[0])}  # fmt: skip


def test_the_chosen_head_is_the_one_of_the_grid() -> None:
    network = LinearProbe(built(TINY_VIT), 3)
    rows = torch.randn(6, sum(network.widths), generator=torch.Generator().manual_seed(0))
    network.mean.copy_(torch.linspace(-1, 1, len(network.mean)))
    network.std.copy_(torch.linspace(0.5, 2, len(network.std)))
    grid = Grid(network, [0.1, 0.2])
    with torch.no_grad():
        for parameter in grid.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    outputs = grid(rows)
    assert outputs.shape == (8, 6, 3)
    for index in range(8):
        with torch.no_grad():
            for name, tensor in grid.head(index).items():
                network.get_parameter(name).copy_(tensor)
        torch.testing.assert_close(network.answer(rows), outputs[index], rtol=1e-4, atol=1e-4)
    assert grid.described(5) == {"rate": 0.2, "blocks": 1, "mean_token": True}


def test_each_head_of_the_grid_takes_the_steps_that_it_would_take_alone() -> None:
    network = LinearProbe(built(TINY_VIT), 3)
    rows = torch.randn(32, sum(network.widths), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 3
    rates = [0.01, 0.3]
    grid = Grid(network, rates)
    optimiser = grid.optimiser(256)
    for share in (1.0, 0.7, 0.2):
        optimiser.param_groups[0]["lr"] = share
        outputs = grid(rows)
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(outputs)))
        optimiser.zero_grad()
        (loss * len(outputs)).backward()
        optimiser.step()
    reading = network.readings()[4, True] > 0
    for index, rate in enumerate(rates):
        alone = nn.Linear(int(reading.sum()), 3)
        nn.init.zeros_(alone.weight)
        nn.init.zeros_(alone.bias)
        single = torch.optim.SGD(alone.parameters(), lr=0.0, momentum=0.9)
        for share in (1.0, 0.7, 0.2):
            single.param_groups[0]["lr"] = rate * share
            single.zero_grad()
            nn.functional.cross_entropy(alone(rows), labels).backward()
            single.step()
        torch.testing.assert_close(grid(rows)[4 * index + 3], alone(rows), rtol=1e-4, atol=1e-5)


def test_attention_finds_the_one_token_that_a_mean_hides() -> None:
    """One of 64 tokens carries the class; its mean is drowned by the noise of the others."""
    generator = torch.Generator().manual_seed(0)
    network = Attentive(built(TINY_VIT), 2, heads=8)
    assert network.pool.num_heads == 8
    rows = torch.randn(256, 65, 24, generator=generator)
    labels = torch.arange(256) % 2
    places = torch.randint(1, 65, (256,), generator=generator)
    rows[torch.arange(256), places, 0] = 12.0  # what marks the token
    rows[torch.arange(256), places, 1] = torch.where(labels == 1, 4.0, -4.0)
    optimiser = torch.optim.AdamW((p for n, p in network.named_parameters() if "encoder" not in n), lr=3e-3)
    for _ in range(80):
        loss = nn.functional.cross_entropy(network.answer(rows[:192]), labels[:192])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = network.answer(rows[192:]).argmax(dim=1) == labels[192:]
    assert right.float().mean() > 0.9
