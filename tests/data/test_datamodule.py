"""The data module under a real trainer: resume, other batch sizes, two ranks, refusals."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from medloom.data.datamodule import PretrainData
from medloom.data.errors import CheckpointError, ConfigError
from medloom.data.ingest.preprocess import describe
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.writer import ShardWriter
from medloom.data.stream.config import StreamConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("shards")
    sources = []
    for name, count in (("a", 30), ("b", 7)):
        with ShardWriter(path / f"{name}-2d-00000.tar") as writer:
            for i in range(count):
                image = rng.integers(0, 255, (1, 12, 12)).astype(np.uint8)
                meta = dict.fromkeys(META_KEYS) | {
                    "format": FORMAT_VERSION, "key": f"{name}-{i}", "dataset": name, "modality": "x-ray",
                    "ndim": 2, "shape": [1, 12, 12], "dtype": "uint8", "stats": describe(image, "x-ray"),
                }  # fmt: skip
                writer.add(Sample(key=f"{name}-{i}", image=image, meta=meta))
        sources.append(
            SourceEntry(
                id=f"{name}-2d", dataset=name, ndim=2, count=count, licence="x", shards=(writer.entry,)
            )
        )
    Manifest(name="test", sources=tuple(sources)).save(path)
    return path


def config(folder, **kwargs) -> StreamConfig:
    return StreamConfig(**{"shards": str(folder), "crop": [8, 8], "batch_size": 6, "workers": 0, **kwargs})


class Seen(pl.LightningModule):
    """Notes its positions; keeps of Lightning's counters the step alone, as pretraining does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.positions: list[list[int]] = []
        self.start = 0

    def training_step(self, batch, _):
        self.positions.append(batch["position"].tolist())
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint.pop("loops")
        checkpoint["step"] = self.trainer.global_step

    def on_load_checkpoint(self, checkpoint):
        self.start = checkpoint["step"]

    def on_fit_start(self):
        progress = self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = self.start


def fit(
    data: PretrainData, *, until: int, checkpoint=None, accumulate=1
) -> tuple[list[list[int]], pl.Trainer]:
    module = Seen()
    trainer = pl.Trainer(
        max_steps=until, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == until
    return module.positions, trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_trains_on_what_the_undisturbed_run_would_have(folder, tmp_path, workers):
    """The loader has read ahead when the checkpoint is written; only what was trained on counts."""
    undisturbed, _ = fit(PretrainData(config(folder), steps=9), until=9)
    assert undisturbed == [list(range(6 * s, 6 * s + 6)) for s in range(9)]
    first, trainer = fit(PretrainData(config(folder, workers=workers), steps=9), until=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = fit(
        PretrainData(config(folder, workers=workers), steps=9), until=9, checkpoint=tmp_path / "last.ckpt"
    )
    assert first + rest == undisturbed


def test_micro_batches_split_the_step(folder):
    seen, _ = fit(PretrainData(config(folder), steps=3, accumulate=2), until=3, accumulate=2)
    assert seen == [list(range(3 * m, 3 * m + 3)) for m in range(6)]


def test_another_batch_size_goes_on_without_a_gap_or_a_repeat(folder, tmp_path):
    first, trainer = fit(PretrainData(config(folder), steps=10), until=4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    data = PretrainData(config(folder, batch_size=10), steps=10)
    second, trainer = fit(data, until=7, checkpoint=tmp_path / "a.ckpt")
    assert data.plan.consumed(10) == [24 + 6 * 10]
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    third, _ = fit(
        PretrainData(config(folder, batch_size=4), steps=10), until=10, checkpoint=tmp_path / "b.ckpt"
    )
    assert [p for batch in first + second + third for p in batch] == list(range(4 * 6 + 3 * 10 + 3 * 4))


def test_another_order_or_other_shards_are_refused(folder, tmp_path):
    _, trainer = fit(PretrainData(config(folder), steps=3), until=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for changes, message in (
        ({"seed": 1}, "data seed was 0 and is 1"),
        ({"alpha": 1.0}, "alpha"),
        ({"exclude": ["b"]}, "order"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fit(PretrainData(config(folder, **changes), steps=3), until=3, checkpoint=tmp_path / "a.ckpt")


def test_lightning_may_not_wrap_the_sampler(folder):
    class Connector:
        use_distributed_sampler = True

    class Trainer:
        world_size, global_rank, global_step = 2, 0, 0
        _accelerator_connector = Connector()

    data = PretrainData(config(folder), steps=3)
    data.trainer = Trainer()  # pyright: ignore
    with pytest.raises(ConfigError, match="use_distributed_sampler=False"):
        data.train_dataloader()
    Connector.use_distributed_sampler = False
    assert [b["position"].tolist() for b in data.train_dataloader()] == [[0, 1, 2], [6, 7, 8], [12, 13, 14]]
    with pytest.raises(ConfigError, match="does not divide by 2 ranks"):
        data = PretrainData(config(folder, batch_size=7), steps=3)
        data.trainer = Trainer()  # pyright: ignore
        data.train_dataloader()
