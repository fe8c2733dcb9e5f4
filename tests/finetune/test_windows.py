"""finetune/windows.py: the stream of rows is MONAI's sliding window, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from medloom.finetune.windows import interpolate_rows, resized_rows, rows_between, sliding_rows
from monai.inferers.utils import sliding_window_inference
from torch.nn import functional

CPU = torch.device("cpu")


def position_dependent(x: torch.Tensor) -> torch.Tensor:
    """Two outputs that differ between places of a window, so that every weight and seam shows."""
    ramp = torch.linspace(0, 1, x[0, 0].numel()).view(x.shape[2:])
    return torch.cat([x * ramp, x.flip(2) - ramp], dim=1)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((16, 20, 18), (8, 8, 8)), ((9, 8, 30), (8, 8, 16)), ((8, 8, 8), (8, 8, 8)), ((31, 9), (6, 8))],
)
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_the_rows_are_those_of_monais_sliding_window(
    shape: tuple[int, ...], patch: tuple[int, ...], overlap: float
) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    wanted = sliding_window_inference(image[None], patch, 3, position_dependent, overlap, "gaussian")
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return image[:, start:stop].numpy()

    blocks = list(sliding_rows(read, shape, patch, position_dependent, batch=3, device=CPU, overlap=overlap))
    assert isinstance(wanted, torch.Tensor)
    assert np.allclose(np.concatenate(blocks, axis=1), wanted[0].numpy(), atol=1e-5)
    assert [row for start, stop in asked for row in range(start, stop)] == list(range(shape[0]))


@pytest.mark.parametrize(("have", "want"), [(10, 23), (23, 10), (7, 7), (1, 5), (5, 1), (40, 41)])
@pytest.mark.parametrize("sizes", [1, 3, 100])
def test_a_stream_is_interpolated_as_the_whole(have: int, want: int, sizes: int) -> None:
    whole = np.random.default_rng(1).normal(size=(2, have, 3)).astype(np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, have, sizes):
            yield whole[:, start : start + sizes]

    found = np.concatenate(list(resized_rows(blocks(), have, want)), axis=1)
    tensor = torch.from_numpy(whole).movedim(1, 2).reshape(1, 6, have)
    wanted = functional.interpolate(tensor, size=want, mode="linear", align_corners=False)
    assert np.allclose(found, wanted.reshape(2, 3, want).movedim(2, 1).numpy(), atol=1e-5)
    for start, stop in ((0, want), (want // 2, want // 2 + 1)):
        low, high = rows_between(have, want, start, stop)
        part = interpolate_rows(whole[:, low:high], low, have, want, start, stop)
        assert np.allclose(part, found[:, start:stop], atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    import tracemalloc

    def peak(rows: int) -> int:
        def read(start: int, stop: int) -> np.ndarray:
            return np.ones((1, stop - start, 64, 64), dtype=np.float32)

        tracemalloc.start()
        for block in sliding_rows(read, (rows, 64, 64), (16, 64, 64), lambda x: x.expand(-1, 8, -1, -1, -1),
                                  batch=1, device=CPU):  # fmt: skip
            assert np.allclose(block, 1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    window = 8 * 16 * 64 * 64 * 4
    assert peak(256) < 1.1 * peak(64) < 1.1 * 5 * window
    assert window * 256 // 16 > 2 * peak(256)  # the whole would have been larger
