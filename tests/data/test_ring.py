"""The ring: a slot is never handed out while somebody looks at its batch, and nothing is left over."""

import gc
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.loader.ring import Ring

U8 = np.dtype(np.uint8)


def written(ring: Ring, slot: int, value: int, size: int = 100) -> None:
    """What a worker does."""
    array = ring.array(slot, (size,), U8)
    assert array is not None
    array[:] = value


def test_a_slot_is_free_again_only_when_the_last_view_has_gone():
    ring = Ring(1, 100)
    slot = ring.take()
    assert slot == 0 and ring.take() is None
    written(ring, slot, 7)
    image = torch.from_numpy(ring.lend(slot, (10, 10), U8))
    corner = image[2:4, :3].numpy()  # a view of a view, in another library
    assert ring.take() is None
    del image
    gc.collect()
    assert ring.take() is None and set(corner.ravel()) == {7}
    del corner
    assert ring.take() == 0


def test_requests_that_were_given_up_or_did_not_fit_return_their_slots():
    ring = Ring(3, 100)
    a, b, c = ring.take(), ring.take(), ring.take()
    assert {a, b, c} == {0, 1, 2}
    ring.release(a or 0)
    view = ring.lend(b or 0, (4,), U8)
    ring.reclaim()  # c alone is still out; b is on loan
    assert {ring.take(), ring.take(), ring.take()} == {a, c, None}
    del view
    assert ring.take() == b


def test_slots_do_not_overlap_and_refuse_what_is_larger():
    ring = Ring(3, 1000)
    for slot in range(3):
        written(ring, slot, slot + 1, ring.slot_bytes)
    for slot in range(3):
        array = ring.array(slot, (ring.slot_bytes,), U8)
        assert array is not None and set(array.tolist()) == {slot + 1}
    assert ring.array(0, (ring.slot_bytes + 1,), U8) is None
    assert ring.array(0, (ring.slot_bytes // 4,), np.dtype(np.float32)) is not None
    assert ring.array(0, (ring.slot_bytes // 4 + 1,), np.dtype(np.float32)) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=120), st.integers(1, 6))
def test_no_pattern_of_holding_changes_the_pixels_of_a_batch_that_is_held(moves, slots):
    """Batch n is full of n; each move asks for one or drops one of those that are kept."""
    ring, kept, out = Ring(slots, 64), [], []
    for n, (take, which) in enumerate(moves):
        if take and (slot := ring.take()) is not None:
            written(ring, slot, n, 64)
            kept.append((n, torch.from_numpy(ring.lend(slot, (64,), U8))))
        elif kept:
            out.append(kept.pop(which % len(kept))[0])
        assert all(bool((view == number).all()) for number, view in kept)
        assert len(kept) <= slots
    kept.clear()
    assert sorted(ring.take() for _ in range(slots)) == list(range(slots))


class Copy:
    """An asynchronous copy of a slot: when it is run it reads the memory itself, and it holds nothing."""

    def __init__(self, ring: Ring, slot: int) -> None:
        self.memory, self.slot, self.arrived = ring.array(slot, (64,), U8), slot, None

    def query(self) -> bool:
        return self.arrived is not None

    def synchronize(self) -> None:
        if self.arrived is None:
            assert self.memory is not None
            self.arrived = self.memory.copy()


def train(ring: Ring, steps: int, *, hold: bool) -> list[tuple[int, Copy]]:
    """Steps of a loop that drops each batch as soon as its copy was started; copies run late, in order."""
    draw, copies = random.Random(0), []
    for n in range(steps):
        slot = ring.take()
        assert slot is not None, "copies that are waited for give slots back"
        written(ring, slot, n, 64)
        batch = torch.from_numpy(ring.lend(slot, (64,), U8))
        copies.append((n, Copy(ring, slot)))
        if hold:
            ring.hold(batch, copies[-1][1])
        del batch
        waiting = [copy for _, copy in copies if not copy.query()]
        for copy in waiting[: draw.randrange(2)]:
            copy.synchronize()
    for _, copy in copies:
        copy.synchronize()
    return copies


def test_a_slot_is_not_handed_out_before_its_copy_has_finished():
    for n, copy in train(Ring(3, 64), 100, hold=True):
        assert copy.arrived is not None and set(copy.arrived.tolist()) == {n}


def test_without_the_hold_the_copies_are_overwritten():
    """The test above can fail: this is what it guards against."""
    copies = train(Ring(3, 64), 100, hold=False)
    wrong = [n for n, copy in copies if copy.arrived is not None and set(copy.arrived.tolist()) != {n}]
    assert wrong


def test_closing_waits_for_copies():
    ring = Ring(2, 64)
    slot = ring.take() or 0
    written(ring, slot, 5, 64)
    copy = Copy(ring, slot)
    ring.hold(torch.from_numpy(ring.lend(slot, (64,), U8)), copy)
    ring.close()
    assert copy.arrived is not None and set(copy.arrived.tolist()) == {5}


def descriptors() -> set[str]:
    """Files that this process has open."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a Path would open one more to list them)


def test_views_outlive_the_ring_and_the_descriptors_do_not():
    before = descriptors()
    ring = Ring(2, 1 << 16)
    assert descriptors() > before
    written(ring, ring.take() or 0, 9, 1 << 16)
    view = torch.from_numpy(ring.lend(1, (1 << 16,), U8))
    view[:] = 3
    ring.close()
    del ring
    gc.collect()
    assert bool((view == 3).all())
    del view
    gc.collect()
    assert descriptors() == before


def test_a_ring_has_no_name_and_untouched_slots_cost_nothing():
    ring = Ring(1000, 1 << 26)  # 64 GB
    assert str(Path(f"/proc/self/fd/{ring._file}").readlink()).endswith("(deleted)")
    written(ring, 500, 1, 1 << 12)
    assert os.fstat(ring._file).st_blocks * 512 < 1 << 20


def test_it_is_not_pickled_but_into_a_new_worker():
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(Ring(1, 1))


class Cudart:
    """What CUDA would do: refuses more than it was told to, and pages that are registered already."""

    def __init__(self, most: int = 1 << 40) -> None:
        self.most, self.pages, self.calls = most, {}, 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls += 1
        taken = any(a < address + size and address < a + n for a, n in self.pages.items())
        if taken or sum(self.pages.values()) + size > self.most or flags:
            return 2
        self.pages[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.pages.pop(address, None) else 1


@pytest.fixture
def cudart(monkeypatch):
    def check(code):
        if code:
            raise RuntimeError(f"CUDA error {code}")

    fake = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    return fake


def test_pages_are_pinned_once_a_slot_as_far_as_batches_reach_and_let_go_at_the_end(cudart):
    ring = Ring(2, 1 << 20)
    slot = ring.take() or 0
    view = ring.lend(slot, (5000,), U8)
    for _ in range(3):
        ring.pin(view.ctypes.data, view.nbytes)
    assert cudart.calls == 1 and list(cudart.pages.values()) == [8192]
    ring.pin(view.ctypes.data, 1 << 20)
    assert list(cudart.pages.values()) == [1 << 20]
    ring.pin(np.zeros(9).ctypes.data, 72)  # a batch that came in a message
    assert cudart.calls == 2
    del view
    ring.close()
    assert not cudart.pages


def test_a_refusal_to_pin_is_said_once_and_training_goes_on(cudart, caplog):
    cudart.most = 5000
    ring = Ring(2, 1 << 20)
    for slot in (0, 1):
        array = ring.array(slot, (5000,), U8)
        assert array is not None
        ring.pin(array.ctypes.data, array.nbytes)
    assert cudart.calls == 1 and not cudart.pages
    assert sum("cannot be locked" in record.message for record in caplog.records) == 1
    ring.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_are_complete_though_slots_are_reused_at_once():
    ring, size, sums = Ring(3, 1 << 24), 1 << 24, []
    for n in range(60):
        slot = ring.take()
        assert slot is not None
        written(ring, slot, n, size)
        batch = torch.from_numpy(ring.lend(slot, (size,), U8))
        ring.pin(batch.data_ptr(), batch.nbytes)
        assert batch.is_pinned()
        torch.cuda._sleep(20_000_000)  # the copy has to wait, the loop goes on
        moved = batch.to("cuda", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        ring.hold(batch, event)
        del batch
        sums.append((n, moved.long().sum(), moved.amax()))
    for n, total, most in sums:
        assert int(total) == n * size and int(most) == n
    ring.close()
