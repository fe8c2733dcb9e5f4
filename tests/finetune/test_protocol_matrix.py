"""finetune/protocols: each on each kind of task, in 2D and 3D, fits, predicts, and is read back the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from medloom.data.errors import ConfigError
from medloom.finetune.config import load_config
from medloom.finetune.data import prepare
from medloom.finetune.planner import make_plan
from medloom.finetune.protocols import PROTOCOLS, Session
from medloom.finetune.slices import fitted
from medloom.finetune.splits import make_split
from medloom.finetune.tasks import TASKS
from medloom.pretrain.weights import load_encoder

from .conftest import SALT, volume_case, write_table

IMAGE_KINDS = ("classification", "multilabel", "ordinal", "regression")
PROBES = ("linear", "attentive", "logistic", "knn")
STEPPED = ("full", "sawtooth", "unfreeze", "lora")
ALLOWED: dict[str, tuple[str, ...]] = dict.fromkeys(IMAGE_KINDS, (*STEPPED, *PROBES)) | {
    "retrieval": (*STEPPED, "frozen"),
    "segmentation": (*STEPPED, "linear"),
}
RECORDS: dict[str, dict[str, Any]] = {
    "classification": {"classes": ["low", "high"], "label": "class"},
    "multilabel": {"classes": ["bright", "odd"], "label": "findings"},
    "ordinal": {"classes": ["none", "mild", "severe"], "label": "grade"},
    "regression": {"label": "value"},
    "retrieval": {"classes": ["low", "high"], "label": "class"},
    "segmentation": {"structures": {1: "outer", 2: "inner"}},
}


def written(folder: Path, ndim: int) -> None:
    """Twenty-four images of twelve subjects, in which a box says everything, and their table."""
    import nibabel as nib
    from PIL import Image

    rng = np.random.default_rng(ndim)
    folder.mkdir()
    rows = []
    for number in range(24):
        level = (number // 2) % 3
        stem = f"patient-{number // 2:02d}-{number % 2}"
        if ndim == 2:
            labels = np.zeros((40, 48), np.uint8)
            labels[8:30, 10:40] = 1
            labels[12:20, 15:25] = 2
            pixels = rng.normal(110, 8, labels.shape) + (-40, 30, 90)[level] * (labels > 0)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{stem}.png")
            Image.fromarray(labels).save(folder / f"{stem}-mask.png")
            files = {"path": f"{stem}.png", "mask": f"{stem}-mask.png"}
        else:
            pixels, labels = volume_case(rng, (16, 18, 16))
            for name, array in ((stem, (pixels * (level - 1)).astype(np.int16)), (f"{stem}-mask", labels)):
                nib.Nifti1Image(array, np.eye(4)).to_filename(folder / f"{name}.nii.gz")
            files = {"path": f"{stem}.nii.gz", "mask": f"{stem}-mask.nii.gz"}
        findings = [name for name, there in (("bright", level > 0), ("odd", level % 2)) if there]
        rows.append({
            **files, "subject": stem[:10], "split": ("train", "train", "val", "test")[number // 6],
            "class": ("low", "high")[level > 0], "findings": "|".join(findings),
            "grade": ("none", "mild", "severe")[level], "value": str(level + rng.normal(0, 0.1)),
        })  # fmt: skip
    write_table(folder, rows)


@pytest.fixture(scope="module")
def opened(workshop: Any) -> Callable[..., Any]:
    """`opened(kind, ndim, *overrides)`: the task over data that is prepared once."""
    for ndim in (2, 3):
        written(workshop.root / f"matrix-{ndim}d", ndim)

    def open_task(kind: str, ndim: int, *items: str) -> Any:
        dataset = f"matrix-{ndim}d"
        label = RECORDS[kind].get("label")
        options = {
            "subject": "subject",
            "split": "split",
            **({"labels": [label]} if label else {"mask": "mask"}),
        }
        kinds = {"findings": {"kind": "multi-label", "separator": "|"}, "value": "value"}
        record = workshop.root / f"{dataset}-{kind}.yaml"
        record.write_text(yaml.safe_dump({
            "name": f"{dataset}-{kind}", "kind": kind, "salt": SALT, **RECORDS[kind],
            "source": {"dataset": dataset, "layout": "table", "root": dataset, "modality": "mri",
                       "label_kinds": {label: kinds[label]} if label in kinds else {}, "options": options},
        }))  # fmt: skip
        config = load_config(record, [
            f"encoder={workshop.root / f'encoder{ndim}d'}", f"root={workshop.root}",
            f"cache={workshop.cache}", "steps=4", "validations=2", "batch_size=2", "head.width=8",
            "head.most=16", "device=cpu", "optim.freeze_fraction=0.5", *items,
        ])  # fmt: skip
        data = prepare(config.task, root=workshop.root, cache=workshop.cache)
        split = make_split(data.items(), config.task.split, data.rank)
        encoder = encoder_of(config, ndim)
        metas = [case.meta for case in data.cases if split[case.key] == "train"]
        plan = make_plan(config.task, config, metas, encoder, crop=[32, 32] if ndim == 2 else None)
        return TASKS[kind](config, data, plan, split)

    return open_task


def encoder_of(config: Any, ndim: int) -> Any:
    encoder, report = load_encoder(config.encoder)
    return fitted(encoder, report, ndim=ndim, dims=config.dims)


def fit(task: Any, protocol: str, folder: Path, **session: Any) -> tuple[torch.nn.Module, Any]:
    one = PROTOCOLS[protocol]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = one.network(task, encoder_of(task.config, task.plan.ndim))
    folder.mkdir(exist_ok=True)
    return network, one.fit(network, Session(task, "pretrained", folder, torch.device("cpu"), **session))


def predicted(task: Any, network: torch.nn.Module) -> list[Any]:
    return list(task.predictions(network, task.cases["test"], torch.device("cpu")))


def plain(prediction: Any) -> np.ndarray:
    return np.asarray(getattr(prediction, "places", prediction))


def check(task: Any, protocol: str, folder: Path) -> None:
    network, outcome = fit(task, protocol, folder)
    assert outcome.finished
    assert np.isfinite(outcome.validation[task.criterion])
    before = encoder_of(task.config, task.plan.ndim).state_dict()
    after = network.get_submodule("encoder").state_dict()
    assert before.keys() == after.keys()  # adapters are merged
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    assert moved is not PROTOCOLS[protocol].frozen
    first = predicted(task, network)
    assert len(first) == len(task.cases["test"]) > 0
    again = PROTOCOLS[protocol].network(task, encoder_of(task.config, task.plan.ndim))
    again.load_state_dict(network.state_dict())
    for case, a, b in zip(task.cases["test"], first, predicted(task, again), strict=True):
        np.testing.assert_array_equal(plain(a), plain(b))
        assert all(row.metric for row in task.rows(case, a))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("kind", "protocol"), [(kind, name) for kind in ALLOWED for name in ALLOWED[kind]])
def test_fits_predicts_and_is_the_same_when_read_back(
    kind: str, protocol: str, ndim: int, opened: Any, tmp_path: Path
) -> None:
    check(opened(kind, ndim, f"protocol={protocol}", "validations=1"), protocol, tmp_path / "arm")


@pytest.mark.parametrize("kind", TASKS)
def test_other_pairs_are_refused_with_those_that_go(kind: str, opened: Any) -> None:
    expected = ALLOWED.get(kind, (*STEPPED, "linear"))  # detection, like segmentation
    assert {name for name, one in PROTOCOLS.items() if one.head in TASKS[kind].heads} == set(expected)
    if kind not in RECORDS:
        return
    task = opened(kind, 2)
    for name in PROTOCOLS.keys() - set(expected):
        with pytest.raises(
            ConfigError, match=f"protocol={name} does not go with {kind}.*choose full"
        ) as caught:
            PROTOCOLS[name].network(task, encoder_of(task.config, 2))
        assert all(good in str(caught.value) for good in expected)


@pytest.mark.parametrize("dims", ["slices", "inflate"])
@pytest.mark.parametrize(("kind", "protocol"), [
    ("classification", "full"), ("classification", "linear"), ("classification", "attentive"),
    ("classification", "knn"), ("classification", "lora"), ("segmentation", "full"),
    ("segmentation", "linear"), ("segmentation", "sawtooth"), ("regression", "logistic"),
    ("retrieval", "frozen"),
])  # fmt: skip
def test_a_2d_encoder_serves_volumes(
    kind: str, protocol: str, dims: str, workshop: Any, opened: Any, tmp_path: Path
) -> None:
    encoder = workshop.root / "encoder2d"
    task = opened(kind, 3, f"protocol={protocol}", f"dims={dims}", f"encoder={encoder}", "validations=1")
    assert task.plan.ndim == 3
    check(task, protocol, tmp_path / "arm")


class Killed(Exception):
    """Stands for a process that dies between two instructions."""


@pytest.mark.parametrize(("kind", "protocol", "items"), [
    ("segmentation", "sawtooth", []), ("segmentation", "unfreeze", []), ("segmentation", "linear", []),
    ("classification", "lora", ["lora.dropout=0.2"]), ("classification", "full", ["optim.ema=0.9"]),
    ("classification", "linear", []), ("regression", "attentive", []),
])  # fmt: skip
@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_fit_continues_to_the_same_numbers(
    kind: str, protocol: str, items: list[str], at: int, opened: Any, tmp_path: Path
) -> None:
    task = opened(kind, 2, f"protocol={protocol}", "checkpoint_minutes=0", *items)
    whole, outcome = fit(task, protocol, tmp_path / "whole")

    def progress(done: int, total: int, what: str) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        fit(task, protocol, tmp_path / "killed", progress=progress)
    if at == 3:
        assert (tmp_path / "killed" / "last.ckpt").is_file()
    continued, other = fit(task, protocol, tmp_path / "killed")
    assert (other.step, other.validation) == (outcome.step, outcome.validation)
    ours, theirs = continued.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("protocol", ["linear", "attentive", "lora", "sawtooth"])
def test_a_signal_saves_and_the_same_fit_goes_on(protocol: str, opened: Any, tmp_path: Path) -> None:
    task = opened("classification", 2, f"protocol={protocol}")
    whole, _ = fit(task, protocol, tmp_path / "whole")
    asked = iter([False, True])
    _, outcome = fit(task, protocol, tmp_path / "stopped", stop=lambda: next(asked))
    assert not outcome.finished
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["step"] == 2
    continued, _ = fit(task, protocol, tmp_path / "stopped")
    ours, theirs = continued.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tokens_that_do_not_fit_are_computed_again_to_the_same_numbers(opened: Any, tmp_path: Path) -> None:
    kept, _ = fit(opened("classification", 2, "protocol=attentive"), "attentive", tmp_path / "kept")
    task = opened("classification", 2, "protocol=attentive")
    task.config.memory_gib = 1e-6
    again, _ = fit(task, "attentive", tmp_path / "again")
    ours, theirs = again.state_dict(), kept.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_frozen_phase_leaves_the_encoder_as_it_was(opened: Any, tmp_path: Path) -> None:
    task = opened("classification", 2, "protocol=unfreeze", "steps=4", "checkpoint_minutes=0")
    asked = iter([False, True])
    fit(task, "unfreeze", tmp_path / "arm", stop=lambda: next(asked))
    state = torch.load(tmp_path / "arm" / "last.ckpt", weights_only=True)["network"]
    before = encoder_of(task.config, 2).state_dict()
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in before.items())
    assert state["head.bias"].any()  # which starts at zero


@pytest.mark.parametrize("protocol", PROBES)
def test_probes_learn_what_a_box_tells(protocol: str, opened: Any, tmp_path: Path) -> None:
    task = opened("classification", 2, f"protocol={protocol}", "steps=60", "batch_size=12",
                  "probe.neighbours=[1,3]")  # fmt: skip
    network, outcome = fit(task, protocol, tmp_path / "arm")
    assert outcome.validation["auc"] > 0.9
    found = task.scores(np.stack(predicted(task, network)), task.truth(task.cases["test"]))
    assert found["auc"] > 0.8
    assert outcome.facts["criterion"] == "auc"
