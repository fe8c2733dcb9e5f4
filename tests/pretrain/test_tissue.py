"""Empty is what is black and lies together: padding, cut-away faces, clipped air; nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medloom.pretrain.pixels import patchify
from medloom.pretrain.tissue import patches_with, tissue
from medloom.pretrain.views import Limits
from scipy import ndimage


@pytest.mark.parametrize("shape", [(2, 1, 24, 20), (2, 3, 24, 20), (2, 1, 6, 12, 10), (1, 2, 1, 9, 9)])
def test_empty_voxels_are_black_with_all_their_neighbours(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator)
    dark = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.9
    image = torch.where(dark, -5.0, image)
    found = tissue(image)
    assert found.shape == (shape[0], 1, *shape[2:])
    for sample, seen in zip(image, found, strict=True):
        lit = (sample > -5.0).any(0).numpy()
        around = ndimage.binary_dilation(lit, np.ones([3] * lit.ndim))
        assert np.array_equal(seen[0].numpy(), around)
    assert 0.0 < float(found.float().mean()) < 1.0


def test_limits_say_what_black_is() -> None:
    image = torch.full((2, 1, 8, 8), 0.5)
    image[:, :, 2, 2] = 1.0
    assert not bool(tissue(image).all()), "the least value is taken for black"
    limits = Limits(torch.tensor([[0.0], [0.5]]), torch.tensor([[1.0], [1.0]]))
    assert tissue(image, limits).flatten(1).all(1).tolist() == [True, False]


def test_an_even_image_has_no_tissue() -> None:
    assert not bool(tissue(torch.ones(1, 1, 4, 4)).any())


@pytest.mark.parametrize(("spatial", "patch"), [((8, 12), (4, 2)), ((4, 6, 8), (2, 3, 4))])
def test_a_patch_counts_from_a_third(spatial: tuple[int, ...], patch: tuple[int, ...]) -> None:
    where = torch.rand(5, 1, *spatial, generator=torch.Generator().manual_seed(0)) < 0.33
    share = patchify(where.double(), patch).mean(-1)
    found = patches_with(where, patch)
    assert torch.equal(found, share > 0.33)
    assert 0 < int(found.sum()) < found.numel()
