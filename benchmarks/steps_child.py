"""The measured process of benchmarks/steps.py: builds one contender, then does what it is asked."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from .rivals import Size, rival
from .steps import CASES, VIEWS

Step = Callable[[int, bool], None]  # (number, views are to be made)


def serve(name: str, method: str, options: argparse.Namespace) -> None:
    """Answer orders (`warm`, `given`, `made`, `memory`, `tensors`) with one line of JSON each."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    torch.set_num_threads(options.threads)
    step: Step | None = None
    base = count = 0
    for order in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if step is None:
                    step, base = built(name, method, options)
                reply, count = carried_out(order.strip(), step, base, count, options)
        except Exception as error:  # the parent puts any reason into its table
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def carried_out(
    order: str, step: Step, base: int, count: int, options: argparse.Namespace
) -> tuple[dict[str, float], int]:
    """Do one order; returns the figures and the number of steps done so far."""
    if order == "memory":
        reset_peak()
    elif order == "tensors":
        return {"tensors": float(given_out(lambda: step(count, False), options.device))}, count + 1
    elif order == "warm":
        for made in (True, False):
            step(count, made)
            count += 1
    began = clock(options.device)
    for _ in range(options.steps):
        step(count, order == "made")
        count += 1
    seconds = (clock(options.device) - began) / options.steps
    if order == "memory":
        return {"memory": float(status("VmHWM") - base)}, count
    return ({} if order == "warm" else {order: seconds}), count


def clock(device: str) -> float:
    """CPU seconds of this process, or the wall clock of a GPU that has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def reset_peak() -> None:
    """Forget the highest resident size so far."""
    Path("/proc/self/clear_refs").write_text("5")


def given_out(run: Callable[[], None], device: str) -> int:
    """Most bytes that torch's allocator gave out while `run` ran, above what it had given out before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def resident() -> int:
    """Bytes that the process holds before anything is built."""
    gc.collect()
    return status("VmRSS")


def status(key: str) -> int:
    """Bytes that the kernel states of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def built(name: str, method: str, options: argparse.Namespace) -> tuple[Step, int]:
    """The contender's step, and the memory of the process before it was built."""
    torch.manual_seed(0)
    told = CASES[method][1]
    size = Size(picture=options.picture, local=options.picture // 2, patch=options.patch, dim=options.dim,
                depth=options.depth, heads=max(1, options.dim // 64), **told)  # fmt: skip
    make = medloom if name.startswith("medloom/") else other
    return make(name, method, size, options)


def sizes(method: str, size: Size) -> list[int]:
    """Sides of the views of an image."""
    return [size.picture] * VIEWS.get(method, 2) + [size.local] * (size.locals or 0)


def other(name: str, method: str, size: Size, options: argparse.Namespace) -> tuple[Step, int]:
    """A rival: its loss on views of the common sizes, its transforms on pictures."""
    from PIL import Image

    kind = rival(name)
    kind(replace(size, dim=64, depth=1, heads=1), 100)  # whatever is imported late is imported now
    base = resident()
    contender = kind(size, 10_000).to(options.device).train()
    # As lightly's and stable-pretraining's examples and plain code call it.
    optimiser = torch.optim.AdamW([p for p in contender.parameters() if p.requires_grad], lr=1e-5)
    shown = [Image.fromarray(picture) for picture in pictures(options.batch, size.picture)]
    given = [torch.randn(options.batch, 3, side, side, device=options.device) for side in sizes(method, size)]

    def step(number: int, made: bool) -> None:
        views = given
        if made:
            each = [contender.views(picture) for picture in shown]
            views = [torch.stack(view).to(options.device) for view in zip(*each, strict=True)]
        loss = contender.loss(views, number)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        contender.before_update(number, optimiser)
        optimiser.step()
        contender.after_update(number)

    return step, base


def medloom(name: str, method: str, size: Size, options: argparse.Namespace) -> tuple[Step, int]:
    """medloom's objective: views of the common sizes kept from the first step, or made anew in each."""
    from medloom.data.config import polymorphic
    from medloom.pretrain.encoders import build_encoder
    from medloom.pretrain.objectives import OBJECTIVES, Batch
    from medloom.pretrain.optim import adamw, param_groups
    from medloom.pretrain.views import limits, to_float

    told = {"name": method, **CASES[method][0], **crops(method, size)}
    kind, section = polymorphic(told, OBJECTIVES, "objective")
    kind(section, build_encoder(transformer(replace(size, dim=64, depth=1, heads=1))))  # imports, as above
    base = resident()
    encoder = build_encoder(transformer(size)).to(options.device).train()
    objective = kind(section, encoder).to(options.device).train()
    groups = param_groups(encoder, objective.named_parameters(), weight_decay=0.05)
    optimiser = adamw(groups, lr=1e-5, betas=(0.9, 0.999))
    stored = loaded(options.batch, size.picture, options.device, whole=method == "mae")
    kept, image = KeptViews(objective), to_float(stored, 3)

    def step(number: int, made: bool) -> None:
        kept.fresh = made
        positions = torch.arange(options.batch) + options.batch * number
        batch = Batch(
            image=to_float(stored, 3) if made else image, limits=limits(stored, 3), seed=0,
            position=positions.to(options.device), host_position=positions, step=number, steps=10_000,
        )  # fmt: skip
        loss = objective.step(batch, encoder).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        objective.before_update(number, 10_000, encoder)
        optimiser.step()
        objective.after_update(number, 10_000, encoder)

    return step, base


def transformer(size: Size) -> dict[str, Any]:
    """medloom's encoder section of the common network."""
    return {
        "name": "vit", "model": "vit_tiny_patch16_224", "img_size": size.picture, "patch_size": size.patch,
        "embed_dim": size.dim, "depth": size.depth, "num_heads": size.heads, "in_channels": 3,
    }  # fmt: skip


class KeptViews:
    """Stands in for the functions that make views in the objectives' modules; repeats the first answer."""

    names = ("random_view", "multi_crop")

    def __init__(self, objective: torch.nn.Module) -> None:
        self.fresh = True
        self.answers: dict[tuple[str, str], Any] = {}
        found = {sys.modules[kind.__module__] for kind in type(objective).__mro__
                 if kind.__module__.startswith("medloom.pretrain.objectives")}  # fmt: skip
        found |= {module for key, module in sys.modules.items() if key == "medloom.pretrain.objectives.crops"}
        for module in found:
            for name in self.names:
                if hasattr(module, name):
                    setattr(module, name, self.instead(module.__name__, name, getattr(module, name)))

    def instead(self, module: str, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, or what it gave last when no fresh views are wanted."""

        def answer(*arguments: Any, **keywords: Any) -> Any:
            if self.fresh or (module, name) not in self.answers:
                self.answers[module, name] = real(*arguments, **keywords)
            return self.answers[module, name]

        return answer


def crops(method: str, size: Size) -> dict[str, Any]:
    """Views as the rivals have them: crop, flip, colours, grey, blur; of MAE flips (the loader crops)."""
    if method == "mae":
        return {}
    changes = {"colour": 0.8, "colour_brightness": 0.4, "colour_contrast": 0.4, "colour_saturation": 0.2,
               "colour_hue": 0.1, "grayscale": 0.2, "blur": 0.5, "blur_least": 0.1}  # fmt: skip
    made = [{"name": "global", "count": 2, "size": [size.picture] * 2, "scale": [0.32, 1.0], "view": changes}]
    if size.locals:
        made.append({"name": "local", "count": size.locals, "size": [size.local] * 2, "scale": [0.05, 0.32],
                     "view": changes})  # fmt: skip
    return {"crops": made}


def pictures(count: int, side: int) -> list[np.ndarray]:
    """uint8 pictures [1.5 side, 1.5 side, 3], smooth with noise."""
    rng, length = np.random.default_rng(0), side * 3 // 2
    rows = np.linspace(0, 6, length)
    down, across = rng.uniform(1, 4, (2, count, 3, 1, 1))
    waves = np.sin(rows[:, None] * down) * np.cos(rows * across)
    noisy = 128 + 90 * waves + rng.normal(0, 12, waves.shape)
    return list(noisy.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def loaded(count: int, side: int, device: str, *, whole: bool) -> dict[str, Any]:
    """The same pictures as medloom's loader gives them: bytes and the numbers of their normalisation."""
    shown = torch.from_numpy(np.stack(pictures(count, side)).transpose(0, 3, 1, 2).copy()).to(device)
    if whole:  # MAE: the loader cuts and resizes
        shown = shown[..., :side, :side].contiguous()
    numbers = {"low": 0.0, "high": 255.0, "mean": 120.0, "std": 60.0}
    return {"image": shown} | {
        key: torch.full((count, 3), value, device=device) for key, value in numbers.items()
    }
