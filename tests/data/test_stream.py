"""The stream: pixels depend on (seed, position) alone; damage is replaced; batches are equal and typed."""

import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError, ShardError
from medloom.data.ingest.preprocess import describe
from medloom.data.loader.loader import loader
from medloom.data.sample import MODALITIES, Modality, Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.reader import Shards
from medloom.data.shards.writer import ShardWriter
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.stream import Stream
from medloom.pretrain.views import to_float
from PIL import Image as Pillow


def sample(key: str, image: np.ndarray, modality: str, spacing=None, jpeg: bytes | None = None) -> Sample:
    meta = dict.fromkeys(META_KEYS) | {
        "format": FORMAT_VERSION, "key": key, "dataset": key.rsplit("-", 1)[0], "modality": modality,
        "organ": "other", "licence": "CC0-1.0", "ndim": image.ndim - 1, "shape": list(image.shape),
        "dtype": image.dtype.name, "labels": {}, "facts": {}, "spacing": spacing,
        "stats": describe(image, modality),
    }  # fmt: skip
    return Sample(key=key, image=image, jpeg=jpeg, meta=meta)


def jpeg_sample(key: str, rng: np.random.Generator, grey: bool = False) -> Sample:
    pixels = (
        rng.integers(0, 255, (40, 50, 1 if grey else 3)).repeat(3 if grey else 1, axis=2).astype(np.uint8)
    )
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG", quality=95)
    decoded = np.asarray(Pillow.open(io.BytesIO(buffer.getvalue()))).transpose(2, 0, 1)
    return sample(key, np.ascontiguousarray(decoded), "photography", jpeg=buffer.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three 2D and two 3D sources, several shards each."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("shards")

    def grey(key):
        return sample(key, rng.integers(0, 60000, (1, 60, 70)).astype(np.uint16), "x-ray", (0.5, 0.5))

    def ct(key):
        return sample(key, rng.integers(-1000, 1000, (1, 40, 72, 80)).astype(np.int16), "ct", (2.0, 1.0, 1.0))

    def mr(key):
        image = (
            rng.integers(0, 900, (4, 12, 30, 34)).astype(np.uint16)
            + np.arange(4, dtype=np.uint16).reshape(4, 1, 1, 1) * 1000
        )
        return sample(key, image, "mri", (4.0, 1.0, 1.0))

    recipe = {
        "photo-2d": ([7, 6], lambda key: jpeg_sample(key, rng)),
        "vol-3d": ([3, 2], ct),
        "xray-2d": ([9, 4, 5], grey),
        "film-2d": ([5], lambda key: jpeg_sample(key, rng, grey=True)),
        "brain-3d": ([2], mr),
    }
    sources = []
    for source_id, (counts, make) in recipe.items():
        entries, number = [], 0
        for shard, count in enumerate(counts):
            with ShardWriter(path / f"{source_id}-{shard:05d}.tar") as writer:
                for _ in range(count):
                    writer.add(make(f"{source_id[:-3]}-{number:04d}"))
                    number += 1
            entries.append(writer.entry)
        sources.append(
            SourceEntry(
                id=source_id, dataset=source_id[:-3], ndim=int(source_id[-2]), count=number, licence="x",
                shards=tuple(entries),
            )
        )  # fmt: skip
    Manifest(name="test", sources=tuple(sources)).save(path)
    return path


def flat(folder, **kwargs) -> StreamConfig:
    return StreamConfig(**{"shards": str(folder), "crop": [24, 20], "batch_size": 12, "workers": 0, **kwargs})


def deep(folder, **kwargs) -> StreamConfig:
    return flat(folder, **{"ndim": 3, "crop": [16, 24, 24], **kwargs})


CONFIGS = pytest.mark.parametrize("make", [flat, deep], ids=["2d", "3d"])


def run(config: StreamConfig, *, world=1, start=0, steps=3, accumulate=1, context=None) -> list[dict]:
    """All samples of the steps, by rank and micro-batch, in global order."""
    samples = {}
    for rank in range(world):
        stream = Stream(config)
        for batch in loader(
            stream,
            rank=rank,
            world=world,
            start_step=start,
            steps=steps,
            accumulate=accumulate,
            context=context,
        ):
            x = to_float(batch, config.in_channels)
            for i, position in enumerate(batch["position"].tolist()):
                assert position not in samples
                samples[position] = (batch["key"][i], x[i])
    return [samples[position] for position in sorted(samples)]


def same(a, b) -> bool:
    return len(a) == len(b) and all(k == m and torch.equal(x, y) for (k, x), (m, y) in zip(a, b, strict=True))


@CONFIGS
def test_pixels_do_not_depend_on_ranks_restarts_or_micro_batches(folder, make):
    whole = run(make(folder))
    assert len(whole) == 36
    for world, accumulate in ((2, 1), (3, 2), (12, 1), (1, 4)):
        assert same(run(make(folder), world=world, accumulate=accumulate), whole)
    assert same(run(make(folder), start=1), whole[12:])
    assert not same(run(make(folder, seed=1)), whole)


@pytest.mark.parametrize(
    ("make", "workers", "context"), [(flat, 2, "fork"), (deep, 2, "fork"), (deep, 1, "spawn")]
)
def test_pixels_do_not_depend_on_workers(folder, make, workers, context):
    assert same(run(make(folder, workers=workers), context=context, steps=2), run(make(folder), steps=2))


def test_python_exits_while_a_traceback_holds_the_workers(folder):
    """Workers that ignored the SIGTERM of their parent would be waited for without a limit."""
    code = (
        "import sys\n"
        "from medloom.data.loader.loader import loader\n"
        "from medloom.data.stream.stream import Stream\n"
        "from medloom.data.stream.config import StreamConfig\n"
        f"config = StreamConfig(shards={str(folder)!r}, crop=[8, 8], batch_size=4, workers=1)\n"
        "kept = iter(loader(Stream(config), rank=0, world=1, start_step=0, steps=9))\n"
        "next(kept)\n"
        "sys.kept = kept\n"
        "raise KeyError('crash')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "KeyError: 'crash'" in done.stderr


def test_elastic_ranks_see_the_same_global_batches(folder):
    config = flat(folder, batch_size=48)
    whole = run(config, steps=3)
    parts = [run(config, world=w, start=s, steps=s + 1) for s, w in enumerate((8, 3, 16))]
    assert same([sample for part in parts for sample in part], whole)


@CONFIGS
def test_batches_are_equal_typed_and_complete(folder, make):
    config = make(folder)
    batches = list(loader(Stream(config), rank=1, world=2, start_step=0, steps=4))
    assert len(batches) == 4
    for batch in batches:
        b, c = 6, batch["image"].shape[1]
        assert c in (1, config.in_channels)
        assert batch["image"].shape == (b, c, *config.crop)
        assert batch["image"].dtype in (torch.uint8, torch.int16, torch.uint16, torch.int32)
        for name in ("low", "high", "mean", "std"):
            assert batch[name].shape == (b, c) and batch[name].dtype == torch.float32
        assert batch["spacing"].shape == (b, config.ndim) and batch["spacing"].dtype == torch.float32
        assert batch["position"].dtype == batch["modality"].dtype == torch.int64
        assert batch["position"].shape == batch["modality"].shape == (b,)
        assert len(batch["key"]) == b and all(isinstance(key, str) for key in batch["key"])
        assert torch.isfinite(to_float(batch, config.in_channels)).all()


def test_a_sample_is_what_the_reader_gives_at_its_box(folder):
    shards = Shards.open(folder)
    where = {shards.meta(ref)["key"]: ref for ref in shards.refs("vol-3d")}
    stream = Stream(deep(folder, sources=["vol"]))
    seen = set()
    for got in stream.__getitems__(range(40)):
        image = shards.read(where[got["key"]])[0]
        windows = np.lib.stride_tricks.sliding_window_view(image, (16, 24, 24))
        hits = np.argwhere(windows[..., 0, 0, 0] == got["image"][0, 0, 0, 0])
        origins = [tuple(h) for h in hits.tolist() if np.array_equal(windows[tuple(h)], got["image"][0])]
        assert len(origins) == 1
        seen.add((got["key"], origins[0]))
        assert got["low"].tolist() == [-1000] and got["spacing"].tolist() == [2, 1, 1]
        assert MODALITIES[got["modality"]] is Modality.CT
    assert len(seen) > 30


def test_a_whole_picture_is_resized_as_the_reader_does(folder):
    config = flat(folder, sources=["xray-2d"], crop=[60, 70], crop_scale=[1.0, 1.0], aspect=[1.0, 1.0])
    shards = Shards.open(folder)
    where = {shards.meta(ref)["key"]: ref for ref in shards.refs("xray-2d")}
    for got in Stream(config).__getitems__(range(6)):
        assert np.array_equal(got["image"], shards.read(where[got["key"]]))
        assert got["spacing"].tolist() == [0.5, 0.5]


def test_volumes_smaller_than_the_crop_are_padded_with_air(folder):
    stream = Stream(deep(folder, sources=["vol"], crop=[64, 72, 80]))
    got = stream[0]
    shards = stream.shards
    image = shards.read(next(r for r in shards.refs("vol-3d") if shards.meta(r)["key"] == got["key"]))
    assert np.array_equal(got["image"][:, 12:52], image)
    assert set(np.unique(got["image"][:, :12])) == set(np.unique(got["image"][:, 52:])) == {-1000}


def test_one_channel_of_many_is_drawn_by_position(folder):
    stream = Stream(deep(folder, sources=["brain"], crop=[12, 30, 34]))
    drawn = []
    for got in stream.__getitems__(range(40)):
        assert got["image"].shape[0] == got["mean"].shape[0] == 1
        channel = int(got["image"].min()) // 1000
        assert abs(got["low"][0] - channel * 1000) < 50
        drawn.append(channel)
    assert set(drawn) == {0, 1, 2, 3}
    assert Stream(deep(folder, sources=["brain"], channels=4))[0]["image"].shape[0] == 4


def test_grey_jpegs_travel_as_one_channel_and_colour_turns_grey_on_request(folder):
    assert Stream(flat(folder, sources=["film"]))[0]["image"].shape[0] == 1
    assert Stream(flat(folder, sources=["photo"]))[0]["image"].shape[0] == 3
    config = flat(
        folder, sources=["photo"], channels=1, crop=[40, 50], crop_scale=[1.0, 1.0], aspect=[1.0, 1.0]
    )
    got = Stream(config)[3]
    colour = Stream(dataclasses.replace(config, channels=3))[3]
    assert got["key"] == colour["key"] and got["image"].shape[0] == got["mean"].shape[0] == 1
    reference = np.asarray(Pillow.fromarray(colour["image"].transpose(1, 2, 0)).convert("L"))
    assert np.abs(got["image"][0].astype(int) - reference).max() <= 1


def test_no_two_positions_share_a_crop_over_workers_and_epochs(folder):
    """Also when a source is read many times: its samples come back with other boxes."""
    stream = Stream(flat(folder, sources=["film"]))  # 5 samples
    boxes = [(s["key"], s["image"].tobytes()) for s in stream.__getitems__(range(60))]
    assert len({key for key, _ in boxes}) == 5
    assert len(set(boxes)) == 60


def test_sources_and_datasets_can_be_chosen_left_out_and_weighted(folder):
    def ids(**kwargs):
        return [source.id for source in Stream(flat(folder, **kwargs)).sources]

    assert ids() == ["photo-2d", "xray-2d", "film-2d"]
    assert ids(sources=["xray", "film-2d"]) == ["xray-2d", "film-2d"]
    assert ids(exclude=["photo-2d", "film"]) == ["xray-2d"]
    weighted = Stream(flat(folder, alpha=0.0, weights={"film": 2.0})).classes[0].order.probabilities
    assert weighted == pytest.approx([0.25, 0.25, 0.5], rel=1e-3)
    with pytest.raises(ConfigError, match="did you mean xray"):
        ids(sources=["xrey"])
    with pytest.raises(ConfigError, match=r"no 2D source is left.*vol-3d \(3D\)"):
        ids(sources=["vol"])
    for source, counts in zip(("photo", "xray"), ((13,), (18,)), strict=True):
        assert len(Stream(flat(folder, sources=[source]))) == sum(counts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ndim": 4}, "ndim is 4"),
        ({"crop": [8, 8, 8]}, "no size in 2D"),
        ({"crop_scale": [0.0, 1.0]}, "crop_scale"),
        ({"aspect": [2.0, 1.0]}, "aspect"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"foreground": 1.5}, "foreground"),
        ({"channels": 0}, "channels"),
        ({"window": 0}, "window"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_key(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        Stream(flat(folder, **changes))


def damaged(folder, tmp_path, keys) -> StreamConfig:
    """A copy of the folder in which the images of these samples of xray are damaged."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = Shards.open(folder)
    for ref in shards.refs("xray-2d"):
        if shards.meta(ref)["key"] in keys:
            handle = shards._handle(ref.shard)
            member = handle.index.members_of(ref.ordinal)[1]
            with (tmp_path / handle.path.name).open("r+b") as file:
                file.seek(member.offset + member.size // 2)
                byte = file.read(1)[0]
                file.seek(-1, io.SEEK_CUR)
                file.write(bytes([byte ^ 8]))
    return flat(tmp_path, sources=["xray", "film"])


def test_a_corrupt_sample_is_replaced_the_same_way_everywhere(folder, tmp_path, caplog):
    config = damaged(folder, tmp_path, {"xray-0003", "xray-0012"})
    good = run(flat(folder, sources=["xray", "film"]), steps=4)
    got = run(config, steps=4)
    assert len(got) == len(good) == 48
    changed = [i for i, (a, b) in enumerate(zip(good, got, strict=True)) if a[0] != b[0]]
    assert {good[i][0] for i in changed} == {"xray-0003", "xray-0012"}
    assert all(got[i][0].startswith("xray-") for i in changed)
    assert {"xray-0003", "xray-0012"}.isdisjoint({key for key, _ in got})
    assert same(
        [s for i, s in enumerate(got) if i not in changed],
        [s for i, s in enumerate(good) if i not in changed],
    )
    assert sum("xray-0003" in r.message for r in caplog.records) == 1
    assert same(run(dataclasses.replace(config, workers=2), world=2, steps=4), got)


def test_the_failure_budget_stops_the_run_with_one_line(folder, tmp_path):
    config = damaged(folder, tmp_path, {f"xray-{i:04d}" for i in range(18)})
    before = set(torch.multiprocessing.active_children())
    for workers in (0, 1):
        with pytest.raises(ShardError, match=r"^source xray-2d: .*(failure_budget is 3|in a row)") as caught:
            run(dataclasses.replace(config, failure_budget=3, workers=workers))
        assert "\n" not in str(caught.value)
        assert set(torch.multiprocessing.active_children()) <= before


def test_a_missing_or_cut_shard_is_found_at_once(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "xray-2d-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-600])
    with pytest.raises(ShardError, match=r"xray-2d-00001\.tar has \d+ bytes, the manifest says"):
        Stream(flat(tmp_path))
    shard.unlink()
    with pytest.raises(ShardError, match=r"xray-2d-00001\.tar is missing"):
        Stream(flat(tmp_path))
    assert Stream(flat(tmp_path, exclude=["xray"]))[0]


def test_reading_costs_what_the_crop_costs(folder, monkeypatch):
    """The bytes read for a small crop of a large volume do not grow with the volume."""
    rng = np.random.default_rng(1)
    read: dict[str, int] = {}
    for side in (64, 128):
        path = folder.parent / f"side{side}"
        path.mkdir()
        image = rng.integers(-900, 900, (1, side, side, side)).astype(np.int16)
        with ShardWriter(path / "big-3d-00000.tar") as writer:
            writer.add(sample("big-0", image, "ct", (1.0, 1.0, 1.0)))
        entry = SourceEntry(id="big-3d", dataset="big", ndim=3, count=1, licence="x", shards=(writer.entry,))
        Manifest(name="big", sources=(entry,)).save(path)
        stream = Stream(deep(path, crop=[32, 32, 32], foreground=0.0))
        stream[0]
        total, pread = [0], os.pread

        def counting(fd, n, offset, total=total, pread=pread):
            data = pread(fd, n, offset)
            total[0] += len(data)
            return data

        monkeypatch.setattr(os, "pread", counting)
        stream.__getitems__(range(20))
        monkeypatch.setattr(os, "pread", pread)
        read[str(side)] = total[0]
    assert read["64"] > 0
    assert read["128"] < 1.3 * read["64"]


def test_workers_ignore_the_signals_of_a_preemption(folder):
    batches = iter(loader(Stream(flat(folder, workers=1)), rank=0, world=1, start_step=0, steps=6))
    first = next(batches)
    pids = [p.pid for p in torch.multiprocessing.active_children()]
    assert pids
    for number in ("TERM", "USR1", "INT"):  # from outside, as a batch system sends them
        subprocess.run(["kill", f"-{number}", *map(str, pids)], check=True)
    rest = list(batches)
    assert len(rest) == 5 and first["image"].shape == rest[-1]["image"].shape
    for process in torch.multiprocessing.active_children():
        process.terminate()  # from the parent, as when Python exits
        process.join(timeout=30)
        assert process.exitcode == 0
