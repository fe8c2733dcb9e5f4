"""data/inspect/gallery.py, thumbnails.py: what is shown is what is stored, the right way up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from medloom.data import open_shards
from medloom.data.collection import Collection
from medloom.data.errors import ConfigError, ShardError
from medloom.data.ingest.build import build
from medloom.data.inspect import gallery
from medloom.data.inspect.gallery import contact_sheet, table
from medloom.data.inspect.thumbnails import OUTLINES, draw_outlines, thumbnail, window_of
from medloom.data.sample import Modality
from medloom.data.shards.index import index_path
from medloom.data.shards.reader import Shards
from PIL import Image, ImageDraw

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
    """Write [D, H, W] with millimetres (D, H, W), head up, front up, right right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing[::-1], 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine), path)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def shards_of(root: Path, *sources: dict[str, Any]) -> Shards:
    (root / "c.yaml").write_text(
        yaml.safe_dump({"name": "tiny", "salt": "a salt for tests", "sources": list(sources)})
    )
    build(Collection.load(root / "c.yaml"), root / "shards")
    return open_shards(root / "shards")


def source(dataset: str, **keys: Any) -> dict[str, Any]:
    return {"dataset": dataset, "layout": "image_folder", "root": dataset, "licence": "CC0-1.0", **keys}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def only(shards: Shards) -> Any:
    refs = list(shards.refs())
    assert len(refs) == 1
    return refs[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Two ultrasound datasets, a table of CT and X-ray pictures, a CT volume with a mask."""
    root = tmp_path_factory.mktemp("mixed")
    for number in range(6):
        picture(root / f"us_a/benign/{number}.png", noise(20, 30, seed=number))
        picture(root / f"grey/{number}.png", noise(24, 24, seed=50 + number))
    picture(root / "us_b/malignant/0.png", noise(30, 20, seed=99))
    rows = [f"{number}.png,{'CT' if number == 4 else 'XR'}" for number in range(6)]
    (root / "grey/manifest.csv").write_text("\n".join(["path,modality", *rows]))
    body = np.full((12, 16, 20), -1000, np.int16)
    body[3:9, 4:12, 5:15] = 40
    mask = np.zeros(body.shape, np.uint8)
    mask[7:9, 6:10, 7:13] = 1  # not in the middle plane
    volume(root / "vol/1.nii.gz", body)
    volume(root / "vol/1_mask.nii.gz", mask)
    return shards_of(
        root,
        source("us_a", modality="ultrasound", organ="breast"),
        source("us_b", modality="ultrasound", organ="breast"),
        source("grey") | {"layout": "table", "options": {"modality": "modality"}},
        source(
            "vol", modality="ct", organ="liver", mask_classes={1: "liver"}, options={"mask_suffix": "_mask"}
        ),
    )


# ---- thumbnails


def test_a_volume_is_shown_as_a_radiologist_sees_it(tmp_path: Path) -> None:
    array = np.zeros((16, 16, 16), np.float32)
    array[:, 12:, :] = 50  # front
    array[:, :, 12:] = 100  # patient's right
    array[12:] = 200  # head
    array[0, 0, 0] = 1  # keeps the middle of the foreground away from the faces
    volume(tmp_path / "v/a.nii.gz", array)
    shards = shards_of(tmp_path, source("v", modality="mri"))
    tile = thumbnail(shards, only(shards), 64)[..., 0].astype(int)
    assert tile.shape == (96, 64)
    axial, coronal, sagittal = tile[:64], tile[64:, :32], tile[64:, 32:]
    assert axial[32, 2] > axial[2, 40] > axial[60, 40] == 0  # right on the left, then the front, on top
    assert coronal[1, 16] > coronal[20, 2] > coronal[20, 30] == 0  # head on top, right on the left
    assert sagittal[1, 16] > sagittal[20, 2] > sagittal[20, 30] == 0  # head on top, front on the left


def test_thick_slices_keep_their_proportions(tmp_path: Path) -> None:
    volume(
        tmp_path / "v/a.nii.gz", np.full((5, 40, 20), 9, np.uint8) + noise(5, 40, 20) // 2, spacing=(8, 1, 1)
    )
    shards = shards_of(tmp_path, source("v", modality="mri"))
    lit = thumbnail(shards, only(shards), 80)[..., 0] > 0
    axial, coronal, sagittal = lit[:80], lit[80:, :40], lit[80:, 40:]
    for plane, (height, width) in ((axial, (80, 40)), (coronal, (40, 20)), (sagittal, (40, 40))):
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)


def test_hounsfield_units_get_a_window_by_organ() -> None:
    stats = {
        "percentiles": {"0.5": [-1000.0], "99.5": [1500.0]},
        "min": [-1024.0], "max": [3000.0], "mean": [0.0], "std": [1.0], "foreground": {"rule": "hu"},
    }  # fmt: skip
    meta = {"key": "k", "ndim": 3, "dtype": "int16", "stats": stats}
    windows = {
        organ: tuple(float(end[0]) for end in window_of(meta | {"organ": organ}))
        for organ in ("liver", "brain", "x")
    }
    assert windows == {"liver": (-160.0, 240.0), "brain": (0.0, 80.0), "x": (-160.0, 240.0)}
    stats["foreground"] = {"rule": "otsu"}
    assert tuple(float(end[0]) for end in window_of(meta | {"organ": "liver"})) == (-1000.0, 1500.0)


def test_air_is_black_and_soft_tissue_is_grey(mixed: Shards) -> None:
    (ref,) = mixed.refs("vol-3d")
    tile = thumbnail(mixed, ref, 80)
    assert tile[0, 40].tolist() == [0, 0, 0]
    # The mask begins two voxels inside the body: between the two lies plain tissue of 40 HU.
    assert tile[40, 80 * 6 // 20].tolist() == [128, 128, 128]


def test_the_largest_section_of_the_mask_is_outlined(mixed: Shards) -> None:
    (ref,) = mixed.refs("vol-3d")
    tile = thumbnail(mixed, ref, 80)
    drawn = (tile == OUTLINES[0]).all(-1)
    assert drawn[:80].any() and drawn[80:, :40].any() and drawn[80:, 40:].any()
    # 16 x 20 voxels in 64 x 80 pixels: the mask of 4 x 6 voxels is 16 x 24 pixels, seen from the other side.
    rows, columns = np.flatnonzero(drawn[:80].any(1)), np.flatnonzero(drawn[:80].any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (32, 47, 28, 51)


def test_outlines_take_a_colour_per_class_and_spare_the_inside_and_the_edge() -> None:
    labels = np.zeros((30, 30), np.uint16)
    labels[5:15, 5:15], labels[15:25, 5:15], labels[:, 25:] = 1, 2, 300
    drawn = draw_outlines(np.zeros((30, 30, 3), np.uint8), labels)
    assert drawn[5, 10].tolist() == OUTLINES[0].tolist()
    assert drawn[24, 10].tolist() == OUTLINES[1].tolist()
    assert drawn[10, 25].tolist() == OUTLINES[299 % len(OUTLINES)].tolist()
    assert not drawn[8:13, 8:13].any()
    assert not drawn[4, 5:15].any() and not drawn[10, 15:25].any()  # the background's side of a border
    assert not drawn[10, 29].any()


def test_colour_stays_colour_and_is_fitted_not_cropped(tmp_path: Path) -> None:
    stripes = np.zeros((20, 40, 3), np.uint8)
    stripes[:, :20] = (200, 30, 10)
    stripes[:, 20:] = (10, 90, 250)
    picture(tmp_path / "c/a.png", stripes)
    shards = shards_of(tmp_path, source("c", modality="dermoscopy"))
    tile = thumbnail(shards, only(shards), 40)
    assert tile[20, 5].tolist() == [200, 30, 10]
    assert tile[20, 35].tolist() == [10, 90, 250]
    assert not tile[:10].any() and not tile[30:].any()


def test_a_constant_image_has_a_thumbnail(tmp_path: Path) -> None:
    picture(tmp_path / "c/a.png", np.full((20, 20), 7, np.uint8))
    volume(tmp_path / "v/a.nii.gz", np.zeros((6, 6, 6), np.int16))
    shards = shards_of(tmp_path, source("c", modality="oct"), source("v", modality="mri"))
    assert [thumbnail(shards, ref, 32).shape for ref in shards.refs()] == [(32, 32, 3), (48, 32, 3)]


def test_a_sixteen_bit_picture_is_stretched(tmp_path: Path) -> None:
    picture(tmp_path / "c/a.png", (np.linspace(1000, 1400, 64)[None].repeat(64, 0)).astype(np.uint16))
    shards = shards_of(tmp_path, source("c", modality="x-ray"))
    tile = thumbnail(shards, only(shards), 32)
    assert tile.min() < 8 and tile.max() > 247


# ---- the sheet


def test_a_row_for_each_modality_and_dimensionality(mixed: Shards, tmp_path: Path) -> None:
    groups = gallery._groups(mixed)
    assert [(str(group.modality), group.ndim, group.count) for group in groups] == [
        ("x-ray", 2, 5), ("ct", 2, 1), ("ct", 3, 1), ("ultrasound", 2, 7),
    ]  # fmt: skip
    with Image.open(contact_sheet(mixed, tmp_path / "sheet.png", per_group=5)) as sheet:
        tile, rows = gallery._TILE, len(groups)
        heights = rows * (gallery._HEADING + gallery._CAPTION) + (rows - 1) * tile + tile * 3 // 2
        wanted = 2 * gallery._MARGIN + 5 * (tile + gallery._GAP) - gallery._GAP
        assert sheet.size == (wanted, gallery._TITLE + gallery._MARGIN + heights)


def test_the_same_shards_give_the_same_bytes(mixed: Shards, tmp_path: Path) -> None:
    first = contact_sheet(mixed, tmp_path / "a.png").read_bytes()
    assert contact_sheet(open_shards(mixed.root), tmp_path / "b.png").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_every_dataset_of_a_modality_is_shown(mixed: Shards) -> None:
    ultrasound = next(group for group in gallery._groups(mixed) if group.modality == Modality.ULTRASOUND)
    chosen = [mixed.meta(ref) for ref in gallery._choose(mixed, ultrasound, 4)]
    assert [meta["dataset"] for meta in chosen] == ["us_a", "us_a", "us_a", "us_b"]
    assert len({meta["key"] for meta in chosen}) == 4
    assert len(gallery._choose(mixed, ultrasound, 100)) == 7
    assert len(gallery._choose(mixed, ultrasound, 1)) == 1


def test_one_modality_among_others_is_found_with_and_without_the_index(mixed: Shards) -> None:
    group = next(
        group for group in gallery._groups(mixed) if (group.modality, group.ndim) == (Modality.CT, 2)
    )
    (ref,) = gallery._choose(mixed, group, 8)
    assert mixed.meta(ref)["modality"] == "ct"
    path = index_path(
        mixed.root / next(shard.file for shard in mixed.manifest.shards if "grey" in shard.file)
    )
    saved = path.read_bytes()
    path.unlink()
    assert gallery._choose(mixed, group, 8) == [ref]
    path.write_bytes(saved)


def test_text_never_leaves_its_box() -> None:
    pen = gallery._Pen(ImageDraw.Draw(Image.new("RGB", (400, 40))))
    for width in (0, 5, 50, 120, 300):
        assert pen.text(
            (0, 20), "ct_mr_totalsegmentator_samples · 154×242×256", 11, WHITE, width=width
        ) <= max(width, 12)
    image = Image.new("RGB", (200, 40))
    gallery._Pen(ImageDraw.Draw(image)).text((0, 20), "a" * 100, 13, WHITE, width=90)
    assert not np.asarray(image)[:, 92:].any()


@pytest.mark.parametrize(
    ("shape", "spacing", "text"),
    [
        ([3, 480, 640], None, "480×640"),
        ([1, 128, 128], [0.5, 0.5], "128×128 · 0.5 mm"),
        ([1, 58, 248, 175], [2.39705, 0.8125, 0.8124], "58×248×175 · 2.4×0.81² mm"),
        ([10, 20, 68, 52], [6.0, 3.0, 2.0], "10 × 20×68×52 · 6×3×2 mm"),
    ],
)
def test_measures_are_short(shape: list[int], spacing: list[float] | None, text: str) -> None:
    assert gallery._measures({"shape": shape, "spacing": spacing}) == text


def test_progress_reaches_the_total(mixed: Shards, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    contact_sheet(mixed, tmp_path / "s.png", per_group=2, progress=lambda *call: seen.append(call))
    assert [done for done, _, _ in seen] == list(range(7))
    assert seen[-1] == (6, 6, "contact sheet")


def test_refusals(mixed: Shards, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="per_group: 0 < 1"):
        contact_sheet(mixed, tmp_path / "s.png", per_group=0)
    with pytest.raises(ShardError, match="cannot be written"):
        contact_sheet(mixed, tmp_path / "no folder" / "s.png")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "c/a.png", noise(40, 40))
    shards = shards_of(tmp_path, source("c", modality="oct"))
    tar = shards.root / shards.manifest.shards[0].file
    data = bytearray(tar.read_bytes())
    data[data.rindex(b"b2nd") + 900] ^= 0xFF
    tar.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=tar.name):
        contact_sheet(open_shards(shards.root), tmp_path / "s.png")


# ---- the table


def test_the_table_says_what_the_manifest_says(mixed: Shards) -> None:
    rows = {row["source"]: row for row in table(mixed)}
    assert list(rows) == [entry.id for entry in mixed.manifest.sources]
    assert {
        name: (row["modality"], row["organ"], row["ndim"], row["count"]) for name, row in rows.items()
    } == {
        "us_a-2d": ("ultrasound", "breast", 2, 6),
        "us_b-2d": ("ultrasound", "breast", 2, 1),
        "grey-2d": ("x-ray 5, ct 1", "other", 2, 6),
        "vol-3d": ("ct", "liver", 3, 1),
    }
    assert rows["us_a-2d"]["labels"] == "class (1)"
    assert rows["us_a-2d"]["licence"] == "CC0-1.0"
    assert sum(row["bytes"] for row in rows.values()) == sum(shard.bytes for shard in mixed.manifest.shards)


def test_many_modalities_are_cut_short() -> None:
    assert gallery._shares({"a": 1, "b": 5, "c": 2, "d": 1, "e": 1}) == "b 5, c 2, a 1, 2 more"
