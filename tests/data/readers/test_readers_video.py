"""Videos: every frame as it was encoded, one for every so many seconds, turned, and damage refused."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import each, read
from medloom.data.sample import Given

pytest.importorskip("av", reason="videos need PyAV; pip install 'medloom[formats]'")

from .clips import pattern, write_clip


def test_every_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    frames = pattern(7)
    images = read([write_clip(tmp_path / "a.mkv", frames)])
    assert np.array_equal(np.stack([image.array for image in images]), np.stack(frames).transpose(0, 3, 1, 2))
    assert [image.facts["frame"] for image in images] == list(range(7))
    assert [image.facts["time"] for image in images] == pytest.approx([0.1 * i for i in range(7)])
    assert "Mustermann" not in repr([(image.facts, image.part) for image in images])


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "h264"), ("avi", "mpeg4"), ("mov", "mjpeg"), ("webm", "vp9"), ("mpg", "mpeg2video")],
)
def test_the_usual_containers_and_codecs(tmp_path: Path, suffix: str, codec: str) -> None:
    smooth = [np.full((48, 64, 3), (40 + 4 * i, 90, 200 - 4 * i), np.uint8) for i in range(25)]
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    images = read([write_clip(tmp_path / f"a.{suffix}", smooth, codec, pixels, rate=25)])
    assert len(images) == 25
    for image, frame in zip(images, smooth, strict=True):
        assert np.abs(image.array.astype(int) - frame.transpose(2, 0, 1)).max() <= 8


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (0.5, [0, 5, 10, 15, 20]),
        (1.0, [0, 10, 20]),
        (0.25, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
        (60.0, [0]),
    ],
)
def test_a_frame_for_every_so_many_seconds(tmp_path: Path, every: float, expected: list[int]) -> None:
    frames = pattern(25)
    images = read([write_clip(tmp_path / "a.mkv", frames)], given=Given(every=every))
    assert [image.facts["frame"] for image in images] == expected
    for image in images:
        assert np.array_equal(image.array, frames[image.facts["frame"]].transpose(2, 0, 1))


def test_uneven_times_count_and_not_numbers_of_frames(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 1.4, 1.5, 2.9, 3.0, 3.1, 6.5]
    path = write_clip(tmp_path / "a.mkv", pattern(9), times=times)
    assert [image.facts["frame"] for image in read([path], given=Given(every=1.0))] == [0, 3, 5, 6, 8]


def test_most_frames_are_spread_over_the_whole(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", pattern(40))
    assert [image.facts["frame"] for image in read([path], given=Given(most=4))] == [0, 10, 20, 30]
    assert len(read([path], given=Given(most=4, every=2.0))) == 2


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_clip_filmed_on_its_side_is_turned(tmp_path: Path, turn: int) -> None:
    frames = pattern(2)
    images = read([write_clip(tmp_path / "a.mov", frames, "mjpeg", "yuvj444p", turn=turn)])
    upright = read([write_clip(tmp_path / "b.mov", frames, "mjpeg", "yuvj444p")])
    assert np.array_equal(images[1].array, np.rot90(upright[1].array, turn // 90, axes=(1, 2)))


def test_grey_clips_have_one_channel(tmp_path: Path) -> None:
    grey = [frame[..., 0] for frame in pattern(3)]
    images = read([write_clip(tmp_path / "a.mkv", grey, "ffv1", "gray")])
    assert np.array_equal(np.stack([image.array[0] for image in images]), np.stack(grey))
    deep = [frame.astype(np.uint16) * 200 for frame in grey]
    images = read([write_clip(tmp_path / "b.mkv", deep, "ffv1", "gray16le")])
    assert images[0].array.dtype == np.uint16
    assert np.array_equal(np.stack([image.array[0] for image in images]), np.stack(deep))
    as_rgb = [np.repeat(frame[..., None], 3, axis=2) for frame in grey]
    assert read([write_clip(tmp_path / "c.mkv", as_rgb)])[0].array.shape == (1, 48, 64)


def test_one_frame_is_in_memory_at_a_time(tmp_path: Path) -> None:
    frames = pattern(60, 480, 640)  # 55 MB
    path = write_clip(tmp_path / "a.mkv", frames)
    del frames
    tracemalloc.start()
    count = sum(1 for _ in each([path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 and peak < 8 * 480 * 640 * 3


def test_a_reader_that_is_left_early_closes_the_file(tmp_path: Path) -> None:
    images = each([write_clip(tmp_path / "a.mkv", pattern(9))])
    first = list(itertools.islice(images, 2))
    images.close()
    assert len(first) == 2 and len(read([tmp_path / "a.mkv"])) == 9


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("mp4", "h264"), ("avi", "mpeg4")])
def test_a_clip_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, codec: str) -> None:
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    path = write_clip(tmp_path / f"a.{suffix}", pattern(40), codec, pixels)
    data = path.read_bytes()
    for length in (len(data) // 2, 300, 40):
        path.write_bytes(data[:length])
        with pytest.raises(ReadError, match=rf"a\.{suffix}: .*(cut short|not a video|no video)"):
            read([path])


def test_damage_that_the_decoder_reports_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pattern(35), "h264", "yuv420p")
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, 2 * len(data) // 3)  # in the frames: the index is at the end
    data[middle] = np.random.default_rng(0).bytes(len(data[middle]))
    path.write_bytes(data)
    with pytest.raises(ReadError, match=r"a\.mp4: .*damaged"):
        read([path])


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(600))
    (tmp_path / "b.avi").write_bytes(b"")
    for path in (tmp_path / "a.mp4", tmp_path / "b.avi", tmp_path / "c.mkv"):
        with pytest.raises(ReadError, match=path.name):
            read([path])


def test_a_clip_inside_an_archive(tmp_path: Path) -> None:
    import tarfile

    path = write_clip(tmp_path / "a.mkv", pattern(4))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("clips/a.mkv")
        info.size = path.stat().st_size
        tar.addfile(info, io.BytesIO(path.read_bytes()))
    images = read([Path(f"{tmp_path}/b.tar::clips/a.mkv")])
    assert [image.array.tolist() for image in images] == [image.array.tolist() for image in read([path])]
