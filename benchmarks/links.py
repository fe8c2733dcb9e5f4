"""How fast ranks exchange gradients: bandwidth and latency of an all-reduce, for `medloom plan --device`.

    torchrun --nproc-per-node 8 -m benchmarks.links            # one node: the link inside it
    torchrun --nnodes 2 --nproc-per-node 1 ... -m benchmarks.links   # one rank a node: the network

Rank 0 prints the lines of a device file. Sizes from 4 kB to 64 MB, each the median of several; a line through
(bytes moved by a ring, seconds) gives both numbers. What comes out is what a collective reached, so that
`efficiency` is 1. NCCL on GPUs, gloo elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist

SIZES = tuple(2**power for power in range(12, 27, 2))  # bytes
TURNS = 11


def measure(
    sizes: tuple[int, ...] = SIZES, turns: int = TURNS, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[int, float]]:
    """(bytes, seconds) of all-reduces over all ranks of the running process group; a collective call.

    Args:
        clock: wall time, or time.process_time on a machine whose cores others use, too.
    """
    gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    found = []
    for size in sizes:
        tensor, taken = torch.ones(size // 4, device=device), []
        for _ in range(turns):
            dist.barrier()
            begin = clock()
            dist.all_reduce(tensor)
            if gpu:
                torch.cuda.synchronize()
            taken.append(clock() - begin)
            tensor.fill_(1.0)
        worst = torch.tensor(median(taken), dtype=torch.float64, device=device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        found.append((size, float(worst)))
    return found


def fitted(points: list[tuple[int, float]], ranks: int) -> tuple[float, float]:
    """(10^9 bytes a second of a ring's link, microseconds of a pass), by least squares of relative errors."""
    from medloom.pretrain.plan.pace import line

    latency, slope = line([(2 * (ranks - 1) / ranks * size, seconds) for size, seconds in points])
    return 1e-9 / slope, max(0.0, 1e6 * latency / 2)


def main() -> None:
    """Measure and print."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=5))
    points, ranks = measure(), dist.get_world_size()
    if dist.get_rank() == 0:
        rate, latency = fitted(points, ranks)
        for size, seconds in points:
            print(f"# {size:>10} bytes {1e6 * seconds:12.1f} µs")
        kind = "link" if int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) == ranks else "network"
        hops = ranks - 1 if kind == "link" else max(1, (ranks - 1).bit_length())
        print(f"{kind}_gb_s: {rate:.4g}\n{kind}_us: {latency / hops:.3g}\nefficiency: 1.0")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
