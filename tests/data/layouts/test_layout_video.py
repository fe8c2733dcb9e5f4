"""data/layouts/video.py: a record a file, a frame every so many seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import CollectionError, ConfigError


def test_folders_are_classes_and_splits(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(
        tmp_path,
        "train/polyp/p1_a.mp4",
        "train/polyp/deep/p1_b.MOV",
        "val/none/p2_a.avi",
        "loose.mkv",
        "x.txt",
    )
    put(tmp_path, "val/none/p3_a.webm", data=b"")
    options = {
        "class_folders": True,
        "split_folders": True,
        "subject_pattern": r"(p\d)_",
        "every": 2.5,
        "most": 9,
    }
    found = scan("video", tmp_path, options=options)
    assert {(r.subject, r.split, r.labels["class"]) for r in found.records.values()} == {
        ("p1", "train", "polyp"),
        ("p2", "val", "none"),
    }
    assert set(found.refused) == {"loose.mkv", "val/none/p3_a.webm"}
    given = found.records["train/polyp/p1_a.mp4"].given
    assert given is not None and (given.every, given.most) == (2.5, 9)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": -1}, {"every": float("nan")}, {"most": -1}])
def test_an_interval_that_makes_no_sense_is_refused(tmp_path: Path, scan: Callable, options: dict) -> None:
    with pytest.raises(ConfigError, match=r"every: |most: "):
        scan("video", tmp_path, options=options)


def test_a_folder_without_videos_stops_the_scan(tmp_path: Path, scan: Callable) -> None:
    with pytest.raises(CollectionError, match="no video below it"):
        scan("video", tmp_path)


def test_a_frame_a_second_reaches_the_shards(tmp_path: Path, stored: Callable) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed (extra `formats`)")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 5 * number, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    from medloom.data.collection import Collection, SourceConfig, source_of_config
    from medloom.data.ingest.build import build
    from medloom.data.shards.reader import Shards

    config = SourceConfig(dataset="d", layout="video", root=str(tmp_path), modality="endoscopy")
    source = source_of_config(config, Path("/"), "s")
    result = build(
        Collection("all", tmp_path, (source,), (), "a salt of sixteen characters"), tmp_path / "out"
    )
    assert result.failures == []
    shards = Shards.open(tmp_path / "out")
    samples = sorted((shards.sample(ref) for ref in shards.refs()), key=lambda sample: sample.meta["frame"])
    assert [round(float(sample.image.mean()) / 50) for sample in samples] == [0, 1, 2, 3]
    assert len({sample.meta["subject"] for sample in samples}) == 1
