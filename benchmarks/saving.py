"""How long a step stands still for a checkpoint: written beside training, and written before it goes on.

The state is that of a real network and AdamW after one step. Both ways are timed turn by turn, on a disk that
other processes may use as well, so that ratios count; what the thread takes meanwhile is told beside, and how
much slower steps are while it writes.

    python -m benchmarks.saving --work runs/saving
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.fault_tolerance.checkpoint import store
from medloom.pretrain.fault_tolerance.saving import _on_host


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm's name of the encoder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, required=True, help="folder on the disk that is to be measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(table(measure(arguments), arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part, medians of the repeats."""
    device = torch.device(arguments.device)
    encoder = build_encoder({"name": "vit", "model": arguments.model, "in_channels": 1}).to(device)
    optimiser = torch.optim.AdamW(encoder.parameters())
    image = torch.randn(4, 1, 224, 224, device=device)

    def step() -> float:
        begin = time.perf_counter()
        encoder(image).pooled.square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        wait(device)
        return time.perf_counter() - begin

    step()
    found: dict[str, Any] = {"copy": [], "write": [], "alone": [], "beside": []}
    folder = arguments.work / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.repeats):
        found["alone"].append(step())
        state = {"state_dict": encoder.state_dict(), "optimizer": optimiser.state_dict()}
        begin = time.perf_counter()
        copy = _on_host(state, copy=True, seen={})
        wait(device)
        found["copy"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        stored = store(copy, folder, number)
        found["write"].append(time.perf_counter() - begin)
        thread = threading.Thread(target=store, args=(copy, folder, number))
        thread.start()
        while thread.is_alive():
            found["beside"].append(step())
        thread.join()
        found["bytes"] = stored.bytes
    shutil.rmtree(folder)
    return {name: statistics.median(v) if isinstance(v, list) else v for name, v in found.items()}


def table(found: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The result as Markdown."""
    copy, write = found["copy"], found["copy"] + found["write"]
    return "\n".join([
        f"{arguments.model}, AdamW, {found['bytes'] / 1e6:.0f} MB, {arguments.device}", "",
        "| | training stands still | against the other |", "|---|---|---|",
        f"| `trainer.checkpoint_async=false` | {write:.3f} s | 1 |",
        f"| `trainer.checkpoint_async=true` | {copy:.3f} s | {copy / write:.3f} |", "",
        f"A step takes {found['beside'] / found['alone']:.2f} × as long while the thread writes.",
    ])  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
