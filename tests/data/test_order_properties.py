"""Whatever the layout, ranks, workers and interruptions: the samples and pixels of the undisturbed run."""

import dataclasses
import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medloom.data.datamodule import PretrainData
from medloom.data.loader.loader import loader
from medloom.data.stream.config import ShapeClass, StreamConfig
from medloom.data.stream.stream import Stream

SHARDS = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(lambda counts: sum(counts) > 0)
LAYOUTS = st.lists(SHARDS, min_size=1, max_size=3).map(
    lambda sources: {f"{name}-2d": counts for name, counts in zip("abc", sources, strict=False)}
)
BATCH = 12  # divides by every number of ranks and micro-batches below
SPLITS = [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (12, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 4)]
FEW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

Seen = dict[int, tuple[str, bytes]]  # position -> key and digest of the pixels


def note(seen: Seen, batch: dict) -> None:
    for position, key, image in zip(batch["position"].tolist(), batch["key"], batch["image"], strict=True):
        assert position not in seen, "a position was trained on twice"
        seen[position] = key, hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest()


def read(config: StreamConfig, *, split=(1, 1), start=0, until=6, ahead=0) -> Seen:
    """What the steps `start` to `until` train on; loaders read `ahead` steps more than is used."""
    seen: Seen = {}
    world, accumulate = split
    lengths = set()
    for rank in range(world):
        batches = loader(
            Stream(config),
            rank=rank,
            world=world,
            start_step=start,
            steps=until + ahead,
            accumulate=accumulate,
        )
        used = list(itertools.islice(batches, (until - start) * accumulate))
        lengths.add(tuple(len(batch["key"]) for batch in used))
        for batch in used:
            note(seen, batch)
        batches.close()
    assert len(lengths) == 1 and set(next(iter(lengths), ())) <= {BATCH // (world * accumulate)}
    return seen


def example(folder: Path, **kwargs) -> StreamConfig:
    return StreamConfig(**{"shards": str(folder), "crop": [6, 6], "batch_size": BATCH, "workers": 0,
                           "channels": 1, **kwargs})  # fmt: skip


@FEW
@given(
    layout=LAYOUTS,
    seed=st.integers(0, 2**40),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    window=st.none() | st.integers(1, 3),
    epoch=st.sampled_from(["steps", "strict", "cover"]),
    crops=st.integers(1, 3),
    starts=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(SPLITS), st.integers(0, 3)), min_size=1, max_size=4
    ),
)
def test_any_interruption_gives_the_pixels_of_the_undisturbed_run(
    make_layout, layout, seed, alpha, window, epoch, crops, starts
):
    """Each start trains some steps on some ranks, by loaders that had read further when killed."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_layout(Path(name), layout)
        config = example(
            folder, seed=seed, window=window, epoch=epoch, crops_per_sample=crops,
            alpha=1.0 if epoch == "strict" else alpha,
        )  # fmt: skip
        done, parts = 0, {}
        for steps, split, ahead in starts:
            parts |= read(config, split=split, start=done, until=done + steps, ahead=ahead)
            done += steps
        assert sorted(parts) == list(range(done * BATCH))
        assert parts == read(config, until=done)
        order = Stream(config).classes[0].order
        found = order.locate(range(done * BATCH)).source
        keys = [parts[position][0] for position in range(done * BATCH)]
        assert ["abc".index(key[0]) for key in keys] == found.tolist()


@FEW
@given(
    layout=LAYOUTS, alpha=st.floats(0, 1), window=st.none() | st.integers(1, 3), start=st.integers(0, 10**9)
)
def test_prefix_counts_stay_within_one_of_their_due(make_layout, layout, alpha, window, start):
    with tempfile.TemporaryDirectory() as name:
        order = Stream(example(make_layout(Path(name), layout), alpha=alpha, window=window)).classes[0].order
    ends = np.arange(start, start + 500)
    due = ends[:, None] * order.probabilities
    counts = np.stack([order.counts(end) for end in ends])
    assert np.abs(counts - due).max() < 1 + 1e-6
    assert np.array_equal(
        np.diff(counts, axis=0).argmax(axis=1), order.locate(range(start, start + 499)).source
    )


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=LAYOUTS, workers=st.integers(1, 2), prefetch=st.integers(1, 3), split=st.sampled_from(SPLITS[:4])
)
def test_workers_that_read_ahead_change_nothing(make_layout, layout, workers, prefetch, split):
    with tempfile.TemporaryDirectory() as name:
        config = example(make_layout(Path(name), layout))
        undisturbed = read(config, until=5)
        ahead = dataclasses.replace(config, workers=workers, prefetch=prefetch)
        parts = read(ahead, split=split, until=2, ahead=3) | read(ahead, start=2, until=5, ahead=2)
        assert parts == undisturbed


class Trainer:
    """What PretrainData asks of a trainer."""

    def __init__(self, rank: int, world: int, step: int) -> None:
        self.global_rank, self.world_size, self.global_step = rank, world, step


@pytest.mark.parametrize("classes", [False, True], ids=["one shape", "three shapes"])
def test_twenty_restarts_with_other_ranks_and_workers_give_identical_global_batches(
    tmp_path, make_layout, classes
):
    folder = make_layout(tmp_path, {"a-2d": [5, 0, 4], "b-2d": [3], "v-3d": [4, 2]})
    config = example(folder)
    if classes:
        config.classes = [
            ShapeClass(share=2.0, channels=1),
            ShapeClass(ndim=3, crop=[4, 6, 6], batch_size=24, snap=1),
            ShapeClass(crop=[8, 4], channels=1, crops_per_sample=2, alpha=1.0),
        ]
    steps = 40
    plan = Stream(config).plan
    undisturbed = PretrainData(config, steps=steps)
    undisturbed.trainer = Trainer(0, 1, 0)  # pyright: ignore
    whole: Seen = {}
    for batch in undisturbed.train_dataloader():
        note(whole, batch)
    assert len(whole) == plan.samples(steps)

    rng = np.random.default_rng(0)
    state, seen, step = None, {}, 0
    for start in range(21):
        world, workers = int(rng.choice([1, 2, 3, 4])), int(rng.choice([0, 0, 1, 2])) if start % 4 == 0 else 0
        here = dataclasses.replace(config, workers=workers, prefetch=int(rng.integers(1, 4)))
        until = steps if start == 20 else step + int(rng.integers(1, 3))
        states = []
        for rank in range(world):
            data = PretrainData(here, steps=steps)
            data.trainer = Trainer(rank, world, step)  # pyright: ignore
            if state is not None:
                data.load_state_dict(state)
            batches = data.train_dataloader()
            for batch in itertools.islice(batches, until - step):
                note(seen, batch)
            batches.close()  # killed, with what its workers had read ahead
            data.trainer = Trainer(rank, world, until)  # pyright: ignore
            states.append(json.dumps(data.state_dict()))
        assert len(set(states)) == 1 and len(states[0]) <= 200
        state, step = json.loads(states[0]), until
    assert step == steps and start == 20
    assert seen == whole
