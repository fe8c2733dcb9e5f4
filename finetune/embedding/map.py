"""The table of features as a picture: a point an image on two axes, coloured by folder, with some images.

PCA is the default: it is exact, takes a moment, and distances in it are distances of features, as far as the
share of variance in the axes' names goes. t-SNE shows neighbourhoods; sizes of and distances between its
clusters mean nothing, and it takes minutes for ten thousand images. Points are drawn in a fixed shuffled
order, so that the last folder does not cover the others; the commonest nine have a colour of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...data.errors import ConfigError, nearest
from ...data.inspect.statistics_pictures import new_figure, save
from .images import Item
from .table import Row
from .thumbnails import Thumbnail, thumbnails

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("pca", "tsne")
COLOURS = ("group", "modality")
_MOST = 9  # groups with a colour of their own
OTHER = "all others"
LEAST = 3  # images of a map


def draw_map(
    path: Path,
    rows: Sequence[Row],
    *,
    method: str = "pca",
    colour: str = "group",
    items: Sequence[Item] = (),
) -> Path:
    """Write the map as PNG.

    Args:
        method: one of METHODS.
        colour: column by which points are coloured, one of COLOURS.
        items: what the rows were made of; some of their images are shown at their points.

    Raises:
        ConfigError: too few images, unknown method or column.
    """
    if colour not in COLOURS:
        raise ConfigError(f"map: colour {colour!r}: unknown{nearest(colour, COLOURS)}")
    places, names = project(rows, method)
    figure = new_figure(9, 6.4)
    axes = figure.add_subplot()
    groups, labels = _grouped([getattr(row, colour) or "." for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    colours = np.array([f"C{number}" if label != OTHER else "0.6" for number, label in enumerate(labels)])
    size = max(8.0, min(40.0, 6000 / len(rows)))
    axes.scatter(*places[order].T, s=size, c=colours[np.array(groups)[order]], alpha=0.75, linewidths=0)
    if len(labels) > 1:
        for number, label in enumerate(labels):
            axes.scatter([], [], c=colours[number], label=f"{label} ({groups.count(number)})")
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    _paste(axes, thumbnails(rows, items, places) if items else [], places)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_title(f"{len(rows):,} images, {len(rows[0].feature)} features", loc="left", fontsize=11)
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def project(rows: Sequence[Row], method: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Features [N, E] -> places [N, 2] and the names of the two axes; the same rows give the same places."""
    if method not in METHODS:
        raise ConfigError(f"map: method {method!r}: unknown{nearest(method, METHODS)}")
    if len(rows) < LEAST:
        raise ConfigError(f"map: {len(rows)} images: a map takes {LEAST} or more; leave out --map")
    features = np.stack([row.feature for row in rows]).astype(np.float64)
    centred = features - features.mean(axis=0)
    if method == "pca":
        return _pca(centred)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    scale = max(float(centred.std()), 1e-12)
    start = _pca(centred)[0]
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4  # the scale of scikit-learn's own start
    model = TSNE(perplexity=perplexity, init=cast(Any, start.astype(np.float32)), random_state=0)
    return model.fit_transform(centred / scale), ("t-SNE 1", f"t-SNE 2 (perplexity {perplexity:g})")


def _pca(centred: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """The two axes of greatest variance; the sign is that of each axis' largest coefficient."""
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 1)))
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)
    shares = values[::-1][:2] / max(float(values.sum()), 1e-12)
    names = [f"PC {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares)]
    return centred @ axes, (names[0], names[-1])


def _grouped(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """(number of each word's group, names of the groups); the rarest are OTHER where there are many."""
    counted = Counter(words)
    kept = sorted(sorted(counted, key=lambda word: (-counted[word], word))[:_MOST])
    labels = kept if len(kept) == len(counted) else [*kept, OTHER]
    return [kept.index(word) if word in kept else len(kept) for word in words], labels


def _paste(axes: Axes, shown: Sequence[Thumbnail], places: np.ndarray) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    for one in shown:
        image = OffsetImage(one.pixels, zoom=0.55)
        x, y = places[one.row].tolist()
        axes.add_artist(AnnotationBbox(image, (x, y), pad=0.1, bboxprops={"lw": 0.4}, zorder=3))
