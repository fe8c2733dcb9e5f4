"""Batches on their way to a device: no slot is reused before its copy is over, on a real GPU or not."""

import ctypes
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from medloom.data.datamodule import PretrainData
from medloom.data.loader import loader as loader_module
from medloom.data.loader.loader import Loader
from medloom.data.loader.parcels import BatchReader
from medloom.data.stream.config import StreamConfig

COUNT, SHAPE = 60, (4, 1, 64, 64)


class Numbered:
    """Images full of their position."""

    def __getitems__(self, positions, place=None) -> list[dict]:
        return [{"image": np.full(SHAPE[1:], p, np.uint16), "position": p, "key": str(p)} for p in positions]


def data(workers: int = 1) -> PretrainData:
    batches = [list(range(4 * n, 4 * n + 4)) for n in range(COUNT)]
    found = PretrainData(StreamConfig(), steps=COUNT)
    found._loader = Loader(
        BatchReader(Numbered()), batches, slot_bytes=int(2 * np.prod(SHAPE)), workers=workers
    )
    return found


class Gpu:
    """Copies run when they are waited for or a loop lets them; they read memory and hold no batch."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.arrived: list[np.ndarray] = []
        self.pinned: dict[int, int] = {}

    def copy(self, batch: dict, device: torch.device) -> tuple[dict, SimpleNamespace]:
        image, over = batch["image"], []
        address, size = image.data_ptr(), image.nbytes
        assert any(a <= address and address + size <= a + n for a, n in self.pinned.items()), "not pinned"

        def run() -> None:
            self.arrived.append(np.frombuffer(ctypes.string_at(address, size), np.uint16).reshape(SHAPE))
            over.append(True)

        def wait() -> None:
            while not over:
                self.waiting.pop(0)()

        self.waiting.append(run)
        return {}, SimpleNamespace(query=lambda: bool(over), synchronize=wait)

    def cudaHostRegister(self, address: int, size: int, _: int) -> int:
        self.pinned[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.pinned.pop(address) and not self.waiting else 1


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    def check(code: int) -> None:
        assert code == 0

    fake = Gpu()
    monkeypatch.setattr(loader_module, "copy_to_device", fake.copy)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    return fake


def train(source: PretrainData, gpu: Gpu, *, finish: bool = False) -> list[set[int]]:
    """What arrived of each batch, by a loop that drops a batch as soon as its copy has been started.

    Args:
        finish: let the last copies run before the loader is closed.
    """
    draw = random.Random(0)
    assert source._loader is not None
    for batch in source._loader:
        source.transfer_batch_to_device(batch, torch.device("cuda"), 0)
        del batch
        for _ in range(min(draw.randrange(2), len(gpu.waiting))):
            gpu.waiting.pop(0)()
    assert gpu.waiting, "closing finds copies under way"
    while finish and gpu.waiting:
        gpu.waiting.pop(0)()
    source.teardown("fit")
    return [{int(row.min()) for row in image} | {int(row.max()) for row in image} for image in gpu.arrived]


EXPECTED = [set(range(4 * n, 4 * n + 4)) for n in range(COUNT)]


def test_every_copy_brings_the_pixels_of_its_own_batch(gpu):
    assert train(data(), gpu) == EXPECTED
    assert not gpu.pinned, "unpinned at the end, when no copy runs"


def test_without_the_hold_copies_would_bring_others(gpu, monkeypatch):
    """The test above can fail: what it guards against does happen."""
    monkeypatch.setattr(Loader, "hold", lambda *_: None)
    assert train(data(), gpu, finish=True) != EXPECTED


def test_on_the_cpu_nothing_is_copied_or_pinned(gpu):
    source = data()
    assert source._loader is not None
    for batch in source._loader:
        moved = source.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert moved["image"].data_ptr() == batch["image"].data_ptr() and moved["key"] == batch["key"]
    source.teardown("fit")
    assert not gpu.pinned and not gpu.arrived


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_gets_every_batch_whole_while_it_is_busy():
    source, arrived = data(workers=2), []
    assert source._loader is not None
    for batch in source._loader:
        torch.cuda._sleep(20_000_000)  # the copy has to wait, the loop goes on
        moved = source.transfer_batch_to_device(batch, torch.device("cuda"), 0)
        assert batch["image"].is_pinned()
        del batch
        arrived.append((moved["position"].cpu().tolist(), moved["image"].to(torch.int32)))
    for positions, image in arrived:
        for position, row in zip(positions, image, strict=True):
            assert bool((row == position).all())
    source.teardown("fit")
