"""finetune/tasks/segmentation.py: whole cases, ensembles, and the memory that they take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.finetune.tasks.base import Member, resized
from monai.inferers.utils import sliding_window_inference
from torch import nn

CPU = torch.device("cpu")


class Places(nn.Module):
    """Logits that depend on the intensity and on the place in the window: every seam would show."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor(float(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(0, 3, x[0, 0].numel()).view(x.shape[2:])
        return torch.cat([x, torch.sin(x * 2 + ramp + self.phase), ramp - x], dim=1)


def whole(task: Any, network: nn.Module, case: Any) -> np.ndarray:
    """Probabilities by MONAI's sliding window over the padded, resampled whole, resampled back."""
    target, patch = task.target_shape(case), task.plan.patch
    image = task.normalised(case, resized(task.image(case), target))
    pad = [
        ((p - t) // 2, p - t - (p - t) // 2) if p > t else (0, 0) for p, t in zip(patch, target, strict=True)
    ]
    image = np.pad(image, [(0, 0), *pad], constant_values=task.padding(case))
    with torch.no_grad():
        found = sliding_window_inference(
            torch.from_numpy(image)[None], patch, 2, lambda x: network(x).softmax(1), 0.5, "gaussian"
        )
    assert isinstance(found, torch.Tensor)
    inner = (slice(None), *(slice(a, a + t) for (a, _), t in zip(pad, target, strict=True)))
    return resized(found[0].numpy()[inner], case.shape)


@pytest.mark.parametrize("spacing", ["null", "[1.0,0.5,2.0]", "[0.4,1.0,1.3]"])
@pytest.mark.parametrize("patch", ["[8,16,16]", "[24,8,24]"])
def test_a_case_is_predicted_as_by_the_whole_at_once(
    spacing: str, patch: str, volumes: Path, task_of: Callable[..., Any]
) -> None:
    task, network = task_of(volumes, f"task.spacing={spacing}", f"patch={patch}"), Places()
    case = task.cases["test"][0]
    found = np.concatenate(list(task.probabilities(network, case, CPU)), axis=1)
    wanted = whole(task, network, case)
    assert found.shape == (3, *case.shape)
    assert np.allclose(found, wanted, atol=2e-5)
    assert np.array_equal(task.predict(network, case, CPU), found.argmax(0))


def test_a_corrupted_image_is_what_is_predicted(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes, "patch=[8,16,16]")
    case, network = task.cases["test"][0], Places()
    before = task.predict(network, case, CPU)
    task.corrupt = lambda case, image: np.ascontiguousarray(image[:, ::-1])
    found = np.concatenate(list(task.probabilities(network, case, CPU)), axis=1)
    assert np.allclose(found, whole(task, network, case), atol=2e-5)
    assert not np.array_equal(found.argmax(0), before)


def test_mirroring_averages_all_combinations_of_the_axes(volumes: Path, task_of: Callable[..., Any]) -> None:
    task, network = task_of(volumes, "task.flips=[1,2]", "patch=[16,24,24]"), Places()
    case = task.cases["test"][0]
    found = np.concatenate(list(task.probabilities(network, case, CPU, mirror=True)), axis=1)
    flips: list[tuple[int, ...]] = [(), (1,), (2,), (1, 2)]

    def mirrored(axes: tuple[int, ...]) -> np.ndarray:
        class Flipped(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                turned = [axis + 2 for axis in axes]
                return network(x.flip(turned)).flip(turned)

        return whole(task, Flipped(), case)

    assert np.allclose(found, np.mean([mirrored(axes) for axes in flips], axis=0), atol=2e-5)


def test_an_ensemble_is_the_mean_of_probabilities_on_the_grid_of_the_case(
    volumes: Path, task_of: Callable[..., Any]
) -> None:
    tasks = [
        task_of(volumes, "patch=[8,16,16]"),
        task_of(volumes, "patch=[16,8,24]", "task.spacing=[1.5,1,1]"),
    ]
    networks = [Places(0), Places(2)]
    members = [Member(t, n, t.cases["test"][0]) for t, n in zip(tasks, networks, strict=True)]
    found = tasks[0].together(members, CPU)
    wanted = np.mean([whole(t, n, t.cases["test"][0]) for t, n in zip(tasks, networks, strict=True)], axis=0)
    assert (found == wanted.argmax(0)).mean() > 0.999  # but for ties
    single = tasks[0].predict(networks[0], tasks[0].cases["test"][0], CPU)
    assert not np.array_equal(found, single)


CHILD = """
import resource, sys
import numpy as np, torch
from medloom.finetune.config import load_config
from medloom.finetune.data import Case, TaskData
from medloom.finetune.planner import Fingerprint, Plan
from medloom.finetune.tasks import TASKS

torch.set_num_threads(1)
rows = int(sys.argv[1])
config = load_config("msd-task03-liver", ["encoder=x"])
seen = Fingerprint(3, 1, [8] * 3, [8] * 3, [1.0] * 3, 1)
plan = Plan(3, 1, [16, 160, 160], 2, [1.0] * 3, None, None, 0.1, 0.1, seen)
stats = {"percentiles": {"0.5": [0.0], "99.5": [9.0]}, "min": [0.0], "max": [9.0], "mean": [4.0],
         "std": [2.0], "foreground": {"rule": "otsu"}}
meta = {"key": "k", "subject": "s", "ndim": 3, "dtype": "int16", "shape": [1, rows, 160, 160],
        "modality": "mri", "spacing": [1.25, 1.0, 1.0], "stats": stats}

class Endless:  # a volume that is never in memory as a whole
    def read(self, ref, origin, shape):
        return np.random.default_rng(origin[0]).integers(0, 9, (1, *shape)).astype(np.int16)

data = TaskData(Endless(), [Case(None, meta)], [], {}, values=[1, 2])
task = TASKS["segmentation"](config, data, plan, {"k": "test"})

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x * 2, -x], 1)

case = task.cases["test"][0]
task.probabilities(Net(), case, torch.device("cpu")).__next__()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(block.shape[1] for block in task.probabilities(Net(), case, torch.device("cpu")))
assert count == rows, count
sys.stdout.write(str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
"""


def test_a_large_volume_is_predicted_in_the_memory_of_a_window() -> None:
    rows = 1400  # more than is kept decoded; 430 MB of probabilities
    found = subprocess.run([sys.executable, "-c", CHILD, str(rows)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 60 << 20
