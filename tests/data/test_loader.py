"""The loader: the same batches however they travel; dead workers, errors, signals, and what is left over."""

import contextlib
import gc
import mmap
import multiprocessing
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import LoaderError, ShardError
from medloom.data.loader import loader as loader_module
from medloom.data.loader.loader import Loader
from medloom.data.loader.parcels import BatchReader

from .made import Made, all_same, batches, made, same

# Workers that are not forked import torch anew, for seconds each: one test does all that they can do alone.
CONTEXTS = pytest.mark.parametrize(
    "context", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"]
)


@pytest.fixture
def expected() -> list[dict]:
    return list(made(30, workers=0))


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_batches_are_those_of_no_workers_however_workers_start_and_are_signalled(context, expected):
    got = made(30, context=context)
    for batch, other in zip(got, expected, strict=False):
        assert same(batch, other)
        if len(got.processes()) and "made-28" in batch["key"]:
            break
    processes = got.processes()
    for name in ("TERM", "USR1", "INT") * 3:  # from outside, as a batch system sends them
        subprocess.run(["kill", f"-{name}", *(str(p.pid) for p in processes)], check=True)
    count = 0
    for batch, other in zip(got, expected, strict=True):
        assert same(batch, other)
        count += 1
    assert count == 30 and got.processes() == processes
    if context != "forkserver":
        for process in processes:
            process.terminate()  # from the parent
            process.join(timeout=30)
            assert process.exitcode == 0
    got.close()
    assert not multiprocessing.active_children()


def test_pixels_travel_in_slots_and_only_what_does_not_fit_in_messages(expected, monkeypatch):
    travelled = []
    unpack = loader_module.unpack

    def watching(parcel, ring):
        travelled.append(parcel.image is None)
        return unpack(parcel, ring)

    monkeypatch.setattr(loader_module, "unpack", watching)
    for batch, other in zip(made(30), expected, strict=True):
        assert same(batch, other)
    assert travelled == [True] * 30
    travelled.clear()
    # Slots of a page: of the 30 batches those of 8 bits and one channel fit, larger ones travel otherwise.
    fits = [batch["image"].nbytes <= 4096 for batch in expected]
    assert len(set(fits)) == 2
    for batch, other in zip(made(30, slot_bytes=1), expected, strict=True):
        assert same(batch, other)
    assert travelled == fits


def test_who_keeps_all_batches_is_served_on_and_told_once(expected, caplog):
    got = list(made(30))
    assert all_same(got, expected)
    assert sum("travel in messages" in record.message for record in caplog.records) == 1


def test_pixels_that_are_held_do_not_change_whatever_is_dropped_meanwhile(expected):
    """Over 300 batches of which random ones are kept for random times: all keep their pixels."""
    draw, kept = random.Random(1), {}
    reference = dict(enumerate(made(300, workers=0)))
    for n, batch in enumerate(made(300, keep=4)):
        kept[n] = batch if draw.random() < 0.5 else batch["image"][1:3].numpy()
        for old in [k for k in kept if draw.random() < 0.25]:
            del kept[old]
        for number, held in kept.items():
            if isinstance(held, dict):
                assert same(held, reference[number])
            else:
                assert np.array_equal(held, reference[number]["image"][1:3].numpy())
    assert n == 299


def test_breaking_off_and_iterating_again_starts_at_the_first_batch(expected):
    got = made(30, keep=1)
    ring = None
    for stop in (1, 7, 3, 30):
        for n, (batch, other) in enumerate(zip(got, expected, strict=False), 1):
            assert same(batch, other)
            if n == stop:
                break
        assert ring is None or got.reader.ring is ring, "persistent workers keep their ring"
        ring = got.reader.ring
    del batch
    gc.collect()
    assert ring is not None
    ring.reclaim()
    assert sorted(ring._free) == list(range(ring.slots)), "no slot is lost"
    pids = {process.pid for process in got.processes()}
    got.close()
    assert all_same(list(got), expected)
    assert pids.isdisjoint(process.pid for process in got.processes())


def test_workers_that_somebody_else_ended_are_replaced_with_a_new_ring(expected):
    """As Lightning does at the end of `fit`."""
    got = made(30)
    iterator = iter(got)
    kept = [next(iterator), next(iterator)]
    ring = got.reader.ring
    got._iterator._shutdown_workers()  # pyright: ignore
    got._iterator = None
    assert all_same(list(got), expected) and got.reader.ring is not ring
    assert all_same(kept, expected[:2])


def test_two_loaders_at_once_do_not_disturb_each_other(expected):
    for one, two, other in zip(made(30), made(30, workers=1), expected, strict=True):
        assert same(one, other) and same(two, other)


def test_no_descriptor_is_left_over_many_batches():
    got = made(230, workers=2)
    counts = []
    for _ in got:
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(counts) == 230 and max(counts[30:]) <= max(counts[:30])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_it_was_raised_and_ends_the_workers(workers):
    got, seen = made(30, workers=workers, samples=Made(fail_at=41)), 0
    with pytest.raises(ShardError) as caught:
        for _ in got:
            seen += 1
    assert str(caught.value) == "position 41 cannot be read: mend it" and seen == 10
    assert not multiprocessing.active_children() and got.reader.ring is None


class Placed(Made):
    """Images written where the batch will be read, as far as they fit; counted in `modality`."""

    def __getitems__(self, positions, place=None):
        samples = super().__getitems__(positions, place)
        for row, sample in enumerate(samples):
            memory = place(row)(sample["image"].shape, sample["image"].dtype)
            if memory is not None:
                memory[:] = sample["image"]
                sample["image"] = memory
        return samples


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("slot_bytes", [7 * 3 * 400 * 4, 400])
def test_images_that_are_in_their_place_are_not_moved_and_others_join_them(size, slot_bytes):
    """Batches of one type and shape, and of several, in slots that hold them and that do not."""
    got = Loader(BatchReader(Placed()), batches(30, size), slot_bytes=slot_bytes, workers=2)
    plain = Loader(BatchReader(Made()), batches(30, size), slot_bytes=slot_bytes, workers=0)
    assert all_same(list(got), list(plain))
    got.close()


class Slow(Made):
    def __getitems__(self, positions, place=None):
        time.sleep(0.5)
        return super().__getitems__(positions, place)


@pytest.mark.parametrize(("context", "waiting"), [("fork", True), ("fork", False), ("forkserver", True)])
def test_a_worker_that_is_killed_stops_the_loop_with_its_cause(context, waiting):
    """Whether the training process waits for a batch or computes; without a hang, and with no worker left."""
    got = made(200, samples=Slow() if waiting else Made(), context=context)
    with pytest.raises(LoaderError, match=r"a loader worker was killed \(out of memory\?\): .*data\.workers"):
        for n, _ in enumerate(got):
            if n == 0:
                os.kill(got.processes()[0].pid, signal.SIGKILL)
                if not waiting:
                    assert until(lambda: False)  # this loop is where the signal finds the training process
    got.close()
    assert not multiprocessing.active_children()


class Exits(Made):
    def __getitems__(self, positions, place=None):
        if 40 in positions:
            os._exit(3)
        return super().__getitems__(positions, place)


def test_a_worker_that_ends_by_itself_is_named_with_its_status():
    with pytest.raises(LoaderError, match=r"exit code 3: set data\.workers=0"):
        list(made(30, samples=Exits()))
    assert not multiprocessing.active_children()


TRAINING = """
import os, sys, time
sys.path[:0] = {path!r}
from made import made

if __name__ == "__main__":
    got = made(10**6, context={context!r})
    for n, batch in enumerate(got):
        if n == 20:
            print(*(p.pid for p in got.processes()), flush=True)
        {then}
"""


@pytest.fixture
def training(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes that train, each leader of a session of its own; none outlives a test that fails."""
    started: list[subprocess.Popen] = []

    def start(context: str, then: str = "time.sleep(0.01)") -> subprocess.Popen:
        script = tmp_path / "train.py"
        script.write_text(TRAINING.format(path=[str(Path(__file__).parent)], context=context, then=then))
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for it, up to a limit that only a fault reaches."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def in_session(session: int) -> Iterator[str]:
    """Names of the processes of a session that are not dead."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, _, of, *_ = rest.split()
        if int(of) == session and state != "Z":
            yield name


@CONTEXTS
def test_nothing_is_left_over_when_the_training_process_is_killed(context, training):
    """Workers end by themselves, also under forkserver, whose server lives as long as they do."""
    process = training(context)
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    ours = [f"/proc/{pid}/maps" for pid in (process.pid, *pids)]
    assert all("memfd:medloom-ring (deleted)" in Path(maps).read_text() for maps in ours)
    semaphores = names(ours)
    assert bool(semaphores) == (context != "fork")  # workers that are not forked find them by name
    process.kill()
    process.communicate()
    assert until(lambda: not list(in_session(process.pid))), list(in_session(process.pid))
    assert not [
        path for path in semaphores if Path(path).exists()
    ]  # the resource tracker, which has ended, too


def names(maps: list[str]) -> list[str]:
    """Files of semaphores that processes have mapped and that have a name."""
    found = [re.findall(r"/dev/shm/sem\.\S+$", Path(each).read_text(), re.MULTILINE) for each in maps]
    return sorted({name for each in found for name in each})


def test_a_whole_group_that_is_killed_at_once_leaves_nothing(training):
    process = training("fork")
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    assert len(pids) == 2 and not names([f"/proc/{pid}/maps" for pid in (process.pid, *pids)])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert until(lambda: not list(in_session(process.pid)))


@CONTEXTS
def test_python_exits_while_a_traceback_holds_the_workers(context, training):
    """Workers that ignored the SIGTERM of their parent would be waited for without a limit."""
    process = training(context, "sys.kept = got, batch; raise KeyError('crash')")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "KeyError: 'crash'" in errors
    assert until(lambda: not list(in_session(process.pid)))  # the resource tracker goes a moment later


def held_by_a_traceback() -> None:
    """In a process that multiprocessing has started: it runs no exit handlers."""
    got = iter(made(10**6))
    next(got)
    sys.kept = got  # pyright: ignore
    raise KeyError("crash")


def test_a_process_of_multiprocessing_exits_while_it_holds_workers():
    process = multiprocessing.get_context("fork").Process(target=held_by_a_traceback)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1


class Faults(Made):
    """Says as its position how many pages the kernel had to give for 20 batches of eight crops of 1.7 MB."""

    def __getitems__(self, positions, place=None):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            for crop in [np.empty(96**3, np.int16) for _ in range(8)]:
                crop.fill(1)
            del crop
        found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return [sample | {"position": found} for sample in super().__getitems__(positions, place)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_workers_reuse_the_memory_of_crops():
    """Not compared with this process: its allocator has learnt from all the tests before."""
    pages = 20 * 8 * 96**3 * 2 // mmap.PAGESIZE
    found = [int(batch["position"][0]) for batch in made(4, samples=Faults(), workers=1)]
    assert max(found[1:]) < pages / 10


class Stuck(Made):
    def __getitems__(self, positions, place=None):
        if 40 in positions:
            time.sleep(3600)
        return super().__getitems__(positions, place)


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_in_the_end():
    """torch waits five seconds for it, twice."""
    got = made(30, samples=Stuck())
    iterator = iter(got)
    for _ in range(8):
        next(iterator)
    got.close()
    assert not multiprocessing.active_children()
