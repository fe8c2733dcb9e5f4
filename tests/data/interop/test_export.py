"""Export writes plain files that hold exactly what the shards hold, and that build to the same again."""

from __future__ import annotations

import csv
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ShardError
from medloom.data.ingest.build import build
from medloom.data.ingest.preprocess import describe
from medloom.data.interop.export import export
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.index import index_path, load
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.reader import Shards
from medloom.data.shards.writer import ShardWriter
from PIL import Image as Pillow

PATIENT = "Mustermann"
OBLIQUE = np.array([[1.1, 0.2, 0.1, -7.3], [-0.2, 1.2, 0.05, 3.1], [-0.1, -0.05, 2.9, 1 / 3], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of files of every kind, with a person's name in all paths."""
    root = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0)
    rows = ["path,mask,label,age,note,subject,split"]

    def add(name: str, mask: str = "", label: str = "a", split: str = "train") -> Path:
        masked = mask and f"{PATIENT}_{mask}"
        rows.append(f"{PATIENT}_{name},{masked},{label},{len(rows)},x,{PATIENT}{len(rows)},{split}")
        return root / f"{PATIENT}_{name}"

    for n, (dtype, affine) in enumerate(
        [(np.int16, np.eye(4)), (np.uint8, OBLIQUE), (np.float32, np.diag([-0.7, -0.7, 5, 1]))]
    ):
        volume = (noise.normal(0, 40, (20, 18, 12)) + 60).clip(0, 200).astype(dtype)
        nibabel.save(
            nibabel.Nifti1Image(volume, affine), add(f"v{n}.nii.gz", f"m{n}.nii.gz" if n < 2 else "")
        )
        mask = (volume > 70).astype(np.uint8) * 3
        nibabel.save(nibabel.Nifti1Image(mask, affine), root / f"{PATIENT}_m{n}.nii.gz")
    channels = noise.integers(-9, 900, (14, 12, 10, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(channels, np.eye(4)), add("c.nii.gz", split="test"))
    colour = noise.integers(0, 255, (40, 44, 3), np.uint8)
    Pillow.fromarray(colour).save(add("p.png", "pm.png"))
    Pillow.fromarray(colour[..., 0] // 128).save(root / f"{PATIENT}_pm.png")
    Pillow.fromarray(colour).save(add("j.jpg"), quality=90)
    Pillow.fromarray(np.repeat(colour[..., :1], 3, 2)).save(add("grey.jpg"), quality=90)
    Pillow.fromarray(noise.integers(0, 65535, (50, 60)).astype(np.uint16)).save(add("deep.png"))
    import tifffile

    tifffile.imwrite(add("float.tif"), noise.normal(0, 1, (33, 35)).astype(np.float32))
    tifffile.imwrite(add("signed.tif"), noise.integers(-900, 900, (33, 35)).astype(np.int16))
    (root / "t.csv").write_text("\n".join(rows) + "\n")
    (root / "c.yaml").write_text(
        "name: all\nsalt: a-salt-for-tests\nsources:\n- dataset: all\n  layout: table\n"
        "  modality: mri\n  organ: brain\n"
        "  licence: CC-BY-4.0\n  mask_classes: {3: lesion}\n"
        "  options: {file: t.csv, mask: mask, label: label, labels: [age], subject: subject, split: split}\n"
    )
    out = tmp_path_factory.mktemp("shards") / "out"
    result = build(Collection.load(root / "c.yaml"), out)
    assert not result.failures
    return out


def volumes_of(folder: Path) -> list[str]:
    """Keys of the volumes of one channel."""
    shards = Shards.open(folder)
    return [m["key"] for m in map(shards.meta, shards.refs("all-3d")) if m["shape"][0] == 1]


def described(out: Path) -> list[dict[str, Any]]:
    """What samples say, without what depends on names."""
    shards = Shards.open(out)
    found = []
    for ref in shards.refs():
        sample = shards.sample(ref)
        meta = {k: v for k, v in sample.meta.items() if k not in ("key", "subject", "facts")}
        if meta["ndim"] == 2:
            meta |= {"spacing": None, "affine": None}
        mask = None if sample.mask is None else sample.mask.tobytes()
        found.append(meta | {"pixels": sample.image.tobytes(), "jpeg": sample.jpeg, "labels_": mask})
    return sorted(found, key=lambda meta: meta["content_hash"])


def test_built_exported_and_built_again_is_the_same(built: Path, tmp_path: Path) -> None:
    done = export(built, tmp_path / "files", workers=2)
    assert not done.failures
    collection = Collection.load(tmp_path / "files" / "collection.yaml", overrides=["salt=a-salt-for-tests"])
    result = build(collection, tmp_path / "again")
    assert not result.failures
    assert described(tmp_path / "again") == described(built)


def test_volumes_are_exact_niftis(built: Path, tmp_path: Path) -> None:
    export(built, tmp_path / "files", sources=["all-3d"])
    shards = Shards.open(built)
    versions = set()
    for ref in shards.refs("all-3d"):
        sample = shards.sample(ref)
        image = nibabel.load(tmp_path / "files" / "all" / f"{sample.key}.nii.gz")
        versions.add(type(image).__name__)
        array = np.asarray(image.dataobj)
        assert array.dtype == sample.image.dtype
        array = array.reshape(*array.shape[:3], -1)
        np.testing.assert_array_equal(array.transpose(3, 2, 1, 0), sample.image)
        np.testing.assert_array_equal(image.affine[:, [2, 1, 0, 3]], sample.meta["affine"])
        assert image.header.get_xyzt_units()[0] == "mm"
        if sample.mask is not None:
            labels = nibabel.load(tmp_path / "files" / "all" / f"{sample.key}_mask.nii.gz")
            np.testing.assert_array_equal(np.asarray(labels.dataobj).transpose(2, 1, 0), sample.mask)
            np.testing.assert_array_equal(labels.affine, image.affine)
    assert versions <= {"Nifti1Image", "Nifti2Image"}


def test_tables_say_what_the_shards_say(built: Path, tmp_path: Path) -> None:
    export(built, tmp_path / "files")
    folder = tmp_path / "files" / "all"
    rows = list(csv.DictReader((folder / "metadata.csv").open()))
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    shards = Shards.open(built)
    metas = {meta["key"]: meta for meta in map(shards.meta, shards.refs())}
    assert {row["key"] for row in rows} == set(metas) == {line["key"] for line in lines}
    for row, line in zip(rows, lines, strict=True):
        meta = metas[row["key"]]
        assert (folder / row["file"]).is_file()
        assert bool(row["mask"]) == (meta["mask"] is not None)
        assert not row["mask"] or (folder / row["mask"]).is_file()
        assert line["labels"] == meta["labels"]
        assert row["label.age"] == str(meta["labels"]["age"])
        for name in ("modality", "organ", "licence", "split", "subject", "content_hash"):
            assert row[name] == meta[name] == line[name]
    assert "all (3D, 4 images in the shards): CC-BY-4.0" in (tmp_path / "files" / "LICENCES.txt").read_text()


def test_nothing_names_a_person(
    built: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    export(built, tmp_path / "files")
    for name, data in files_of(tmp_path / "files").items():
        assert PATIENT not in name
        assert PATIENT.encode() not in data


def test_source_jpegs_are_untouched(built: Path, tmp_path: Path) -> None:
    export(built, tmp_path / "files", sources=["all-2d"])
    shards = Shards.open(built)
    jpegs = {s.key: s.jpeg for s in map(shards.sample, shards.refs("all-2d")) if s.jpeg}
    assert len(jpegs) == 2
    for key, data in jpegs.items():
        assert (tmp_path / "files" / "all" / f"{key}.jpg").read_bytes() == data


def test_an_export_continues(
    built: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "files"
    first = export(built, out, limit=2)
    assert first.samples == 4
    whole = export(built, out, workers=2)
    assert first.written + whole.written == len([p for p in out.rglob("*.*") if p.parent != out]) - 2
    before = files_of(out)
    victim = next(out.rglob("*.nii.gz"))
    victim.unlink()
    (victim.parent / ".partial-12345678-x.nii.gz").write_bytes(b"left by a killed export")
    assert export(built, out).written == 1
    assert files_of(out) == before


def test_a_choice_is_exported(built: Path, tmp_path: Path) -> None:
    shards = Shards.open(built)
    keys = [shards.meta(ref)["key"] for ref in shards.refs()][1:4]
    assert export(built, tmp_path / "keys", keys=keys).samples == 3
    exported = [
        json.loads(line)["key"] for line in (tmp_path / "keys/all/metadata.jsonl").read_text().splitlines()
    ]
    assert sorted(exported) == sorted(keys)
    with pytest.raises(ShardError, match="no source 'all-4d'; did you mean all-"):
        export(built, tmp_path / "no", sources=["all-4d"])
    with pytest.raises(ShardError, match="no sample 'x-1'"):
        export(built, tmp_path / "no", keys=["x-1"])


def test_other_folders_and_full_disks_are_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ShardError, match="holds other files and no export"):
        export(built, tmp_path / "mine")
    export(built, tmp_path / "files", limit=1)
    with pytest.raises(ShardError, match="another layout"):
        export(built, tmp_path / "files", keys=volumes_of(built)[:1], layout="nnunet")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 10))
    with pytest.raises(ShardError, match=r"10 bytes free, about [\d,]+ are needed"):
        export(built, tmp_path / "full")


def test_a_damaged_sample_is_listed_and_the_rest_is_written(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    tar = copy / "all-3d-00000.tar"
    data = bytearray(tar.read_bytes())
    member = load(index_path(tar)).members_of(1)[1]
    data[member.offset + member.size // 2] ^= 8
    tar.write_bytes(data)
    done = export(copy, tmp_path / "files")
    assert len(done.failures) == 1
    assert "checksum" in done.failures[0][1]
    rows = list(csv.DictReader((tmp_path / "files/all/metadata.csv").open()))
    assert len(rows) == done.samples - 1


def test_channels_that_no_picture_holds_come_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 900, (5, 30, 31)).astype(np.uint16)
    grey = np.repeat(np.random.default_rng(1).integers(0, 255, (1, 20, 21), np.uint8), 3, 0)
    folder = tmp_path / "shards"
    folder.mkdir()
    with ShardWriter(folder / "m-2d-00000.tar") as writer:
        for key, array in (("m-0", image), ("m-1", grey)):
            meta: dict[str, Any] = dict.fromkeys(META_KEYS) | {
                "format": FORMAT_VERSION, "key": key, "dataset": "m", "modality": "oct", "organ": "eye",
                "licence": "CC0-1.0", "ndim": 2, "shape": list(array.shape), "dtype": array.dtype.name,
                "labels": {}, "facts": {}, "stats": describe(array, "oct"), "subject": key,
            }  # fmt: skip
            writer.add(Sample(key=key, image=array, meta=meta))
    source = SourceEntry(id="m-2d", dataset="m", ndim=2, count=2, licence="CC0-1.0", shards=(writer.entry,))
    Manifest(name="m", sources=(source,)).save(folder)
    export(folder, tmp_path / "files")
    collection = Collection.load(tmp_path / "files" / "collection.yaml", overrides=["salt=a-salt-for-tests"])
    build(collection, tmp_path / "again")
    shards = Shards.open(tmp_path / "again")
    found = sorted((shards.read(ref) for ref in shards.refs()), key=len)
    np.testing.assert_array_equal(found[0], grey)
    np.testing.assert_array_equal(found[1], image)


def test_nnunet_s_raw_layout(built: Path, tmp_path: Path) -> None:
    keys = volumes_of(built)
    out = tmp_path / "Dataset501_All"
    export(built, out, keys=keys, layout="nnunet")
    facts = json.loads((out / "dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "lesion": 1}
    assert facts["channel_names"] == {"0": "mri"}
    training = sorted(path.name for path in (out / "labelsTr").iterdir())
    assert facts["numTraining"] == len(training) == 2
    assert len(list((out / "imagesTs").iterdir())) == 1
    for name in training:
        labels = nibabel.load(out / "labelsTr" / name)
        image = nibabel.load(out / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"))
        assert image.shape == labels.shape
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert np.unique(np.asarray(labels.dataobj)).tolist() == [0, 1]  # 3 in the shards
    with pytest.raises(ShardError, match="channels"):
        export(built, tmp_path / "mixed", sources=["all-3d"], layout="nnunet")
    with pytest.raises(ShardError, match="volumes of one dataset"):
        export(built, tmp_path / "pictures", sources=["all-2d"], layout="nnunet")
