"""Whole slides: tiles lie where they should, at the resolution asked for, tissue only, in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from medloom.data.errors import ReadError
from medloom.data.readers import each, read
from medloom.data.sample import Given
from PIL import Image as Pillow

pytest.importorskip("tiffslide", reason="slides need tiffslide; pip install 'medloom[formats]'")

from .slides import GLASS, halved, specimen, write_huge, write_svs

SLIDE = specimen(1000, 1300)


def stitched(images) -> dict[tuple[int, int], np.ndarray]:
    return {(image.facts["y"], image.facts["x"]): image.array.transpose(1, 2, 0) for image in images}


def test_tiles_of_the_full_resolution_are_the_pixels_that_were_scanned(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE)
    tiles = stitched(read([path], given=Given(mpp=0.25, tile=128, tissue=0)))
    assert len(tiles) == (1000 // 128) * (1300 // 128)
    oracle = tifffile.imread(path, key=0)
    for (y, x), tile in tiles.items():
        assert np.array_equal(tile, oracle[y : y + 128, x : x + 128])


def test_a_stored_level_of_the_resolution_is_taken_as_it_is(tmp_path: Path) -> None:
    images = read([write_svs(tmp_path / "a.svs", SLIDE)], given=Given(mpp=1.0, tile=64, tissue=0))
    level = halved(SLIDE, 4)
    assert len(images) == (250 // 64) * (325 // 64)
    for image in images:
        y, x = image.facts["y"] // 4, image.facts["x"] // 4
        assert np.array_equal(image.array.transpose(1, 2, 0), level[y : y + 64, x : x + 64])
        assert image.spacing == (0.001, 0.001) and image.facts["mpp"] == 1.0


@pytest.mark.parametrize("mpp", [0.5, 0.8, 2.5])
def test_between_levels_tiles_are_parts_of_the_reduced_whole(tmp_path: Path, mpp: float) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE)
    tiles = stitched(read([path], given=Given(mpp=mpp, tile=50, tissue=0)))
    step = 4 if mpp >= 1 else 1
    level, scale = (halved(SLIDE, 4) if step == 4 else SLIDE), mpp / (0.25 * step)
    size = [int(n / scale) for n in level.shape[:2]]
    box = (0, 0, size[1] * scale, size[0] * scale)
    whole = np.asarray(Pillow.fromarray(level).resize(size[::-1], Pillow.Resampling.LANCZOS, box=box))
    assert len(tiles) == (size[0] // 50) * (size[1] // 50)
    for (y, x), tile in tiles.items():
        row, column = round(y / step / scale), round(x / step / scale)
        expected = whole[row : row + 50, column : column + 50].astype(int)
        assert np.abs(tile.astype(int) - expected).max() <= 1


def test_only_tissue_is_kept_and_keeps_its_place(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE)
    everything = {image.part: image for image in read([path], given=Given(mpp=0.25, tile=160, tissue=0))}
    y, x = np.mgrid[:1000, :1300]
    disc = (y - 500) ** 2 + (x - 650) ** 2 < (1000 / 3) ** 2
    kept = read([path], given=Given(mpp=0.25, tile=160, tissue=0.5))
    assert 0 < len(kept) < len(everything)
    names = {image.part for image in kept}
    for part, image in everything.items():
        top, left = image.facts["y"], image.facts["x"]
        share = disc[top : top + 160, left : left + 160].mean()
        assert abs(image.facts["tissue"] - share) < 0.12
        if abs(share - 0.5) > 0.12:
            assert (part in names) == (share > 0.5)
    for image in kept:
        assert np.array_equal(image.array, everything[image.part].array)
        assert image.facts["frame"] == everything[image.part].facts["frame"]


def test_most_tiles_are_spread_over_the_tissue(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE)
    every = [image.part for image in read([path], given=Given(mpp=0.25, tile=100))]
    some = [image.part for image in read([path], given=Given(mpp=0.25, tile=100, most=7))]
    assert len(some) == 7 and some[0] == every[0] and some[-1] == every[-1]
    assert len(read([path], given=Given(mpp=0.25, tile=100, most=10**6))) == len(every)


def test_a_slide_without_levels_is_judged_tile_by_tile(tmp_path: Path, monkeypatch) -> None:
    from medloom.data.readers import slide

    path = write_svs(tmp_path / "a.svs", SLIDE)
    given = Given(mpp=0.25, tile=128)
    expected = {image.part for image in read([path], given=given)}
    monkeypatch.setattr(slide, "_OVERVIEW_PIXELS", 1)
    found = {image.part for image in read([path], given=given)}
    assert len(found ^ expected) <= 0.15 * len(expected)  # those of about half tissue


def test_nothing_is_enlarged_and_resolutions_are_not_guessed(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE, mpp=0.5)
    with pytest.raises(ReadError, match=r"a\.svs: scanned at 0\.5 .* coarser .* 0\.25"):
        read([path], given=Given(mpp=0.25))
    unknown = tmp_path / "b.tif"
    tifffile.imwrite(unknown, SLIDE, tile=(64, 64), photometric="rgb", metadata=None)
    with pytest.raises(ReadError, match=r"b\.tif: states no resolution"):
        read([unknown], given=Given(mpp=1.0))
    images = read([unknown], given=Given(mpp=1.0, tile=64, spacing=(0.0005, 0.0005)))
    assert images and images[0].facts["mpp"] == 1.0


def test_a_tif_is_a_slide_when_the_source_gives_a_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SLIDE, tile=(64, 64), photometric="rgb", metadata=None,
                     resolution=(40000, 40000), resolutionunit="CENTIMETER")  # fmt: skip
    assert len(read([path])) == 1
    images = read([path], given=Given(mpp=0.5, tile=100, tissue=0))
    assert len(images) == 5 * 6 and images[0].facts["format"] == "slide"


def test_a_slide_smaller_than_a_tile_is_one_tile(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", SLIDE)
    (image,) = read([path], given=Given(mpp=1.0, tissue=0))
    assert image.array.shape == (3, 250, 325)


def test_glass_alone_is_refused_with_the_mend(tmp_path: Path) -> None:
    blank = np.full((600, 600, 3), GLASS, np.uint8)
    with pytest.raises(ReadError, match=r"a\.svs: no tile is 50% tissue; lower `tissue`"):
        read([write_svs(tmp_path / "a.svs", blank)], given=Given(mpp=0.25, tile=128))


def test_label_macro_and_words_stay_in_the_file(tmp_path: Path) -> None:
    images = read([write_svs(tmp_path / "a.svs", SLIDE)], given=Given(mpp=0.25, tile=64, tissue=0))
    for image in images:
        assert not (image.array == np.array([255, 0, 255])[:, None, None]).all(axis=0).any()
        assert "ustermann" not in repr((image.facts, image.part))


def test_strips_and_damage_are_refused(tmp_path: Path, monkeypatch) -> None:
    from medloom.data.readers import slide

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SLIDE, photometric="rgb", metadata=None, rowsperstrip=1000,
                     resolution=(40000, 40000), resolutionunit="CENTIMETER")  # fmt: skip
    monkeypatch.setattr(slide, "_CHUNK_PIXELS", 1 << 20)
    with pytest.raises(ReadError, match=r"a\.tif: stored in pieces of 1,300,000 pixels"):
        read([path], given=Given(mpp=0.5))
    path = write_svs(tmp_path / "b.svs", SLIDE)
    data = path.read_bytes()
    for length in (len(data) // 2, 2000, 100):
        path.write_bytes(data[:length])
        with pytest.raises(ReadError, match=r"b\.svs: .*copy or download it again"):
            read([path], given=Given(mpp=0.25, tile=128, tissue=0))
    grey = tmp_path / "c.tif"
    tifffile.imwrite(grey, SLIDE[..., 0], tile=(64, 64), metadata=None)
    with pytest.raises(ReadError, match=r"c\.tif: .*expected 8-bit colour"):
        read([grey], given=Given(mpp=0.5, spacing=(0.00025, 0.00025)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_a_slide_of_ten_billion_pixels_is_read_in_little_memory(tmp_path: Path) -> None:
    path = write_huge(tmp_path / "huge.svs")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medloom.data.readers import each\n"
        "from medloom.data.sample import Given\n"
        "list(each([Path(sys.argv[1])], given=Given(mpp=0.5, most=1)))\n"
        # Not ru_maxrss, which starts at what the process that forked had.
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "count = sum(1 for _ in each([Path(sys.argv[1])], given=Given(mpp=0.5, most=60)))\n"
        "print(count, before, peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    count, first, last = map(int, done.stdout.split())
    assert count == 60
    assert last < 1_000_000 and last - first < 200_000  # KiB; the slide is 30,000,000


def test_a_reader_that_is_left_early_has_decoded_little(tmp_path: Path) -> None:
    path = write_huge(tmp_path / "huge.svs", 20_000)
    images = each([path], given=Given(mpp=0.25, tile=256))
    assert next(images).array.shape == (3, 256, 256)
    images.close()
