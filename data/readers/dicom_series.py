"""DICOM planes -> one volume: sorting, the checks that a folder of files needs, and the RAS+ affine.

Slices are ordered by their position along the slice normal, never by file name or instance number. A series
is refused, with the reason, when that order does not make one regular stack; a guess would put wrong
millimetres under every later measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ReadError
from ..sample import Image
from . import geometry, values

# Gaps between slices may differ from their median by this share; a missing slice makes one of at least 2.
GAP_TOLERANCE = 0.10
# Positions closer than this (mm, along the normal) are the same slice at another time or echo.
SAME_POSITION = 0.01
# Largest difference of a direction cosine between two slices of one stack.
SAME_DIRECTION = 1e-3


@dataclass(slots=True)
class Plane:
    """One decoded slice or frame, unscaled."""

    name: str  # file name, for messages
    array: np.ndarray  # [C, H, W]
    slope: float
    intercept: float
    position: np.ndarray | None  # [3] LPS mm, centre of the first pixel
    orientation: np.ndarray | None  # [6] cosines along a row, then along a column
    spacing: tuple[float, float] | None  # mm between rows, between columns
    thickness: float | None  # mm
    order: tuple[int, ...]  # acquisition order: instance number, frame


def stack(planes: list[Plane]) -> tuple[list[np.ndarray], np.ndarray]:
    """Sort planes into one regular stack.

    Args:
        planes: at least one, all with position, orientation and spacing.

    Returns:
        Scaled volumes [C, D, H, W], one for each time or echo (each position may be taken k times), and the
        affine of (d, h, w) in RAS+ mm. D is 1 when all planes lie at one position.

    Raises:
        ReadError: shapes, spacings or orientations differ; positions taken unequally often; a missing slice.
    """
    _same_grid(planes)
    first = planes[0]
    orientation = _mean_orientation(planes)
    normal = np.cross(orientation[:3], orientation[3:])
    depth = np.array([float(np.dot(normal, _need(plane.position))) for plane in planes])
    groups = _groups(planes, depth)
    times = len(groups[0])
    if any(len(group) != times for group in groups):
        counts = sorted({len(group) for group in groups})
        raise ReadError(
            f"{first.name}: {len(planes)} images on {len(groups)} positions, taken {counts} times; expected "
            "each equally often: a slice is missing or two acquisitions share the series"
        )
    origins = np.array([_need(group[0].position) for group in groups])
    step = _step(groups, origins, normal)
    spacing = first.spacing or (1.0, 1.0)
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = orientation[3:] * spacing[0]
    lps[:3, 2] = orientation[:3] * spacing[1]
    lps[:3, 3] = origins[0]
    volumes = [_joined([group[time] for group in groups]) for time in range(times)]
    return volumes, geometry.LPS_TO_RAS @ lps


def stack_by_number(planes: list[Plane]) -> Image:
    """Stack slices without positions by their instance number; the result has no affine.

    Raises:
        ReadError: shapes differ, or numbers are missing, repeated or not evenly spaced.
    """
    _same_grid(planes)
    planes = sorted(planes, key=lambda plane: plane.order)
    steps = np.diff([plane.order[0] for plane in planes])
    if len(set(steps.tolist())) != 1 or steps[0] == 0:
        raise ReadError(
            f"{planes[0].name}: no slice positions and instance numbers {planes[0].order[0]}.."
            f"{planes[-1].order[0]} are not evenly spaced over {len(planes)} files; a slice is missing"
        )
    first = planes[0]
    spacing = None
    if first.spacing and first.thickness:
        spacing = (first.thickness, *first.spacing)
    return Image(array=_joined(planes), spacing=spacing, facts={"order": "instance number"})


def plane_affine(plane: Plane) -> np.ndarray | None:
    """Affine of (d, h, w) of a single plane; d runs along its normal by the slice thickness (or 1 mm)."""
    if plane.position is None or plane.orientation is None or plane.spacing is None:
        return None
    lps = np.eye(4)
    rows, columns = plane.orientation[3:], plane.orientation[:3]
    lps[:3, 0] = np.cross(columns, rows) * (plane.thickness or 1.0)
    lps[:3, 1] = rows * plane.spacing[0]
    lps[:3, 2] = columns * plane.spacing[1]
    lps[:3, 3] = plane.position
    affine = geometry.LPS_TO_RAS @ lps
    geometry.check_affine(affine, plane.name)
    return affine


def picture(plane: Plane) -> Image:
    """A plane by itself, [C, H, W] as it is displayed."""
    return Image(array=scaled(plane), spacing=plane.spacing, affine=plane_affine(plane))


def scaled(plane: Plane) -> np.ndarray:
    """Pixels [C, H, W] with the rescale slope and intercept applied."""
    try:
        return values.rescale(plane.array, plane.slope, plane.intercept)
    except ReadError as error:
        raise ReadError(f"{plane.name}: {error}; exclude it or repair the header") from error


def _same_grid(planes: list[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        if plane.array.shape != first.array.shape:
            raise ReadError(
                f"{plane.name}: {plane.array.shape} pixels where {first.name} has {first.array.shape}; "
                "expected one shape in a series: split it or exclude it"
            )
        if plane.spacing != first.spacing and not np.allclose(
            plane.spacing or np.nan, first.spacing or np.nan, rtol=1e-3
        ):
            raise ReadError(
                f"{plane.name}: pixel spacing {plane.spacing} where {first.name} has {first.spacing}; "
                "expected one spacing in a series: split it or exclude it"
            )


def _mean_orientation(planes: list[Plane]) -> np.ndarray:
    cosines = np.array([_need(plane.orientation) for plane in planes])
    away = np.abs(cosines - cosines[0]).max(axis=1)
    if (away > SAME_DIRECTION).any():
        other = int(away.argmax())
        raise ReadError(
            f"{planes[other].name}: orientation {np.round(cosines[other], 3).tolist()} where "
            f"{planes[0].name} has {np.round(cosines[0], 3).tolist()}; "
            "expected one orientation in a series (a localizer?)"
        )
    mean = cosines.mean(axis=0)
    columns, rows = mean[:3], mean[3:]
    lengths = np.linalg.norm(columns), np.linalg.norm(rows)
    if min(lengths) < 0.9 or abs(float(np.dot(columns, rows))) > 1e-2:
        raise ReadError(f"{planes[0].name}: orientation {mean.tolist()} is singular; repair the header")
    return np.concatenate([columns / lengths[0], rows / lengths[1]])


def _groups(planes: list[Plane], depth: np.ndarray) -> list[list[Plane]]:
    """Planes by position along the normal; inside a position by acquisition order."""
    groups: list[list[Plane]] = []
    previous = -np.inf
    for index in np.argsort(depth, kind="stable"):
        if depth[index] - previous > SAME_POSITION:
            groups.append([])
        groups[-1].append(planes[index])
        previous = depth[index]
    return [sorted(group, key=lambda plane: plane.order) for group in groups]


def _step(groups: list[list[Plane]], origins: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Vector in LPS mm from one slice to the next."""
    if len(groups) == 1:
        return normal * (groups[0][0].thickness or 1.0)
    gaps = np.diff(origins @ normal)
    median = float(np.median(gaps))
    wrong = np.abs(gaps - median) > GAP_TOLERANCE * median
    if wrong.any():
        at = int(np.abs(gaps - median).argmax())
        raise ReadError(
            f"{groups[at + 1][0].name}: {gaps[at]:.3g} mm after {groups[at][0].name} where the median gap is "
            f"{median:.3g} mm; expected even gaps (within {GAP_TOLERANCE:.0%}): a slice is missing"
        )
    step = (origins[-1] - origins[0]) / (len(groups) - 1)
    # A tilted gantry shears the stack evenly: that is in `step`. Uneven drift has no affine.
    drift = np.linalg.norm(origins - origins[0] - np.arange(len(groups))[:, None] * step, axis=1).max()
    bound = max(GAP_TOLERANCE * median, max(groups[0][0].spacing or (1.0, 1.0)))
    if drift > bound:
        raise ReadError(
            f"{groups[0][0].name}: slice positions leave a straight line by {drift:.3g} mm, expected at most "
            f"{bound:.3g} mm; exclude the series"
        )
    return step


def _joined(planes: list[Plane]) -> np.ndarray:
    """[C, D, H, W] of slices in order, scaled once when all share slope and intercept."""
    first = planes[0]
    if all((plane.slope, plane.intercept) == (first.slope, first.intercept) for plane in planes):
        volume = np.stack([plane.array for plane in planes], axis=1)
        try:
            return values.rescale(volume, first.slope, first.intercept)
        except ReadError as error:
            raise ReadError(f"{first.name}: {error}; exclude it or repair the header") from error
    return values.narrow(np.stack([scaled(plane).astype(np.float32) for plane in planes], axis=1))


def _need(value: np.ndarray | None) -> np.ndarray:
    assert value is not None, "stack() is called with positioned planes only"
    return value
