"""Statistics of a folder: counts that add up, sampling that repeats, no pixel read, no person named."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ShardError
from medloom.data.ingest.build import build
from medloom.data.inspect import statistics_pictures
from medloom.data.inspect.statistics import QUANTITIES, by, statistics
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow


@pytest.fixture(scope="module")
def built(tmp_path_factory, known_collection):
    folder = tmp_path_factory.mktemp("statistics")
    path = known_collection(folder / "source")
    build(Collection.load(path), folder / "built", shard_bytes=12_000)
    return folder / "built"


@pytest.fixture(scope="module")
def known_collection():
    """Volumes of ten subjects at two spacings, pictures of two classes: small, and known by heart."""
    import nibabel

    def make(folder):
        folder.mkdir(parents=True)
        (folder / "ct").mkdir()
        (folder / "derm").mkdir()
        generator = np.random.default_rng(0)
        rows = ["path,subject,split"]
        for number in range(6):
            volume = generator.normal(-900, 30, (24, 22, 20)).astype(np.int16)
            affine = np.diag([1.0, 1.0, 5.0 if number < 2 else 1.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "ct" / f"Mustermann_{number}.nii.gz")
            rows.append(f"Mustermann_{number}.nii.gz,Mustermann{number // 2},train")
        (folder / "ct" / "manifest.csv").write_text("\n".join(rows) + "\n")
        rows = ["path,label,subject"]
        for number in range(10):
            Pillow.fromarray(generator.integers(0, 255, (48, 40, 3), np.uint8)).save(
                folder / "derm" / f"{number}.png"
            )
            rows.append(f"{number}.png,{'ab'[number % 5 == 0]},Mustermann{number}")
        (folder / "derm" / "manifest.csv").write_text("\n".join(rows) + "\n")
        path = folder / "collection.yaml"
        path.write_text(
            "name: small\nsalt: a-salt-for-tests\nsources:\n"
            "  - {dataset: ct, layout: table, root: ct, modality: ct, organ: chest, licence: CC0-1.0,\n"
            "     options: {subject: subject, split: split}}\n"
            "  - {dataset: derm, layout: table, root: derm, modality: dermoscopy, organ: skin,\n"
            "     licence: CC-BY-4.0, options: {label: label, subject: subject}}\n"
        )
        return path

    return make


def test_counts_are_those_of_the_collection(built):
    report = statistics(built)
    assert report["samples"] == report["read"] == 16
    assert by(report, "modality") == {"dermoscopy": 10, "ct": 6}
    assert by(report, "licence") == {"CC-BY-4.0": 10, "CC0-1.0": 6}
    assert by(report, "split") == {"none": 10, "train": 6}
    ct, derm = report["sources"]["ct-3d"], report["sources"]["derm-2d"]
    assert (ct["subjects"], derm["subjects"]) == (3, 10)
    assert list(derm["labels"].values()) == [{"a": 8, "b": 2}]
    assert ct["raw"] == 6 * 24 * 22 * 20 * 2
    assert ct["ratio"] == pytest.approx(ct["raw"] / ct["stored"], rel=1e-3)
    assert report["bytes"] == sum(path.stat().st_size for path in built.glob("*.tar"))
    side = derm["quantities"]["side"]
    assert (side["min"], side["max"], sum(side["histogram"])) == (48, 48, 10)
    assert "spacing" not in derm["quantities"]
    spacing = ct["quantities"]["slice_spacing"]
    assert (spacing["min"], spacing["p50"], spacing["max"]) == (1, 1, 5)


def test_every_sample_is_in_the_histogram_of_what_is_known(built):
    report = statistics(built)
    for source in report["sources"].values():
        for name, found in source["quantities"].items():
            assert sum(found["histogram"]) == found["known"] <= source["read"]
            assert len(found["histogram"]) == len(report["quantities"][name]["edges"]) - 1
            assert found["min"] <= found["p5"] <= found["p50"] <= found["p95"] <= found["max"]
    assert set(report["quantities"]) == set(QUANTITIES)


def test_a_sample_is_bounded_repeats_and_is_scaled(built):
    report = statistics(built, sample=5)
    assert [source["read"] for source in report["sources"].values()] == [5, 5]
    assert report["read"] == 10
    assert by(report, "modality") == {"dermoscopy": 10, "ct": 6}
    assert statistics(built, sample=5) == report
    assert statistics(built, sample=1000)["sources"] == statistics(built)["sources"]
    with pytest.raises(ShardError, match="--sample 0"):
        statistics(built, sample=0)


def test_the_result_does_not_depend_on_the_processes(built):
    calls = []
    assert statistics(built, workers=2, progress=lambda *call: calls.append(call)) == statistics(built)
    assert calls[-1][:2] == (16, 16)


def test_pixels_are_not_read(built, monkeypatch):
    read = []
    for name in ("pread", "preadv"):
        real = getattr(os, name)

        def counted(fd, what, at, real=real):
            read.append(what if isinstance(what, int) else sum(map(len, what)))
            return real(fd, what, at)

        monkeypatch.setattr(os, name, counted)
    statistics(built)
    shards = Shards.open(built)
    metadata = sum(len(json.dumps(shards.meta(ref), separators=(",", ":"))) for ref in shards.refs())
    assert 0 < sum(read) < 3 * metadata < sum(path.stat().st_size for path in built.glob("*.tar"))


def test_nothing_in_the_report_names_a_person(built):
    text = json.dumps(statistics(built))
    shards = Shards.open(built)
    assert "Mustermann" not in text
    for ref in shards.refs():
        meta = shards.meta(ref)
        assert meta["subject"] not in text
        assert meta["key"] not in text


def test_pictures_are_drawn_on_as_many_pages_as_needed(built, tmp_path, monkeypatch):
    report = statistics(built)
    paths = statistics_pictures.draw(report, tmp_path / "one")
    assert [path.name for path in paths] == ["counts.png", "quantities.png", "labels.png"]
    for path in paths:
        with Pillow.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 200
        assert (pixels < 200).mean() > 0.005  # something is drawn
    monkeypatch.setattr(statistics_pictures, "ROWS", 1)
    report["sources"]["derm-2d"]["labels"] = {}
    names = [path.name for path in statistics_pictures.draw(report, tmp_path / "more")]
    assert names == ["counts.png", "quantities-1.png", "quantities-2.png"]
