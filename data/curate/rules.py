"""Quality: blank, truncated, mis-scaled, lettered, inverted and foreign images, from the numbers of each.

Some faults show in an image alone, others only beside its kind: the images of one dataset, modality and
dimensionality, if there are 30 at least. Medians and median deviations describe a kind, so that the faults
themselves hardly move it; its median thumbnail is that of at most 1,000 images, evenly spread.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .findings import Finding, Thresholds
from .measure import NUMBERS
from .table import Table

LEAST = 30  # images of a kind from which it is known what it looks like
_TEMPLATE = 1000
_CELLS = 8  # an axis of the grid on which thumbnails are described
_BLOCK = 4096
_DESCRIBING = ("mode", "entropy", "structure", "edges", "colour", "red", "blue", "aspect")
_MAD = 1.4826  # median deviations of a normal distribution to its standard deviation
_FARTHEST = 12.0  # deviations of one number that count; beyond, all are equally strange
_LEAST_SPREAD = 0.02  # of a number: that all pictures but three are grey makes a coloured mark no outlier
_LIKE_MANY = 0.5  # median correlation with the template from which a kind has one look


def judge(table: Table, limits: Thresholds) -> Iterator[Finding]:
    """Findings about single images, held-out ones too."""
    yield from _alone(table, limits)
    for members in kinds(table):
        yield from _beside(table, members, limits)


def kinds(table: Table) -> list[np.ndarray]:
    """Images of one dataset, modality and dimensionality, LEAST of them at least."""
    datasets = {name: n for n, name in enumerate(dict.fromkeys(s.dataset for s, _ in table.records))}
    dataset = np.array([datasets[source.dataset] for source, _ in table.records], np.int64)
    names, modality = np.unique(table.rows["modality"], return_inverse=True)
    code = (dataset[table.rows["record"]] * len(names) + modality) * 8 + table.rows["ndim"]
    order = np.argsort(code, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
    return [group for group in groups if len(group) >= LEAST]


def _alone(table: Table, limits: Thresholds) -> Iterator[Finding]:
    volume = table.rows["ndim"] == 3
    tests = (
        ("blank", "mode", limits.blank_mode, 1, None),
        ("blank", "structure", limits.blank_structure, -1, None),
        ("truncated", "body_edge", limits.truncated_body, 1, None),
        ("text", "characters", limits.text_characters, 1, None),
        ("spacing", "extent_low", limits.extent_low, -1, volume),
        ("spacing", "extent_high", limits.extent_high, 1, volume),
        ("spacing", "spacing_low", limits.spacing_low, -1, volume),
        ("spacing", "spacing_high", limits.spacing_high, 1, volume),
    )
    for rule, name, limit, sign, only in tests:
        values = table.column(name)
        with np.errstate(invalid="ignore"):
            bad = values >= limit if sign > 0 else values < limit
        for image in np.flatnonzero(bad if only is None else bad & only):
            yield _finding(table, rule, int(image), **{name: values[image]}, threshold=limit)


def _beside(table: Table, members: np.ndarray, limits: Thresholds) -> Iterator[Finding]:
    """Findings about the images of one kind."""
    band = table.column("band")[members]
    middle, spread = _robust(band)
    limit = max(limits.truncated_band, middle + limits.truncated_deviations * spread)
    for image, value in _over(members, band, limit):
        yield _finding(table, "truncated", image, band=value, threshold=limit)
    extent = table.column("extent_high")[members]
    if np.isfinite(extent).sum() >= LEAST:
        usual = float(np.nanmedian(extent))
        factor = np.exp(np.abs(np.log(np.maximum(extent, 1e-6) / max(usual, 1e-6))))
        for image, value in _over(members, factor, limits.spacing_factor):
            yield _finding(
                table, "spacing", image, factor=value, usual_mm=usual, threshold=limits.spacing_factor
            )
    alike, cells = _looks(table, members)
    if np.median(alike) >= _LIKE_MANY:
        for image, value in _over(members, -alike, -limits.inverted):
            yield _finding(table, "inverted", image, correlation=-value, threshold=limits.inverted)
    numbers = table.rows["numbers"][members][:, [NUMBERS.index(name) for name in _DESCRIBING]]
    far = strangeness(np.nan_to_num(numbers), cells)
    for image, value in _over(members, far, limits.outlier):
        yield _finding(table, "outlier", image, deviations=value, threshold=limits.outlier)


def _looks(table: Table, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each thumbnail with the median one of its kind, and its cells [N, 8 * 8 (* 8)]."""
    ndim = int(table.rows["ndim"][members[0]])
    stack, places = table.thumbs[f"{ndim}d"], table.place[members]
    chosen = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), _TEMPLATE)).astype(int))]
    template = np.median(_coarse(stack[chosen]), axis=0)
    template = template - template.mean()
    alike, cells = [], []
    for start in range(0, len(places), _BLOCK):
        coarse = _coarse(stack[places[start : start + _BLOCK]])
        centred = coarse - coarse.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1) * np.linalg.norm(template)
        alike.append(centred @ template / np.maximum(norm, 1e-6))
        cells.append(coarse)
    return np.concatenate(alike), np.concatenate(cells)


def _coarse(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails as means of 8 cells an axis, float32 [N, cells]."""
    step, axes = thumbs.shape[1] // _CELLS, thumbs.ndim - 1
    split = thumbs.reshape(len(thumbs), *((_CELLS, step) * axes)).astype(np.float32)
    return split.mean(axis=tuple(range(2, 2 * axes + 1, 2))).reshape(len(thumbs), -1)


def strangeness(numbers: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """How far each image lies from its kind, in robust deviations of that distance, [N].

    The distance is Mahalanobis' over robust deviations of the numbers [N, n] and of what the kind's ten main
    components leave of the thumbnail [N, c]: a picture of another kind is not made of them. The covariance is
    that of the 75 % of images that are nearest to the medians.
    """
    centred = cells - np.median(cells, axis=0)
    usual = np.linalg.norm(centred, axis=1)
    core = centred[usual <= np.percentile(usual, 95)]
    _, _, axes = np.linalg.svd(core[:: max(1, len(core) // _TEMPLATE)], full_matrices=False)
    left = np.linalg.norm(centred - centred @ axes[:10].T @ axes[:10], axis=1)
    columns = np.stack([_deviations(column, _LEAST_SPREAD) for column in (*numbers.T, left)], axis=1)
    columns = np.clip(columns, -_FARTHEST, _FARTHEST)
    size = np.linalg.norm(columns, axis=1)
    near = columns[size <= np.percentile(size, 75)]
    covariance = np.cov(near.T) + 0.1 * np.eye(columns.shape[1])  # numbers that never vary must not decide
    centred = columns - near.mean(axis=0)
    squares = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred)
    return np.maximum(_deviations(np.sqrt(np.maximum(squares, 0))), 0)


def _deviations(values: np.ndarray, least: float = 1e-6) -> np.ndarray:
    middle, spread = _robust(values)
    return (values - middle) / max(spread, least)


def _robust(values: np.ndarray) -> tuple[float, float]:
    """Median, and median deviation as a standard deviation; never 0, which constant numbers would have."""
    middle = float(np.nanmedian(values))
    spread = _MAD * float(np.nanmedian(np.abs(values - middle)))
    return middle, max(spread, 0.1 * float(np.nanstd(values)), 1e-6)


def _over(members: np.ndarray, values: np.ndarray, limit: float) -> Iterator[tuple[int, float]]:
    with np.errstate(invalid="ignore"):
        for number in np.flatnonzero(values >= limit):
            yield int(members[number]), float(values[number])


def _finding(table: Table, rule: str, image: int, **numbers: float) -> Finding:
    rounded = {name: float(f"{float(value):.4g}") for name, value in numbers.items()}
    return Finding(rule, int(table.rows["record"][image]), int(image), rounded)
