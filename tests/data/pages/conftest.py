"""A browser for the tests of the pages; without Chromium they are skipped, and say so."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from medloom.data.catalog import load
from medloom.data.pages.catalog import write_catalog_page

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
