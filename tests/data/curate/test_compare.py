"""The comparison: near 1 for the same picture however it was changed, far from it for another."""

from __future__ import annotations

import io

import numpy as np
from medloom.data.curate.compare import align, scores
from medloom.data.curate.findings import Thresholds
from medloom.data.curate.thumbs import thumb_of
from PIL import Image as Pillow

WHOLE = np.array([[[0.0, 1.0], [0.0, 1.0]]], np.float32)


def jpeg(array: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "JPEG", quality=40)
    return np.asarray(Pillow.open(io.BytesIO(buffer.getvalue())))


def test_changed_copies_agree_and_strangers_do_not(image):
    least = Thresholds().near_2d
    pictures = [image(seed) for seed in range(12)]
    thumbs = np.stack([thumb_of(p[None]) for p in pictures])
    for change in (jpeg, lambda a: a[4:, 6:], lambda a: a[::2, ::2], lambda a: 255 * (a / 255) ** 1.4):
        changed = np.stack([thumb_of(change(p)[None]) for p in pictures])
        assert scores(changed, thumbs, np.repeat(WHOLE, 12, axis=0)).min() > least
    strangers = scores(np.roll(thumbs, 1, axis=0), thumbs, np.repeat(WHOLE, 12, axis=0))
    assert strangers.max() < 0.8


def test_registration_finds_the_crop(image):
    picture = image(3, (640, 640))
    part = picture[26:, : 640 - 32]
    left = thumb_of(part[None])[None].astype(np.float32)
    right = thumb_of(picture[None])[None].astype(np.float32)
    window, alike = align(left, right, WHOLE)
    assert np.allclose(window[0], [[26 / 640, 1], [0, 1 - 32 / 640]], atol=0.008)
    assert alike[0] > 0.98


def test_a_shared_outline_is_no_copy(image):
    """Two textures in the same bright disc on black: alike at a glance, but not the same picture."""
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    disc = (x**2 + y**2 < 0.9).astype(float)
    one, other = (disc * (160 + 0.3 * image(seed, (160, 160))) for seed in (1, 2))
    left, right = (thumb_of(a[None])[None].astype(np.float32) for a in (one, other))
    _, alike = align(left, right, WHOLE)
    assert alike[0] > 0.9
    assert scores(left, right, WHOLE)[0] < 0.9


def test_many_pairs_are_done_in_blocks_with_the_same_scores(image, monkeypatch):
    thumbs = np.stack([thumb_of(image(seed)[None]) for seed in range(6)])
    windows = np.repeat(WHOLE, 6, axis=0)
    whole = scores(thumbs, thumbs, windows)
    monkeypatch.setattr("medloom.data.curate.compare._BLOCK", 64 * 64 * 2)
    assert np.allclose(scores(thumbs, thumbs, windows), whole, atol=1e-5)
