"""Surface metrics equal DeepMind's surface-distance (elements) and MONAI (voxels) on random masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import surface_distance.metrics as deepmind
import torch
from medloom.finetune.metrics import surface
from medloom.finetune.metrics.elements import element_measures, neighbour_codes
from medloom.finetune.metrics.surface import assd, foreground_box, hausdorff, masd, nsd, surface_distances
from scipy import ndimage
from surface_distance import lookup_tables

SPACINGS = {2: [(1.0, 1.0), (0.3, 1.7), (2.0, 0.5)], 3: [(1.0, 1.0, 1.0), (3.0, 1.0, 0.7), (0.5, 2.5, 1.25)]}


def blob(rng: np.random.Generator, shape: tuple[int, ...], rough: float) -> np.ndarray:
    """Random connected-ish mask: smoothed noise above a random level, sometimes touching the border."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), rough)
    return field > np.quantile(field, rng.uniform(0.3, 0.97))


def pairs(seed: int, count: int) -> list[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        ndim = int(rng.integers(2, 4))
        shape = tuple(int(n) for n in rng.integers(5, 22 if ndim == 2 else 14, ndim))
        rough = float(rng.choice([0.0, 0.7, 1.5, 3.0]))
        reference = blob(rng, shape, rough)
        # Half of them are a disturbed copy, as predictions are; the others are unrelated.
        prediction = reference ^ (blob(rng, shape, rough) & (rng.random(shape) < 0.3))
        if rng.random() < 0.5:
            prediction = blob(rng, shape, rough)
        if reference.any() and prediction.any():
            found.append((prediction, reference, SPACINGS[ndim][int(rng.integers(3))]))
    return found


@pytest.mark.parametrize("spacing", SPACINGS[3])
def test_areas_equal_the_published_table(spacing: tuple[float, ...]) -> None:
    expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(element_measures(spacing), expected, rtol=1e-13)


@pytest.mark.parametrize("spacing", SPACINGS[2])
def test_lengths_equal_the_published_table(spacing: tuple[float, ...]) -> None:
    expected = lookup_tables.create_table_neighbour_code_to_contour_length(spacing)
    np.testing.assert_allclose(element_measures(spacing), expected, rtol=1e-13)


def test_codes_equal_the_published_kernel() -> None:
    rng = np.random.default_rng(0)
    for ndim, kernel in ((2, lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL), (3, lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)):  # fmt: skip  # noqa: E501
        mask = rng.random((7, 6, 5)[:ndim]) < 0.5
        padded = np.pad(mask, [(0, 1)] * ndim).astype(np.uint8)
        expected = ndimage.correlate(padded, kernel.astype(np.uint8), mode="constant", cval=0)
        np.testing.assert_array_equal(neighbour_codes(mask), expected)


@pytest.fixture(params=["tree", "offsets"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the nearest point, whatever the size of the masks."""
    monkeypatch.setattr(surface, "_FEW", 10**9 if request.param == "tree" else 0)


@pytest.mark.usefixtures("search")
def test_elements_equal_deepmind_on_400_random_cases() -> None:
    rng = np.random.default_rng(7)
    for prediction, reference, spacing in pairs(1, 400):
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
        ours = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(ours.to_reference, theirs["distances_pred_to_gt"], rtol=1e-13)
        np.testing.assert_allclose(ours.to_prediction, theirs["distances_gt_to_pred"], rtol=1e-13)
        for tolerance in (0.0, 1.0, 2.0, float(rng.uniform(0, 4))):
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert nsd(ours, tolerance) == pytest.approx(expected, abs=1e-12)
        for percentile in (50.0, 95.0, 100.0):
            expected = deepmind.compute_robust_hausdorff(theirs, percentile)
            assert hausdorff(ours, percentile) == pytest.approx(expected, rel=1e-12)
        forward, backward = deepmind.compute_average_surface_distance(theirs)
        assert masd(ours) == pytest.approx((forward + backward) / 2, rel=1e-12)
        weights = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        assert assd(ours) == pytest.approx(np.average([forward, backward], weights=weights), rel=1e-12)


@pytest.mark.usefixtures("search")
def test_voxels_equal_monai_on_200_random_cases() -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    for prediction, reference, spacing in pairs(2, 200):
        masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        ours = surface_distances(prediction, reference, spacing, surface="voxels")
        for percentile in (95.0, 100.0):
            expected = compute_hausdorff_distance(
                *masks, include_background=True, percentile=percentile, spacing=list(spacing)
            )
            assert hausdorff(ours, percentile) == pytest.approx(
                float(expected), rel=1e-5, abs=1e-5
            )  # theirs interpolates percentiles of tens of mm in float32
        expected = compute_average_surface_distance(
            *masks, include_background=True, symmetric=True, spacing=list(spacing)
        )
        assert assd(ours) == pytest.approx(float(expected), rel=1e-5)


def test_monai_subvoxel_nsd_agrees() -> None:
    from monai.metrics import compute_surface_dice

    for prediction, reference, spacing in pairs(3, 60):
        masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        expected = compute_surface_dice(
            *masks, class_thresholds=[1.3], include_background=True, spacing=list(spacing), use_subvoxels=True
        )
        assert nsd(surface_distances(prediction, reference, spacing), 1.3) == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (6.0, 0.5, 0.5), (0.3, 0.1, 8.0)])
@pytest.mark.parametrize("shift", [1, 25])
def test_large_masks_equal_the_distance_transform(spacing: tuple[float, ...], shift: int) -> None:
    """Near masks are settled by offsets, far ones by the tree; both equal the exact transform of the grid."""
    grid = np.indices((30, 60, 60))
    reference = (
        sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, (14, 18, 20), (9, 14, 15), strict=True)) < 1
    )
    prediction = np.roll(reference, shift, axis=2)
    prediction[4:9] = False
    found = surface_distances(prediction, reference, spacing)
    assert len(found.to_reference) > surface._FEW
    codes = [neighbour_codes(mask) for mask in (prediction, reference)]
    on = [(code != 0) & (code != 255) for code in codes]
    for distances, own, other in ((found.to_reference, *on), (found.to_prediction, *on[::-1])):
        expected = ndimage.distance_transform_edt(~other, sampling=spacing)[own]
        np.testing.assert_allclose(distances, np.sort(expected), rtol=1e-12)


def test_the_offsets_leave_out_nothing_nearer() -> None:
    for spacing in (*SPACINGS[2], *SPACINGS[3], (6.0, 0.5, 0.5)):
        shells = surface._shells(spacing)
        every = np.indices([41] * len(spacing)).reshape(len(spacing), -1).T - 20
        lengths = np.sqrt(np.square(every * spacing).sum(axis=1))
        inside = {tuple(row) for row in every[lengths < shells.distances[-1]].tolist()}
        listed = [tuple(row) for group in shells.offsets for row in group.tolist()]
        assert len(listed) == len(set(listed)) > 50
        assert inside <= set(listed)
        assert list(shells.distances) == sorted(shells.distances)
        assert shells.offsets[0].tolist() == [[0] * len(spacing)]


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_pair_of_tiny_masks_equals_deepmind(ndim: int) -> None:
    """All masks of 2x2 (and 300 of 2x2x2) against each other, empty ones aside: every code on a border."""
    every = [np.array(bits, bool).reshape((2,) * ndim) for bits in itertools.product((0, 1), repeat=2**ndim)]
    couples = list(itertools.product([mask for mask in every if mask.any()], repeat=2))
    if ndim == 3:
        couples = [couples[i] for i in np.random.default_rng(5).choice(len(couples), 300, replace=False)]
    for prediction, reference in couples:
        theirs = deepmind.compute_surface_distances(reference, prediction, SPACINGS[ndim][1])
        ours = surface_distances(prediction, reference, SPACINGS[ndim][1])
        assert nsd(ours, 0.5) == pytest.approx(
            deepmind.compute_surface_dice_at_tolerance(theirs, 0.5), abs=1e-12
        )
        assert hausdorff(ours) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 100), rel=1e-12)


def test_anisotropic_spheres_tell_the_two_surfaces_apart() -> None:
    """40³ spheres with 3.0 x 1.0 x 0.7 mm voxels: the case on which libraries disagree."""
    grid = np.indices((40, 40, 40))
    reference = sum((axis - 20) ** 2 for axis in grid) < 10**2
    prediction = sum((axis - c) ** 2 for axis, c in zip(grid, (21, 22, 20), strict=True)) < 10**2
    elements = surface_distances(prediction, reference, (3.0, 1.0, 0.7))
    voxels = surface_distances(prediction, reference, (3.0, 1.0, 0.7), surface="voxels")
    theirs = deepmind.compute_surface_distances(reference, prediction, (3.0, 1.0, 0.7))
    assert nsd(elements, 2.0) == pytest.approx(
        deepmind.compute_surface_dice_at_tolerance(theirs, 2.0), abs=1e-12
    )
    assert nsd(elements, 2.0) != pytest.approx(nsd(voxels, 2.0), abs=0.01)


def test_empty_masks_are_undefined_not_guessed() -> None:
    full, empty = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    for prediction, reference in ((full, empty), (empty, full)):
        one = surface_distances(prediction, reference, (1.0, 2.0))
        assert nsd(one, 3.0) == 0.0
        assert hausdorff(one, 95) == assd(one) == masd(one) == np.inf
    none = surface_distances(empty, empty, (1.0, 2.0))
    assert all(np.isnan(value) for value in (nsd(none, 3.0), hausdorff(none), assd(none), masd(none)))


@pytest.mark.parametrize("kind", ["elements", "voxels"])
def test_identical_masks_are_perfect_even_when_they_fill_the_image(kind: surface.Surface) -> None:
    full = np.ones((3, 4, 5), bool)
    distances = surface_distances(full, full, (1.0, 2.0, 3.0), surface=kind)
    assert (nsd(distances, 0.0), hausdorff(distances), assd(distances)) == (1.0, 0.0, 0.0)


def test_a_crop_around_the_structure_changes_nothing() -> None:
    for prediction, reference, spacing in pairs(4, 30):
        wide = [np.pad(mask, 6) for mask in (prediction, reference)]
        small, large = surface_distances(prediction, reference, spacing), surface_distances(*wide, spacing)
        np.testing.assert_array_equal(small.to_reference, large.to_reference)
        assert nsd(small, 1.0) == nsd(large, 1.0)


def test_foreground_box_equals_the_extent_of_what_is_not_zero() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        labels = (rng.random(tuple(rng.integers(1, 9, int(rng.integers(2, 4))))) < 0.05).astype(
            np.int16
        ) * 300
        places = np.argwhere(labels)
        if not len(places):
            assert foreground_box(labels) is None
            continue
        low, high = places.min(axis=0), places.max(axis=0) + 1
        assert foreground_box(labels) == tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def test_refusals_name_the_two_numbers() -> None:
    mask = np.ones((3, 3), bool)
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(3, 4\)"):
        surface_distances(mask, np.ones((3, 4), bool), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"2 axes .* 3 entries"):
        surface_distances(mask, mask, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="boolean"):
        surface_distances(mask.astype(int), mask, (1.0, 1.0))
    for spacing in ((1.0, 0.0), (1.0, -2.0), (1.0, np.nan), (1.0,)):
        with pytest.raises(ValueError, match="positive millimetres"):
            surface_distances(mask, mask, spacing)
    for percentile in (0, 101):
        with pytest.raises(ValueError, match="percentile"):
            hausdorff(surface_distances(mask, mask, (1.0, 1.0)), percentile)
