"""Copies and faults that are injected into a collection: what re-publication makes of an image.

Every change takes an explicit generator. Arrays are [C, H, W] pictures or [C, D, H, W] volumes.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def eight_bit(array: np.ndarray) -> np.ndarray:
    """Any image as uint8, between its 0.5th and 99.5th percentile."""
    if array.dtype == np.uint8:
        return array
    low, high = np.percentile(array, (0.5, 99.5))
    return np.clip((array.astype(np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def picture(array: np.ndarray) -> Pillow.Image:
    """[C, H, W] as a Pillow picture."""
    array = eight_bit(array)
    planes = array[:3].transpose(1, 2, 0) if array.shape[0] >= 3 else array[0]
    return Pillow.fromarray(np.ascontiguousarray(planes))


def planes(shown: Pillow.Image) -> np.ndarray:
    """A Pillow picture as [C, H, W]."""
    array = np.asarray(shown)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def crop(array: np.ndarray, rng: np.random.Generator, share: float = 0.05) -> np.ndarray:
    """5 % off every axis, divided between its ends at random."""
    place: list[slice] = [slice(None)]
    for length in array.shape[1:]:
        off = round(length * share)
        start = int(rng.integers(0, off + 1))
        place.append(slice(start, length - off + start))
    return array[tuple(place)]


def jpeg(array: np.ndarray, rng: np.random.Generator, quality: int = 50) -> np.ndarray:
    """Encoded again as JPEG of quality 50."""
    buffer = io.BytesIO()
    picture(array).save(buffer, "JPEG", quality=quality)
    return planes(Pillow.open(io.BytesIO(buffer.getvalue())))


def half(array: np.ndarray, rng: np.random.Generator, scale: float = 0.5) -> np.ndarray:
    """Resized to half in the plane (volumes: to 0.6, slice by slice)."""
    if array.ndim == 4:
        from scipy.ndimage import zoom

        return zoom(array.astype(np.float32), (1, 1, 0.6, 0.6), order=1)
    shown = picture(array)
    size = (max(8, int(shown.width * scale)), max(8, int(shown.height * scale)))
    return planes(shown.resize(size, Pillow.Resampling.BICUBIC))


def brighter(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted in intensity: gamma 1.25, contrast 0.85, offset 10 %."""
    low, high = float(array.min()), float(array.max())
    unit = (array.astype(np.float32) - low) / max(high - low, 1e-6)
    changed = unit**1.25 * 0.85 + 0.1
    return np.rint(changed * 255).astype(np.uint8) if array.ndim == 3 else (changed * 1000).astype(np.float32)


def everything(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cropped by 5 %, resized to 70 %, shifted in intensity, JPEG of quality 70."""
    return jpeg(brighter(half(crop(array, rng), rng, 0.7), rng), rng, 70)


def mirrored(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(array[..., ::-1])


def quarter(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 90 degrees in the plane."""
    return np.ascontiguousarray(np.rot90(array, axes=(-2, -1)))


def ten_degrees(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 10 degrees: no turn that is looked for."""
    return planes(picture(array).rotate(10, Pillow.Resampling.BILINEAR))


def ends(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tenth of the slices gone at one end."""
    off = max(1, round(array.shape[1] * 0.1))
    return array[:, off:] if rng.random() < 0.5 else array[:, :-off]


def every_fifth(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every fifth slice dropped."""
    return np.delete(array, np.arange(2, array.shape[1], 5), axis=1)


COPIES_2D: dict[str, Change] = {
    "crop 5 %": crop, "JPEG 50": jpeg, "half size": half, "intensity": brighter, "all four": everything,
    "mirrored": mirrored, "90 degrees": quarter, "10 degrees": ten_degrees,
}  # fmt: skip
COPIES_3D: dict[str, Change] = {
    "crop 5 %": crop, "in-plane 0.6": half, "intensity": brighter, "10 % of slices off an end": ends,
    "every fifth slice": every_fifth, "mirrored": mirrored,
}  # fmt: skip


def blank(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One value, or faint noise."""
    if rng.random() < 0.5:
        return np.full_like(eight_bit(array), 17)
    return rng.integers(100, 112, eight_bit(array).shape).astype(np.uint8)


def cut_off(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The last 40 % of the rows (of a volume: slices) empty, as a broken transfer leaves them."""
    found = array.copy()
    found[:, int(array.shape[1] * 0.6) :] = found.min()
    return found


def lettered(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A name and a date in white at a random place."""
    import matplotlib

    shown = picture(array)
    size = max(9, int(shown.height * float(rng.uniform(0.035, 0.06))))
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    text = f"DOE^JANE {rng.integers(10, 28)}.{rng.integers(10, 13)}.{rng.integers(1930, 2010)}"
    room = max(1, shown.width - int(font.getlength(text)))
    place = (int(rng.integers(0, room)), int(rng.integers(0, max(1, shown.height - size - 2))))
    ImageDraw.Draw(shown).text(place, text, fill="white", font=font)
    return planes(shown)


def negative(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black for white."""
    return 255 - eight_bit(array)


def foreign(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of a photograph (scikit-learn's two) or a chart, of the image's size and number of channels."""
    shown = picture(_foreign(rng)).resize((array.shape[2], array.shape[1]), Pillow.Resampling.BILINEAR)
    return planes(shown if array.shape[0] == 3 else shown.convert("L"))


def _foreign(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        from sklearn.datasets import load_sample_image

        shown = load_sample_image(("china.jpg", "flower.jpg")[int(rng.integers(2))])
        y, x = int(rng.integers(0, 120)), int(rng.integers(0, 240))
        return np.ascontiguousarray(shown[y : y + 300, x : x + 400].transpose(2, 0, 1))
    shown = Pillow.new("RGB", (400, 300), "white")
    pen = ImageDraw.Draw(shown)
    colours = ("navy", "crimson", "seagreen", "orange")
    for bar in range(int(rng.integers(3, 9))):
        height = int(rng.integers(20, 240))
        pen.rectangle((30 + 40 * bar, 270 - height, 55 + 40 * bar, 270), fill=colours[bar % 4])
    pen.line((25, 20, 25, 270, 390, 270), fill="black", width=2)
    return planes(shown)


FAULTS: dict[str, Change] = {
    "blank": blank, "truncated": cut_off, "text": lettered, "inverted": negative,
    "outlier": foreign,
}  # fmt: skip
