"""How fast the pages open, filter and search, in a headless Chromium, from disk.

    python -m benchmarks.pages
    python -m benchmarks.pages --shards shards/phantoms --pictures docs/pictures

One row a catalogue: the built-in one, and 10,000 rows generated from it. *open*: from the start of the
navigation until the list and the counts are there. *filter* clicks each value of each facet, *letter* types
five queries letter by letter: CPU time of the page's main thread for one change, its script, style, layout
and painting together (a frame at 60 Hz is 16.7 ms). CPU time, since wall time would count other work too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from medloom.data import open_shards
from medloom.data.catalog import Catalog, load
from medloom.data.pages.catalog import write_catalog_page
from medloom.data.pages.gallery import write_gallery
from medloom.scripts.console import print_table, say
from PIL.Image import Quantize

BROWSER = Path(__file__).resolve().parents[1] / "tests/data/pages/browser.py"
WORDS = ("liver ct", "brain tumor mri", "retina", "covid", "nuclei segmentation")

_CLICK = "document.querySelectorAll('#facets input[data-value]')[{}].click()"
_TYPE = (
    "(() => {{ const field = document.getElementById('query'); field.value = {}; "
    "field.dispatchEvent(new Event('input')); }})()"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000], help="sizes of generated catalogues")
    parser.add_argument("--shards", type=Path, help="a folder of shards for the gallery")
    parser.add_argument("--pictures", type=Path, help="folder for the screenshots of the documentation")
    arguments = parser.parse_args()
    browsers = _browser_module()
    binary = browsers.find_chromium()
    if binary is None:
        say("no Chromium on this machine: nothing measured")
        return
    with browsers.Browser(binary) as browser, tempfile.TemporaryDirectory() as work:
        browser.size(1440, 900)
        catalogs = [load(()), *[_generated(count) for count in arguments.rows]]
        pages = [_written(catalog, Path(work) / str(len(catalog))) for catalog in catalogs]
        print_table([_measured(browser, *page) for page in pages], title="catalogue")
        if arguments.shards:
            say()
            folder = Path(work) / "gallery"
            print_table([_gallery(browser, arguments.shards, folder)], title="gallery")
            if arguments.pictures:
                _gallery_pictures(browser, folder / "index.html", arguments.pictures)
        if arguments.pictures:
            _pictures(browser, pages[0][1], arguments.pictures)


def _browser_module() -> Any:
    """The browser of the tests."""
    spec = importlib.util.spec_from_file_location("pages_browser", BROWSER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _generated(count: int) -> Catalog:
    """The built-in rows again and again under other ids, relations included."""
    built_in = load(())
    rows, relations = [], []
    for turn in range(-(-count // len(built_in))):
        rows += [replace(row, id=f"{row.id}-{turn}", name=f"{row.name} {turn}") for row in built_in]
        relations += [replace(one, a=f"{one.a}-{turn}", b=f"{one.b}-{turn}") for one in built_in.overlaps]
    rows = rows[:count]
    known = {row.id for row in rows}
    return Catalog(rows, [one for one in relations if one.a in known and one.b in known])


def _written(catalog: Catalog, folder: Path) -> tuple[int, Path, float]:
    start = time.perf_counter()
    path = write_catalog_page(catalog, folder)
    return len(catalog), path, time.perf_counter() - start


def _measured(browser: Any, rows: int, path: Path, written: float) -> dict[str, Any]:
    """Open five times, then click every facet on and off, and type five queries."""
    opened = []
    for _ in range(5):
        browser.open(path)
        opened.append(browser.run("performance.getEntriesByName('shown')[0].startTime"))
    browser.send("Performance.enable", timeDomain="threadTicks")
    boxes = browser.run("document.querySelectorAll('#facets input[data-value]').length")
    filters = [_cost(browser, _CLICK.format(box)) for box in range(boxes) for _ in range(2)]
    typed = [text[:end] for text in WORDS for end in range(len(text) + 1)]
    letters = [_cost(browser, _TYPE.format(repr(text))) for text in typed]
    browser.send("Performance.disable")
    return {
        "rows": rows, "file MB": round(path.stat().st_size / 1e6, 2), "written s": round(written, 2),
        "open ms": round(statistics.median(opened)), "worst": round(max(opened)),
        "filter ms": round(statistics.median(filters), 1), "p95 filter": round(_high(filters), 1),
        "letter ms": round(statistics.median(letters), 1), "p95 letter": round(_high(letters), 1),
        "changes": len(filters) + len(letters),
    }  # fmt: skip


def _high(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _cost(browser: Any, action: str) -> float:
    """CPU ms of the main thread for an action and the two frames after it, less those of no action."""
    browser.run("new Promise(done => setTimeout(done, 80))")  # what the change before it left to do
    spent = []
    for what in ("0", action):
        before = _busy(browser)
        browser.run(what)
        browser.settle()
        spent.append(_busy(browser) - before)
    return 1000 * (spent[1] - spent[0])


def _busy(browser: Any) -> float:
    metrics = {one["name"]: one["value"] for one in browser.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


def _gallery(browser: Any, shards: Path, folder: Path) -> dict[str, Any]:
    """Write, open, and scroll through every slice of the first volume."""
    start = time.perf_counter()
    made = write_gallery(open_shards(shards), folder)
    written = time.perf_counter() - start
    browser.open(made.path)
    opened = browser.run("performance.getEntriesByName('shown')[0].startTime")
    return {
        "samples": made.shown, "kinds": made.cells, "MB": round(made.bytes / 1e6, 1),
        "written s": round(written, 1), "open ms": round(opened),
    }  # fmt: skip


def _pictures(browser: Any, page: Path, out: Path) -> None:
    """Screenshots for docs/pages.md."""
    browser.size(1280, 760)
    browser.prefer("light")
    browser.open(page, "#/?q=liver&modality=ct&task=segmentation")
    _save(browser, out / "catalog-page.png")
    browser.size(1280, 1180)
    browser.prefer("dark")
    browser.open(page, "#/dataset/lits")
    browser.click("#reach")
    browser.run("document.querySelector('.relations').scrollIntoView(); scrollBy(0, -24)")
    browser.settle()
    _save(browser, out / "catalog-relations.png")
    browser.prefer("light")


def _gallery_pictures(browser: Any, page: Path, out: Path) -> None:
    browser.size(1280, 820)
    browser.prefer("light")
    browser.open(page)
    browser.wait("[...document.images].slice(0, 16).every(image => image.complete && image.naturalWidth)")
    _save(browser, out / "gallery.png")
    samples = "JSON.parse(document.getElementById('data').textContent).samples"
    key = browser.run(f"{samples}.find(sample => sample.classes.length && sample.ndim === 3).key")
    browser.open(page, f"#/sample/{key}")
    browser.wait("document.getElementById('canvas').dataset.drawn")
    _save(browser, out / "gallery-viewer.png")


def _save(browser: Any, path: Path) -> None:
    """The window in 256 colours, rare ones kept: half of the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = browser.run("[innerWidth, innerHeight]")
    box = {"x": browser.run("scrollX"), "y": browser.run("scrollY"), "width": size[0], "height": size[1]}
    browser.screenshot(box | {"scale": 1}).quantize(256, Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
