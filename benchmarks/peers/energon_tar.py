"""megatron-energon: prepared webdataset tars, a task encoder, the savable loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import Batch, Load, Material, Peer, blank, decode_jpeg
from .medloom_shards import ensured, names_of
from .webdataset_tar import crop_of_frame, shard_numbers, write_tars


class Energon(Peer):
    """Whole members, decoded by a cooker. Volumes: Blosc2 members as in medloom's shards, in its own tars."""

    name = "energon"
    settings = (
        "energon prepare on webdataset tars, CrudeWebdataset with a cooker, get_savable_loader, "
        "shuffle buffer 100 (volumes: none); volumes: Blosc2 members decoded whole, cut"
    )
    needs = ("megatron.energon", "webdataset")
    ends_slowly = True

    def prepare(self, material: Material, folder: Path) -> None:
        from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

        if material.kind == "volume":
            _write_frames(material, folder)
        else:
            write_tars(material, folder)
        paths = sorted(path.name for path in folder.glob("*.tar"))
        WebdatasetPreparator.prepare_dataset(
            folder, paths, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
        )
        text = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (folder / ".nv-meta" / "dataset.yaml").write_text(text)

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.tar"))

    def shards(self, material: Material, folder: Path) -> dict[str, int] | None:
        return shard_numbers(material) if material.kind == "picture" else None

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

        volume = material.kind == "volume"
        dataset: Any = get_train_dataset(
            folder,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=load.workers),
            batch_size=load.batch,
            shuffle_buffer_size=None if volume else 100,
            max_samples_per_sequence=None if volume else 100,
            task_encoder=_encoder(load),
        )
        for batch in get_savable_loader(dataset, prefetch_factor=load.prefetch):
            yield batch["image"], list(batch["name"])


def _write_frames(material: Material, folder: Path) -> None:
    import tarfile

    import webdataset as wds

    paths = sorted(ensured(material).glob("*.tar"))
    names = names_of(material)
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=2, verbose=0) as writer:  # type: ignore[attr-defined]
        for path in paths:
            with tarfile.open(path) as archive:
                for info in archive:
                    key, _, extension = info.name.partition(".")
                    stored = archive.extractfile(info)
                    if extension == "b2nd" and stored is not None:
                        writer.write({"__key__": names[key], "b2nd": stored.read()})


def _encoder(load: Load) -> Any:
    import torch
    from megatron.energon import Cooker, DefaultTaskEncoder, stateless

    @stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        if "b2nd" in sample:
            image = crop_of_frame(sample["b2nd"], load)
        else:
            image = decode_jpeg(sample["jpg"]) if load.decode else blank(load)
        return {
            "__key__": sample["__key__"],
            "__restore_key__": sample["__restore_key__"],
            "name": sample["__key__"].rsplit("/", 1)[-1],
            "image": torch.from_numpy(image),
        }

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(cook)]  # noqa: RUF012
        decoder = None

        @stateless
        def batch(self, samples: list[Any]) -> dict[str, Any]:
            return {"image": torch.stack([s["image"] for s in samples]), "name": [s["name"] for s in samples]}

    return Encoder()
