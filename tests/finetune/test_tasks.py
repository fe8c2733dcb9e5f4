"""finetune/tasks, data, augment: examples are functions of the position, image and labels stay together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from medloom.data.config import find_config
from medloom.data.errors import CollectionError, ConfigError
from medloom.finetune.augment import augment
from medloom.finetune.config import AugmentConfig, load_config
from medloom.finetune.data import prepare
from medloom.finetune.tasks.segmentation import foreground_statistics
from torch import nn


class Threshold(nn.Module):
    """A perfect segmenter of the noise-free volumes: logits from the intensity alone."""

    def __init__(self, levels: tuple[float, float]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = ((x[:, 0] - level) * 50 for level in self.levels)
        return torch.stack([torch.zeros_like(first), first, first + second], dim=1)


def levels_of(task: Any, case: Any) -> tuple[float, float]:
    """Normalised intensities half-way between background, outer and inner."""
    image, mask = task.normalised(case, task.data.image(case))[0], task.data.mask(case)
    means = [float(image[mask == output].mean()) for output in range(3)]
    return (means[0] + means[1]) / 2, (means[1] + means[2]) / 2


@pytest.mark.parametrize("name", ["volumes", "pictures"])
def test_an_example_depends_on_seed_and_position_alone(
    name: str, request: pytest.FixtureRequest, task_of: Callable[..., Any]
) -> None:
    record = request.getfixturevalue(name)
    first, second, other = task_of(record), task_of(record), task_of(record, "seed=1")
    second.example(3)  # what was asked before must not matter
    for position in (0, 17):
        a, b = first.example(position), second.example(position)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(first.example(p)["image"], other.example(p)["image"]) for p in range(4))


def test_workers_do_not_change_the_batches(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes)
    alone = [batch["image"] for batch in task.batches(1, 4, 0)]
    shared = [batch["image"] for batch in task.batches(1, 4, 2)]
    assert len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_an_epoch_shows_every_training_case_once(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes)
    count = len(task.cases["train"])
    for epoch in (0, 3):
        keys = [task.case_at(epoch * count + index).key for index in range(count)]
        assert sorted(keys) == sorted(case.key for case in task.cases["train"])


def test_crops_keep_image_and_labels_together(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes, "patch=[8,16,16]")
    for position in range(12):
        example = task.example(position)
        levels = levels_of(task, task.case_at(position))
        guess = Threshold(levels)(example["image"][None]).argmax(1)[0]
        assert example["labels"].shape == (8, 16, 16)
        assert float((guess == example["labels"]).float().mean()) > 0.99


def test_a_third_of_the_crops_is_centred_on_a_structure(volumes: Path, task_of: Callable[..., Any]) -> None:
    counts = {}
    for share in (0.0, 1.0):
        task = task_of(volumes, "patch=[8,8,8]", f"foreground={share}")
        counts[share] = sum(bool((task.example(p)["labels"] > 0).any()) for p in range(24))
    assert counts[1.0] == 24
    assert counts[0.0] < 24


def test_small_cases_are_padded_with_their_darkest_value(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes, "patch=[32,32,32]")
    example = task.example(0)
    case = task.case_at(0)
    outside = example["image"] == task.padding(case)
    assert outside.float().mean() > 0.5
    assert int((example["labels"] > 0).sum()) == int((task.data.mask(case) > 0).sum())


@pytest.mark.parametrize("spacing", ["null", "[1.0,0.5,2.0]"])
def test_whole_cases_come_back_on_their_own_grid(
    spacing: str, volumes: Path, task_of: Callable[..., Any]
) -> None:
    task = task_of(volumes, f"task.spacing={spacing}", "patch=[8,16,16]")
    case = task.cases["test"][0]
    network = Threshold(levels_of(task, case))
    found = task.predict(network, case, torch.device("cpu"))
    reference = task.data.mask(case)
    assert found.shape == reference.shape
    # Resampled borders blur by about a voxel; on the case's own grid the threshold is nearly exact.
    assert (found == reference).mean() > (0.995 if spacing == "null" else 0.85)


def test_training_boxes_lie_inside_and_classes_weigh_alike(
    pictures: Path, task_of: Callable[..., Any]
) -> None:
    task = task_of(pictures)
    for position in range(200):
        y0, x0, y1, x1 = task._box(task.case_at(position), position)
        assert 0 <= y0 < y1 <= 40
        assert 0 <= x0 < x1 <= 56
        assert (y1 - y0) * (x1 - x0) >= 0.5 * 40 * 56 * 0.75
    assert np.allclose(task.class_weights(), [1, 1])


def test_augmentation_moves_labels_with_the_image_and_repeats_itself() -> None:
    labels = torch.zeros(6, 16, 20, 24, dtype=torch.int64)
    labels[:, 3:9, 4:12, 5:11] = 1
    labels[:, 5:8, 6:10, 6:9] = 2
    image = labels[:, None].float() * 10
    positions = torch.arange(6)
    config = AugmentConfig(affine=1.0, intensity=0.0, noise=0.0)
    moved, both = augment(image, labels, positions, config, seed=0, flips=[2], spacing=[3.0, 1.0, 1.0])
    assert both is not None
    assert not torch.equal(both, labels)
    assert float(((moved[:, 0] / 10).round() == both).float().mean()) > 0.93
    again, _ = augment(image, labels, positions, config, seed=0, flips=[2], spacing=[3.0, 1.0, 1.0])
    assert torch.equal(moved, again)
    alone, _ = augment(
        image[4:5], labels[4:5], positions[4:5], config, seed=0, flips=[2], spacing=[3.0, 1.0, 1.0]
    )
    assert torch.allclose(alone, moved[4:5], atol=1e-4)


def test_only_the_axes_of_the_record_are_mirrored() -> None:
    image = torch.arange(4 * 5, dtype=torch.float32).view(1, 1, 4, 5).expand(32, -1, -1, -1)
    config = AugmentConfig(affine=0.0, intensity=0.0, noise=0.0)
    moved, _ = augment(image, None, torch.arange(32), config, seed=0, flips=[1])
    straight, mirrored = image[0], image[0].flip(-1)
    kinds = [torch.equal(m, straight) - torch.equal(m, mirrored) for m in moved]
    assert set(kinds) == {1, -1}
    assert torch.equal(augment(image, None, torch.arange(32), config, seed=0)[0], image)


def test_intensity_changes_are_small_against_the_structures() -> None:
    """CT: structures at 0.1 with a deviation of 0.03 in a range of -1 .. 1 must stay where they are."""
    torch.manual_seed(0)
    image = torch.full((64, 1, 8, 8, 8), -1.0)
    image[:, :, 2:6] = 0.1 + 0.03 * torch.randn(64, 1, 4, 8, 8)
    config = AugmentConfig(affine=0.0, intensity=1.0, noise=1.0)
    moved, _ = augment(image, None, torch.arange(64), config, seed=0, foreground=[0.1, 0.03])
    shift = (moved[:, :, 2:6].mean(dim=(1, 2, 3, 4)) - image[:, :, 2:6].mean(dim=(1, 2, 3, 4))).abs()
    assert 0 < float(shift.max()) < 0.2 * 0.03 * 1.5
    wild, _ = augment(image, None, torch.arange(64), config, seed=0)
    assert float((wild - image)[:, :, 2:6].abs().mean()) > float((moved - image)[:, :, 2:6].abs().mean()) * 3


def test_the_stem_sees_standardised_structures(volumes: Path, task_of: Callable[..., Any]) -> None:
    task = task_of(volumes)
    mean, deviation = foreground_statistics(task.data, task.cases["train"])
    case = task.cases["train"][0]
    image, mask = task.normalised(case, task.data.image(case))[0], task.data.mask(case)
    inside = (image[mask > 0] - mean) / deviation
    assert abs(float(inside.mean())) < 1.5
    assert 0.3 < float(inside.std()) < 3


def test_images_without_a_mask_are_left_out_and_listed(workshop: Any, tmp_path: Path) -> None:
    write_volumes, write_table = workshop_writers()
    rows = write_volumes(tmp_path / "some")
    rows[0]["mask"] = ""
    write_table(tmp_path / "some", rows)
    config = workshop.config(record_of(workshop, "volumes-some", "some"), tmp_path / "run")
    data = prepare(config.task, root=tmp_path, cache=tmp_path / "cache")
    assert len(data.cases) == 9
    assert [row["reason"] for row in data.skipped] == ["has no mask"]


def test_a_mask_value_that_is_not_declared_is_refused(workshop: Any, tmp_path: Path) -> None:
    write_volumes, _ = workshop_writers()
    write_volumes(tmp_path / "some", count=7)
    path = tmp_path / "some" / "patient-03-mask.nii.gz"
    labels = np.asarray(nib.load(path).dataobj).copy()
    labels[0, 0, 0] = 9
    nib.Nifti1Image(labels, np.eye(4)).to_filename(path)
    config = workshop.config(record_of(workshop, "volumes-nine", "some"), tmp_path / "run")
    with pytest.raises(CollectionError, match=r"holds 9, which `structures` \(\[1, 2\]\)") as caught:
        prepare(config.task, root=tmp_path, cache=tmp_path / "cache")
    assert "patient" not in str(caught.value)


def test_a_missing_root_names_the_option(workshop: Any, volumes: Path, tmp_path: Path) -> None:
    config = workshop.config(volumes, tmp_path / "run")
    with pytest.raises(CollectionError, match="--root"):
        prepare(config.task, root=tmp_path / "nowhere", cache=tmp_path / "cache")


def test_every_shipped_record_loads_and_names_are_forgiving() -> None:
    from medloom import configs

    names = [path.stem for folder in configs.__path__ for path in Path(folder, "tasks").glob("*.yaml")]
    assert {"phantom-ct-lesion", "phantom-ultrasound", "realdata-hippocampus", "realdata-busi"} <= set(names)
    for name in names:
        config = load_config(name, ["encoder=x"])
        assert config.task.name == name
        assert config.task.metrics
    assert find_config("tasks", "phantom_ct_lesion") == find_config("tasks", "phantom-ct-lesion")
    with pytest.raises(ConfigError, match="realdata-busi"):
        find_config("tasks", "realdata-bsui")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["stepz=3"], "steps"),
        (["protocol=lorra"], "protocol"),
        (["fraction=0"], "fraction"),
        (["task.kind=detektion"], "detection"),
        (["task.metrics=[dise]"], "dice"),
        (["task.structures={0: a}"], "background"),
    ],
)
def test_wrong_keys_and_values_are_named(items: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("realdata-hippocampus", ["encoder=x", *items])


def workshop_writers() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The writers of conftest.py, which importlib mode does not let us import by name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "finetune_conftest", Path(__file__).with_name("conftest.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_volumes, module.write_table


def record_of(workshop: Any, name: str, root: str) -> Path:
    """A segmentation record of another folder."""
    return workshop.record(name, {
        "kind": "segmentation", "structures": {1: "outer", 2: "inner"},
        "source": {"dataset": "volumes", "layout": "table", "root": root, "modality": "mri",
                   "options": {"mask": "mask", "subject": "subject", "split": "split"}},
    })  # fmt: skip


def test_two_runs_that_start_together_share_one_build(workshop: Any, volumes: Path, tmp_path: Path) -> None:
    import threading

    config = workshop.config(volumes, tmp_path / "run")
    found: list[int] = []

    def open_task() -> None:
        found.append(len(prepare(config.task, root=workshop.root, cache=tmp_path / "cache").cases))

    threads = [threading.Thread(target=open_task) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10]
