"""The model of `medloom plan`: rings, strategies, memory, micro-batches, calibration by measured runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import read_yaml
from medloom.data.errors import ConfigError
from medloom.pretrain.config import load_config
from medloom.pretrain.monitor.beat import Beat, write_beat
from medloom.pretrain.plan.count import Cost, Line
from medloom.pretrain.plan.demand import open_samples
from medloom.pretrain.plan.devices import TABLE, Device, load_device
from medloom.pretrain.plan.measured import read_measured
from medloom.pretrain.plan.model import Layout, Pace, memory, ring, times
from medloom.pretrain.plan.plan import as_json, make_plan

DEVICE = Device(
    name="d", bf16_tflops=100, fp32_tflops=10, memory_gb=10, memory_gb_s=1000, watts=500, link_gb_s=100,
    network_gb_s=10, link_us=0.0, network_us=0.0, efficiency=0.5, overlap=1.0, host_gb_s=20,
)  # fmt: skip
COST = Cost(
    trained=250_000_000, frozen=50_000_000, encoder=200_000_000, buffers=1000, saved=1000, tensors=10,
    trained_tensors=8, unit=20_000_000, units=10, in_units=240_000_000, operations=Line(0.0, 1e11),
    activations=Line(1e9, 1e8), copies=500_000_000,
)  # fmt: skip
RECIPE = "tiny-mae-2d"


def layout(**changes: Any) -> Layout:
    return Layout(**{"ranks": 8, "per_node": 8, "strategy": "ddp", "micro": 10, "accumulate": 1, **changes})


def test_a_ring_moves_twice_the_bytes_but_for_one_share() -> None:
    one = ring(1e9, 8, 8, DEVICE, passes=2)
    assert one == pytest.approx(2 * 7 / 8 * 1e9 / (100e9 * 0.5))
    assert ring(1e9, 8, 8, DEVICE, passes=1) == pytest.approx(one / 2)
    assert ring(1e9, 1, 8, DEVICE, passes=2) == 0
    # Between nodes: all cards of a node together, 8 × 10 GB/s, are slower than the 100 GB/s inside.
    assert ring(1e9, 16, 8, DEVICE, passes=2) == pytest.approx(2 * 15 / 16 * 1e9 / (80e9 * 0.5))
    slow = replace(DEVICE, link_us=2.0, network_us=10.0)
    gap = ring(1e9, 32, 8, slow, passes=2, messages=3) - ring(1e9, 32, 8, DEVICE, passes=2)
    assert gap == pytest.approx(3 * 2 * (7 * 2e-6 + 2 * 10e-6))


def test_exchanges_hide_behind_the_backward_pass() -> None:
    pace = Pace(rate=1e13)
    found = times(COST, layout(), DEVICE, pace, half_gather=False)
    assert found.compute == pytest.approx(0.1)
    assert found.communication == pytest.approx(2 * 7 / 8 * 1e9 / 50e9)
    assert found.exposed == pytest.approx(2 * 7 / 8 * 25 * 2**20 / 50e9), "the last bucket alone"
    blind = times(COST, layout(), replace(DEVICE, overlap=0.0), pace, half_gather=False)
    assert blind.exposed == blind.communication
    assert times(COST, layout(ranks=1), DEVICE, pace, half_gather=False).exposed == 0
    split = times(COST, layout(accumulate=4), DEVICE, pace, half_gather=False)
    assert split.compute == pytest.approx(0.4) and split.communication == found.communication
    assert found.optimiser == pytest.approx((40 * 250e6 + 12 * 50e6) / 1e12)


def test_sharding_divides_what_is_kept_and_sends_half_as_much_again() -> None:
    whole, split = (memory(COST, layout(strategy=s), half_gather=False) for s in ("ddp", "fsdp2"))
    assert whole["weights"] == whole["gradients"] == 1e9 and whole["optimiser"] == 2e9
    assert whole["teacher"] == 2e8 and whole["activations"] == 2e9
    for part in ("weights", "gradients", "optimiser", "teacher"):
        assert split[part] == whole[part] / 8
    assert split["gathered"] == 4 * (300e6 - 240e6 + 3 * 20e6)
    half = memory(COST, layout(strategy="fsdp2"), half_gather=True)
    assert half["activations"] == split["activations"] - 5e8
    still = replace(COST, frozen=0)
    ddp, fsdp = (
        times(still, layout(strategy=s), DEVICE, Pace(rate=1e13), half_gather=False) for s in ("ddp", "fsdp2")
    )
    assert fsdp.communication == pytest.approx(1.5 * ddp.communication)
    assert fsdp.optimiser == pytest.approx(ddp.optimiser / 8)
    copies = layout(strategy="fsdp2", ranks=32, shard=8)
    assert memory(COST, copies, half_gather=False)["weights"] == 1e9 / 8
    assert times(still, copies, DEVICE, Pace(rate=1e13), half_gather=False).communication > fsdp.communication
    few = layout(strategy="fsdp2", ranks=2, shard=8)
    assert few.parts == 2 and memory(COST, few, half_gather=False)["weights"] == 1e9 / 2
    assert memory(COST, layout(), moments=1, half_gather=False)["optimiser"] == 1e9


def test_every_line_is_the_same_run() -> None:
    config = load_config(RECIPE, ["data.batch_size=256", "trainer.steps=1000"])
    plan = make_plan(config, DEVICE, nodes=2, per_node=8, precision="bf16-mixed", price=2.0)
    assert [line.ranks for line in plan.lines] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert plan.skipped == ["512: the batch of 256 does not divide"]
    for line in plan.lines:
        assert line.ranks * line.micro * line.accumulate == 256
        assert line.samples_per_s == pytest.approx(256 / line.times.step)
        assert line.hours == pytest.approx(1000 * line.times.step / 3600)
        assert line.kwh == pytest.approx(line.hours * line.ranks * 0.5 * 1.3)
        assert line.cost == pytest.approx(2 * line.hours * line.ranks)
        assert line.fits == (sum(line.memory.values()) <= 0.9 * 10e9)
    assert plan.lines[0].efficiency == 1
    pace = plan.assumptions.pace
    assert pace.rate == 0.35 * 100e12
    (line, *_), operations = plan.lines, plan.costs[0].operations
    expected = line.accumulate * operations.at(line.micro) / pace.rate
    assert line.times.compute == pytest.approx(expected)
    assert json.loads(json.dumps(as_json(plan)))["lines"][3]["ranks"] == 8
    with pytest.raises(ConfigError, match="3 nodes x 8 devices: the batch of 256 does not divide"):
        make_plan(config, DEVICE, nodes=3, per_node=8, precision="bf16-mixed")


def test_what_a_run_would_refuse_is_left_out() -> None:
    options = ["data.batch_size=96", "trainer.strategy=fsdp2", "trainer.shard_size=6"]
    plan = make_plan(load_config(RECIPE, options), DEVICE, nodes=2, per_node=6, precision="32-true")
    assert [line.ranks for line in plan.lines] == [1, 2, 4, 12]
    assert "8: trainer.shard_size 6 does not divide" in plan.skipped
    weights = [line.memory["weights"] for line in plan.lines]
    assert weights == [4 * plan.costs[0].trained / parts for parts in (1, 2, 4, 6)]
    with pytest.raises(ConfigError, match="shard_size 6 does not divide"):
        make_plan(load_config(RECIPE, options), DEVICE, nodes=1, per_node=8, precision="32-true")


def test_micro_batches_are_not_below_what_the_objective_needs() -> None:
    config = load_config("tiny-simclr-2d", ["data.batch_size=8"])
    tight = replace(DEVICE, memory_gb=0.001)
    plan = make_plan(config, tight, nodes=1, per_node=4, precision="32-true")
    assert [(line.ranks, line.accumulate, line.micro) for line in plan.lines] == [
        (1, 4, 2), (2, 2, 2), (4, 1, 2),
    ]  # fmt: skip
    assert plan.skipped[0] == "8: 1 samples a device are fewer than the 2 that the objective needs"


def test_a_small_memory_takes_more_micro_batches() -> None:
    config = load_config(RECIPE, ["data.batch_size=256"])
    large = make_plan(config, DEVICE, nodes=1, per_node=8, precision="32-true").lines[0]
    assert large.accumulate == 1
    tight = replace(DEVICE, memory_gb=sum(large.memory.values()) / 0.9 / 1e9 * 0.6)
    line = make_plan(config, tight, nodes=1, per_node=8, precision="32-true").lines[0]
    assert line.fits and line.accumulate > 1
    none = make_plan(config, replace(DEVICE, memory_gb=0.001), nodes=1, per_node=8, precision="32-true").lines
    assert not none[0].fits and none[0].micro == 1


def measured_run(folder: Path, *, batch: int, ranks: int, seconds: float, **more: str) -> Path:
    """A folder as a run leaves it, whose steps took so long beside a tenth for data."""
    from medloom.data.config import to_yaml

    config = load_config(RECIPE, [f"data.batch_size={batch}", *(f"{k}={v}" for k, v in more.items())])
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "env.json").write_text('{"devices": ["cpu, 1 threads"]}')
    whole = seconds / 0.9
    rows = [
        {"step": n, "samples": n * batch, "time": n * whole, "loss": 1.0, "data_wait": 0.1,
         "samples_per_s": batch / (whole if n > 2 else 10 * whole)}
        for n in range(1, 9)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_beat(folder, Beat(state="finished", ranks=ranks, steps=8))
    stored = {"step": 8, "bytes": 10**9, "seconds": 0.5, "sha256": "0"}
    (folder / "checkpoints.json").write_text(json.dumps([stored]))
    return folder


def test_measured_runs_give_the_pace_and_are_compared(tmp_path: Path) -> None:
    free = replace(DEVICE, memory_gb_s=1e9, overlap=0.0)  # no time for the optimiser, nothing hides
    config = load_config(RECIPE, ["data.batch_size=64"])
    operations = make_plan(config, free, nodes=1, per_node=8, precision="32-true").costs[0].operations
    fixed, rate = 0.02, 2e11
    truth = {batch: fixed + operations.at(batch) / rate for batch in (16, 32, 64)}
    small = measured_run(tmp_path / "small", batch=16, ranks=1, seconds=truth[16])
    large = measured_run(tmp_path / "large", batch=64, ranks=1, seconds=truth[64])
    exchange = ring(
        4.0 * make_plan(config, free, nodes=1, per_node=8, precision="32-true").costs[0].trained, 2, 8, free,
        passes=2,
    )  # fmt: skip
    pair = measured_run(tmp_path / "pair", batch=64, ranks=2, seconds=1.1 * (truth[32] + exchange))
    runs = [read_measured(folder) for folder in (small, large, pair)]
    assert [run.ranks for run in runs] == [1, 1, 2] and runs[0].precision == "32-true"
    assert runs[0].working == pytest.approx(truth[16]) and runs[0].store_gb_s == 2.0
    plan = make_plan(config, free, nodes=1, per_node=8, precision="32-true", measured=runs)
    assert plan.assumptions.pace.rate == pytest.approx(rate, rel=1e-6)
    assert plan.assumptions.pace.fixed == pytest.approx(fixed, rel=1e-6)
    assert plan.assumptions.store_gb_s == 2.0 and plan.assumptions.store_from == "measured"
    assert [check.fitted for check in plan.checks] == [True, True, False]
    assert [check.error for check in plan.checks] == pytest.approx([0, 0, 1 / 1.1 - 1], abs=1e-6)
    alone = make_plan(config, free, nodes=1, per_node=8, precision="32-true", measured=runs[1:2])
    assert alone.assumptions.pace.fixed == 0
    assert alone.lines[0].times.compute == pytest.approx(truth[64])


def test_a_pace_can_be_taken_from_several_ranks(tmp_path: Path) -> None:
    config = load_config(RECIPE, ["data.batch_size=64"])
    run = read_measured(measured_run(tmp_path / "pair", batch=64, ranks=2, seconds=0.5))
    plan = make_plan(config, DEVICE, nodes=1, per_node=8, precision="32-true", measured=[run])
    assert plan.checks[0].error == pytest.approx(0, abs=1e-4)


def test_runs_that_say_too_little_are_refused(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run", batch=16, ranks=1, seconds=1.0)
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(rows[:2]) + "\n")
    with pytest.raises(ConfigError, match="train more"):
        read_measured(run)
    (run / "heartbeat.json").unlink()
    with pytest.raises(ConfigError, match="how many ranks"):
        read_measured(run)


def test_the_loader_is_asked_for_what_the_mix_needs(tiny_shards: Path) -> None:
    config = load_config(RECIPE, [f"data.shards={tiny_shards}", "data.crop=[16, 16]", "data.batch_size=32",
                                  "encoder.img_size=16", "encoder.patch_size=8"])  # fmt: skip
    opened = open_samples(config)
    assert opened is not None
    stream, samples = opened
    sources = [source for source in stream.sources if source.ndim == 2]
    assert samples.count == sum(source.count for source in sources) == 48
    assert samples.bytes == sum(source.bytes for source in sources)
    means = [source.bytes / source.count for source in sources]
    assert min(means) < samples.sample_bytes < max(means)
    assert samples.sample_bytes == pytest.approx(sum(means) / 2, rel=0.01), "two sources of one size"
    assert samples.crop_ms is not None and samples.crop_ms > 0
    plan = make_plan(config, DEVICE, nodes=1, per_node=2, precision="32-true", samples=samples)
    for line in plan.lines:
        assert line.node_samples_per_s == pytest.approx(line.samples_per_s / line.nodes)
        assert line.node_mb_per_s == pytest.approx(line.node_samples_per_s * samples.sample_bytes / 1e6)
        assert line.node_shards_per_s == pytest.approx(line.node_samples_per_s / samples.shard_samples)
        assert line.cores == pytest.approx(line.samples_per_s / line.ranks * samples.crop_ms / 1000)
    assert open_samples(load_config(RECIPE)) is None
    assert open_samples(load_config(RECIPE, ["data.shards=/nowhere"])) is None


def test_links_between_pairs_reach_less_than_a_switch() -> None:
    assert load_device("mi300x").efficiency < load_device("h100").efficiency


def test_the_table_of_devices_names_its_sources(tmp_path: Path) -> None:
    for name in read_yaml(TABLE)["devices"]:
        device = load_device(name)
        assert device.source and device.peak("bf16-mixed") > device.peak("32-true") > 1e12
        assert math.isfinite(device.bytes)
    with pytest.raises(ConfigError, match="did you mean h100"):
        load_device("h10")
    own = tmp_path / "own.yaml"
    own.write_text("{fp32_tflops: 0.1, memory_gb: 8, memory_gb_s: 10, link_gb_s: 1, network_gb_s: 1}")
    assert load_device(str(own)).name == "own"
    with pytest.raises(ConfigError, match="no peak for bf16-mixed"):
        make_plan(load_config(RECIPE), load_device(str(own)), nodes=1, per_node=1, precision="bf16-mixed")
    own.write_text("{memory_gb: 8}")
    with pytest.raises(ConfigError, match="memory_gb_s, link_gb_s, network_gb_s"):
        load_device(str(own))


def test_an_encoder_that_init_from_decides_must_be_named() -> None:
    with pytest.raises(ConfigError, match="left to init_from"):
        config = load_config(RECIPE)
        config.encoder = {}
        make_plan(config, DEVICE, nodes=1, per_node=1, precision="32-true")
