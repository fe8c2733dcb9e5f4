"""The built-in phantom collection and the real one, from files to verified shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.phantoms.phantoms import generate
from medloom.data.shards.check import check
from medloom.data.shards.reader import Shards

COLLECTIONS = Path(__file__).resolve().parents[2] / "configs" / "collections"


def everything_reads(folder: Path) -> None:
    """Every sample decodes, in full and in part, and its metadata describes it."""
    shards = Shards.open(folder)
    keys = set()
    for ref in shards.refs():
        sample, meta = shards.sample(ref), shards.meta(ref)
        assert list(sample.image.shape) == meta["shape"]
        assert sample.image.dtype.name == meta["dtype"]
        assert (sample.mask is not None) == (meta["mask"] is not None)
        if sample.mask is not None:
            assert sample.mask.shape == sample.image.shape[1:]
            assert set(np.unique(sample.mask)) - {0} == set(meta["mask"]["present"])
        low, high = meta["stats"]["foreground"]["box"]
        size = [b - a for a, b in zip(low, high, strict=True)]
        place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        np.testing.assert_array_equal(shards.read(ref, low, size), sample.image[(slice(None), *place)])
        keys.add(sample.key)
    assert len(keys) == len(shards) > 0


def webdataset_counts(folder: Path) -> int:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None))


def test_the_phantom_collection(tmp_path, files_of):
    yaml = generate(tmp_path / "phantoms", subjects=6, size=32)
    collection = Collection.load(yaml)
    result = build(collection, tmp_path / "one", shard_bytes=200_000)
    assert result.failures == []
    assert {source.ndim for source in result.manifest.sources} == {2, 3}
    assert len({modality for source in result.manifest.sources for modality in source.modalities}) >= 5
    assert check(tmp_path / "one") == []
    everything_reads(tmp_path / "one")
    assert webdataset_counts(tmp_path / "one") == result.manifest.count
    build(collection, tmp_path / "two", shard_bytes=200_000, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.realdata
def test_the_real_collection(realdata, tmp_path):
    collection = Collection.load(COLLECTIONS / "realdata.yaml", root=realdata)
    out = tmp_path / "out"
    result = build(collection, out, shard_bytes=8 << 20, workers=2)
    assert result.failures == []
    assert result.manifest.count > 3000
    assert result.manifest.held_out.not_checked == []
    assert check(out) == []
    everything_reads(out)
    assert webdataset_counts(out) == result.manifest.count
    rows = [json.loads(line) for line in (out / "excluded.jsonl").read_text().splitlines()]
    assert len(rows) == sum(result.manifest.held_out.excluded.values()) > 500

    # Stored size against the .nii.gz of the CT and MR volumes that are integers in the file.
    ours = sum(s.bytes for s in result.manifest.sources if s.dataset in VOLUMES)
    theirs = sum(path.stat().st_size for name in VOLUMES for path in (realdata / name).rglob("*.nii.gz"))
    assert ours < 0.85 * theirs


VOLUMES = ("ct_chest_covidctmd", "ct_mr_totalsegmentator_samples", "mr_brain_upenn_studyforrest")
