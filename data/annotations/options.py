"""What a source says of its annotations, checked before anything is read."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from ..layouts.base import Source
from .consensus import METHODS, require_simpleitk
from .readings import POLYGONS

MASKS_FROM = ("files", POLYGONS)


def check_annotations(source: Source, where: str) -> Source:
    """The source, when its `masks_from` and `consensus` can be done.

    Raises:
        ConfigError: an unknown word, polygons without names of the mask's values, STAPLE without SimpleITK.
    """
    if source.masks_from not in MASKS_FROM:
        raise ConfigError(
            f"{where}.masks_from: unknown {source.masks_from!r}{nearest(source.masks_from, MASKS_FROM)}"
        )
    if source.masks_from == POLYGONS and not source.mask_classes:
        raise ConfigError(
            f"{where}.masks_from: polygons need a value for each name; write mask_classes: {{1: NAME, ...}}"
        )
    if source.consensus is not None and source.consensus not in METHODS:
        raise ConfigError(
            f"{where}.consensus: unknown {source.consensus!r}{nearest(source.consensus, METHODS)}"
        )
    if source.consensus == "staple":
        require_simpleitk()
    return source
