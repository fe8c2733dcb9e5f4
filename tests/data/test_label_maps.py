"""Label maps lie on the voxels of their crops, on every way that a crop takes to the device."""

import math

import numpy as np
import pytest
import torch
from medloom.data.loader.batches import collate
from medloom.data.loader.loader import loader
from medloom.data.shards.reader import Shards
from medloom.data.stream.config import ShapeClass, StreamConfig
from medloom.data.stream.stream import Stream
from medloom.pretrain.views import to_float

from .labelled import NAMES, label_of, photo, picture, ramp, sample, volume, write
from .made import all_same

BACKGROUND = ["background", *NAMES.values()]


def split(number):
    """The first sample of a source validates: then its source declares who does, and the others are known."""
    return "val" if number == 0 else "train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shapes = [(40, 70, 80), (70, 40, 66), (9, 50, 90), (33, 90, 20)]
    thick = [(1.0, 1.0, 1.0), None, (4.0, 1.0, 1.0), (1.0, 0.5, 0.5)]
    volumes = [
        volume(f"vol-{n:04d}", shapes[n % 4], n % 3, split=split(n), spacing=thick[n % 4]) for n in range(12)
    ]
    pictures = [
        picture(f"pic-{n:04d}", ((90, 120), (300, 520))[n % 2], n // 2 % 2, split=split(n)) for n in range(8)
    ]
    photos = [photo(f"photo-{n:04d}", split=split(n)) for n in range(4)]
    bare = [sample("bare-0000", ramp((1, 60, 60, 60), 1).astype(np.float32), "mri", split="train")]
    sources = {"vol-3d": volumes, "pic-2d": pictures, "photo-2d": photos, "bare-3d": bare}
    return write(tmp_path_factory.mktemp("labelled"), sources)


def config(folder, **kwargs):
    base = {"shards": str(folder), "crop": [24, 20], "batch_size": 4, "workers": 0, "channels": 1}
    if kwargs.get("ndim") == 3:
        base |= {"crop": [16, 24, 20], "snap": 8}
    return StreamConfig(**{**base, "masks": True, **kwargs})


def batches(config, steps=8, **kwargs):
    opened = loader(Stream(config), rank=0, world=1, start_step=0, steps=steps, **kwargs)
    try:
        return [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in b.items()} for b in opened]
    finally:
        opened.close()


def stored_values(batch):
    """The image of the crops in the numbers of the shards: here the coordinate of each voxel."""
    shape = (-1, *[1] * (batch["mask"].ndim - 1))
    x = to_float(batch, 1)[:, 0]
    return x * batch["std"].view(shape) + batch["mean"].view(shape)


def inside(x, margin=2):
    return x[(slice(None), *[slice(margin, -margin)] * (x.ndim - 1))]


def assert_aligned(batch, margin=0):
    """The label of each voxel is the one of the coordinate that its image holds.

    The least and largest percentiles are clipped in the image, hence there the label is not compared.
    """
    values, mask = stored_values(batch), batch["mask"]
    shape = (-1, *[1] * (mask.ndim - 1))
    kept = (values > batch["low"].view(shape) + 0.01) & (values < batch["high"].view(shape) - 0.01)
    kept &= mask >= 0
    if margin:  # a resampled voxel at the edge of its box sees one side only
        pool = getattr(torch.nn, f"MaxPool{mask.ndim - 1}d")(2 * margin + 1, stride=1)
        near = pool((mask[:, None] < 0).float())[:, 0] > 0
        kept, values, mask = inside(kept, margin) & ~near, inside(values, margin), inside(mask, margin)
    assert kept.any()
    values = values.numpy().astype(np.float64)
    # A centre on the border of two voxels may be rounded to either.
    right = [torch.from_numpy(label_of(values + by)).to(mask.dtype) == mask for by in (-0.01, 0.01)]
    assert bool((right[0] | right[1])[kept].all())


def test_a_volumes_labels_lie_on_its_voxels(folder):
    for batch in batches(config(folder, ndim=3, sources=["vol"])):
        assert batch["mask"].dtype == torch.int16 and batch["mask"].shape == (4, 16, 24, 20)
        assert_aligned(batch)


def test_what_is_padded_is_unknown(folder):
    samples = Stream(config(folder, ndim=3, sources=["vol"]))
    checked = 0
    for position in range(24):
        one = samples[position]
        if one["key"] in ("vol-0002", "vol-0006"):  # 9 slices in 16, 3 in front
            assert (one["mask"][:3] == -1).all() and (one["mask"][12:] == -1).all()
            assert (one["mask"][3:12] >= 0).all()
            checked += 1
    assert checked


@pytest.mark.parametrize("crop", [[24, 20], [200, 260]], ids=["shrunk", "enlarged"])
def test_a_pictures_labels_lie_on_its_pixels(folder, crop):
    for batch in batches(config(folder, sources=["pic"], crop=crop), steps=4):
        assert_aligned(batch, margin=2)


def test_a_jpegs_labels_lie_on_its_pixels(folder):
    for batch in batches(config(folder, sources=["photo"], crop_scale=[0.2, 0.6]), steps=4):
        values = stored_values(batch)
        close = torch.from_numpy(label_of((values.numpy() + 0.5) / 8)).to(torch.int16) == batch["mask"]
        known = batch["mask"] >= 0
        assert known.any() and float(inside(close)[inside(known)].float().mean()) > 0.9


@pytest.mark.parametrize("zoom", [[0.5, 0.5], [0.5, 2.0], [2.0, 2.0]])
def test_zoomed_crops_keep_labels_and_image_together(folder, zoom):
    for batch in batches(config(folder, ndim=3, sources=["vol"], zoom=zoom, snap=1), steps=6):
        assert to_float(batch, 1).shape == (4, 1, 16, 24, 20) == (4, 1, *batch["mask"].shape[1:])
        assert_aligned(batch, margin=2)


def test_a_zoomed_crop_shows_that_many_times_the_tissue(folder):
    stream = Stream(config(folder, ndim=3, sources=["vol"], zoom=[0.5, 2.0], crops_per_sample=4))
    plain = Stream(config(folder, ndim=3, sources=["vol"], crops_per_sample=4))
    factors, of_one = [], {}
    for position in range(64):
        one, as_stored = stream[position], plain[position]
        assert one["key"] == as_stored["key"]  # the order does not change
        ratio = one["spacing"] / as_stored["spacing"]
        assert (ratio > 0.4).all() and (ratio < 2.3).all()
        inner, crop = one["zoomed"]
        assert crop == (16, 24, 20) and all(i <= c for i, c in zip(inner, crop, strict=True))
        # millimetres of the box are those of the crop
        assert np.allclose(np.array(one["image"].shape[1:]) * as_stored["spacing"], inner * one["spacing"])
        factors.append(float(ratio.max()))
        of_one.setdefault(position // 4, []).append(round(factors[-1], 2))
    assert min(factors) < 0.7 and max(factors) > 1.5
    assert all(len(set(several)) > 1 for several in of_one.values())  # crops of one volume differ


def test_a_zoom_of_one_is_the_crop_itself(folder):
    ones = batches(config(folder, ndim=3, zoom=[1.0, 1.0]), steps=3)
    plain = batches(config(folder, ndim=3), steps=3)
    for a, b in zip(ones, plain, strict=True):
        assert torch.allclose(to_float(a, 1), to_float(b, 1), atol=1e-6)
        assert torch.equal(a["mask"], b["mask"]) and torch.equal(a["spacing"], b["spacing"])


@pytest.mark.parametrize("zoom", [[], [0.5, 2.0]], ids=["plain", "zoomed"])
def test_labels_off_or_on_the_pixels_are_the_same(folder, zoom):
    on = batches(config(folder, ndim=3, zoom=zoom), steps=3)
    off = batches(config(folder, ndim=3, zoom=zoom, masks=False), steps=3)
    for a, b in zip(on, off, strict=True):
        assert a.keys() - b.keys() == {"mask"} and torch.equal(a["image"], b["image"])


@pytest.mark.parametrize("more", [{}, {"ndim": 3}, {"ndim": 3, "zoom": [0.5, 2.0]}], ids=["2d", "3d", "zoom"])
def test_workers_hand_over_the_same_batches(folder, more):
    alone = batches(config(folder, **more), steps=5)
    assert all_same(alone, batches(config(folder, workers=2, **more), steps=5))


def test_shape_classes_have_labels_of_their_own(folder):
    parts = [
        {"ndim": 2, "sources": ["pic"]},
        {"ndim": 3, "crop": [16, 24, 20], "snap": 8, "sources": ["vol"], "batch_size": 2},
    ]
    mixed = config(folder, classes=[ShapeClass(**part) for part in parts], zoom=[0.5, 2.0], workers=1)
    assert [part.zoom for part in mixed.each()] == [[], [0.5, 2.0]]
    opened = Stream(mixed).targets
    assert opened is not None and opened.structures == {"vol": BACKGROUND, "pic": BACKGROUND}
    ndims = set()
    for batch in batches(mixed, steps=6):
        ndims.add(batch["mask"].ndim - 1)
        known = batch["mask"][batch["mask"] >= 0]
        assert ((known >= 4) == (batch["mask"].ndim == 3)).all()  # structures of pictures come second
    assert ndims == {2, 3}


def test_image_and_labels_keep_their_slot_together(folder):
    opened = loader(Stream(config(folder, workers=1, ndim=3)), rank=0, world=1, start_step=0, steps=40)
    try:
        running = iter(opened)
        kept = [next(running)["mask"] for _ in range(2)]  # the images go, the label maps stay
        copies = [mask.clone() for mask in kept]
        for _ in range(30):
            next(running)
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    finally:
        opened.close()


def test_sequential_mode_reads_the_label_maps_too(folder):
    for batch in batches(config(folder, ndim=3, sources=["vol"], mode="sequential", buffer=2), steps=4):
        assert_aligned(batch)
    for batch in batches(config(folder, sources=["pic"], mode="sequential", buffer=2), steps=2):
        assert_aligned(batch, margin=2)


def test_a_sample_without_a_label_map_is_unknown_everywhere(folder):
    stream = Stream(config(folder, ndim=3))
    assert stream.targets is not None
    assert stream.targets.structures == {"vol": BACKGROUND}
    found = {one["key"]: one["mask"] for one in (stream[p] for p in range(40))}
    assert {"vol-0000", "vol-0001", "bare-0000"} <= set(found)
    assert (found["bare-0000"] == -1).all() and (found["vol-0001"] >= 0).any()
    assert (found["vol-0000"] == -1).all()  # it validates


def test_boxes_of_label_maps_are_read_by_nearest_neighbour(folder):
    shards = Shards.open(folder)
    ref = shards.find("pic-0001")  # 300 x 520, the row
    whole = shards.read_mask(ref)
    assert whole is not None
    assert np.array_equal(shards.read_mask_resized(ref, (0, 0, 300, 520), (300, 520)), whole)
    some = shards.read_mask_resized(ref, (10.2, 3, 130.2, 503), (40, 50))
    rows = [math.floor(10.2 + (i + 0.5) * 3) for i in range(40)]
    assert np.array_equal(some, whole[rows][:, 8:503:10])
    solid = shards.find("vol-0000")
    inner = shards.read_mask_resized(solid, (4, 5, 6, 20, 25, 26), (8, 40, 10))
    full = shards.read_mask(solid)
    assert full is not None
    assert np.array_equal(inner, full[5:20:2, 5:25].repeat(2, axis=1)[:, :, 7:26:2])
    assert shards.read_mask_resized(shards.find("bare-0000"), (0, 0, 0, 2, 2, 2), (2, 2, 2)) is None


def test_collate_needs_no_ring(folder):
    stream = Stream(config(folder, ndim=3, zoom=[0.5, 2.0]))
    batch = collate([stream[p] for p in range(4)])
    assert batch["image"].ndim == 1 and to_float(batch, 1).shape == (4, 1, 16, 24, 20)
    assert to_float(batch, 3).shape == (4, 3, 16, 24, 20)
