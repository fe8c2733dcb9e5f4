"""A browser for the tests of the pages; without Chromium they are skipped, and say so."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.catalog import load
from medloom.data.ingest.preprocess import describe
from medloom.data.pages.catalog import write_catalog_page
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.reader import Shards
from medloom.data.shards.writer import ShardWriter
from PIL import Image

_SPEC = importlib.util.spec_from_file_location("pages_browser", Path(__file__).with_name("browser.py"))
assert _SPEC is not None and _SPEC.loader is not None
browser_module: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["pages_browser"] = browser_module
_SPEC.loader.exec_module(browser_module)

# Every visible text with less contrast than WCAG 2.2 AA asks for: [text, contrast].
_CONTRAST = """(() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const srgb = (c) => c.startsWith('color(srgb')
    ? (([r, g, b, a = 1]) => [r * 255, g * 255, b * 255, a])(c.match(/[\\d.]+/g).map(Number)) : parse(c);
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { const stack = [];
    for (; e; e = e.parentElement) stack.push(srgb(getComputedStyle(e).backgroundColor));
    return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255]); };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const seen = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!walker.currentNode.data.trim() || !seen) continue;
    if (e.closest('.unseen, .side, .depth, script, style, noscript, title, option')) continue;
    const style = getComputedStyle(e);
    const colour = srgb(e instanceof SVGElement ? style.fill : style.color);
    const back = ground(e);
    const [a, b] = [light(over(colour, back)), light(back)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (contrast < (large ? 3 : 4.5)) bad.push([walker.currentNode.data.trim().slice(0, 40), contrast]);
  }
  return bad;
})()"""


@pytest.fixture(scope="session")
def _browser() -> Iterator[Any]:
    binary = browser_module.find_chromium()
    if binary is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): the pages are not looked at")
    with browser_module.Browser(binary) as opened:
        yield opened


@pytest.fixture
def browser(_browser: Any) -> Any:
    """A browser with a window of 1280 x 900 and light colours."""
    _browser.size(1280, 900)
    _browser.prefer("light")
    return _browser


@pytest.fixture(scope="session")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the built-in catalogue."""
    return write_catalog_page(load(()), tmp_path_factory.mktemp("catalog"))


@pytest.fixture
def low_contrast() -> str:
    """JavaScript that lists the visible texts which are too hard to read."""
    return _CONTRAST


def _described(key: str, image: np.ndarray, mask: np.ndarray | None = None, **meta: Any) -> Sample:
    """A sample with the statistics that ingest would store."""
    volume = image.ndim == 4
    known = {
        "format": FORMAT_VERSION, "key": key, "dataset": key.rpartition("-")[0], "ndim": image.ndim - 1,
        "modality": "ct" if volume else "x-ray", "organ": "chest", "licence": "CC0-1.0",
        "shape": list(image.shape), "dtype": image.dtype.name, "labels": {}, "facts": {},
        "stats": describe(image, "ct" if volume else "x-ray"),
    }  # fmt: skip
    if mask is not None:
        present = [int(value) for value in np.unique(mask) if value]
        known["mask"] = {
            "classes": {},
            "dtype": mask.dtype.name,
            "present": present,
            "shape": list(mask.shape),
        }
    jpeg = meta.pop("jpeg", None)
    return Sample(key=key, image=image, mask=mask, jpeg=jpeg, meta=dict.fromkeys(META_KEYS) | known | meta)


@pytest.fixture(scope="session")
def odd_shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """A cube with a box off its centre, two channels of thick slices, 16 bit, tiny, JPEG with labels."""
    generator = np.random.default_rng(0)
    cube = generator.normal(-50, 20, (1, 24, 24, 24)).astype(np.int16)
    cube[0, 2:12, 4:10, 13:21] = 180
    box = (cube[0] > 100).astype(np.uint8)
    thick = np.abs(generator.normal(0, 1, (2, 5, 80, 70))).astype(np.float32)
    ramp = np.linspace(0, 60000, 300 * 200).reshape(1, 300, 200).astype(np.uint16)
    waves = (np.sin(np.arange(500 * 640 * 3) / 9000.0) * 120 + 128).astype(np.uint8).reshape(500, 640, 3)
    buffer = io.BytesIO()
    Image.fromarray(waves).save(buffer, "JPEG", quality=90)
    photo = np.ascontiguousarray(np.asarray(Image.open(buffer)).transpose(2, 0, 1))
    bright = (photo[0] > 99).astype(np.uint8)
    samples = {
        "vol-3d": [
            _described("vol-a", cube, box, spacing=[1.0, 1.0, 1.0], orientation="SAR"),
            _described("vol-b", thick, spacing=[5.0, 0.5, 0.5], modality="mri"),
        ],
        "pic-2d": [
            _described("pic-a", ramp),
            _described("pic-b", generator.integers(0, 255, (3, 4, 5), np.uint8), organ="hand"),
            _described("pic-c", photo, bright, jpeg=buffer.getvalue(), organ="skin"),
        ],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("odd")
    sources = []
    for name, own in samples.items():
        with ShardWriter(folder / f"{name}-00000.tar") as writer:
            for sample in own:
                writer.add(sample)
        sources.append(
            SourceEntry(
                id=name, dataset=name[:3], ndim=int(name[4]), count=len(own), licence="CC0-1.0",
                shards=(writer.entry,),
            )
        )  # fmt: skip
    Manifest(name="odd", sources=tuple(sources)).save(folder)
    return Shards.open(folder)
