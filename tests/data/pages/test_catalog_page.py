"""data/pages/catalog.py in a browser: search, facets, keys, views, relations, narrow screen, hostile text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from medloom.data.catalog import Catalog, Dataset, Overlap, load
from medloom.data.catalog.licences import terms
from medloom.data.catalog.records import Basis
from medloom.data.catalog.search import Query, search
from medloom.data.catalog.vocabulary import Access, RelationKind
from medloom.data.pages.catalog import catalog_page, payload, write_catalog_page

SHOWN = "[...document.querySelectorAll('#rows a.row')].map(a => decodeURIComponent(a.hash.split('/').pop()))"
FOCUS = "document.activeElement.hash || document.activeElement.id"
COUNTS = (
    "Object.fromEntries([...document.querySelectorAll('#facets input[data-value]')]"
    ".map(i => [i.dataset.facet + ' ' + i.dataset.value,"
    " Number(i.parentElement.querySelector('output').textContent.replace(/,/g, ''))]))"
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(())


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    return json.loads(found[1])


def all_shown(browser: Any) -> list[str]:
    """Ids of every row, after scrolling to the end."""
    browser.wait(
        "(() => { const more = document.getElementById('more'); if (!more.hidden) more.click();"
        " return more.hidden; })()"
    )
    return browser.run(SHOWN)


def test_it_opens_from_disk_and_asks_for_nothing_else(browser: Any, catalog_file: Path) -> None:
    browser.open(catalog_file)
    assert browser.text("#found") == "1,314 datasets"
    assert {url for url in browser.requests if not url.startswith("data:")} == {catalog_file.as_uri()}
    assert browser.complaints == []
    assert re.search(r"(src|href)=\"https?:", catalog_file.read_text().split('id="data"')[0]) is None


@pytest.mark.parametrize("query", ["liver ct", "brats", "LiTS", "retin", "cxr", "covid-19 seg", "zzzz"])
def test_the_search_finds_what_the_command_finds_in_its_order(
    browser: Any, catalog_file: Path, catalog: Catalog, query: str
) -> None:
    browser.open(catalog_file, f"#/?q={query.replace(' ', '%20')}")
    assert all_shown(browser) == [dataset.id for dataset in search(catalog, Query(text=query)).hits]


def test_it_searches_while_one_types(browser: Any, catalog_file: Path) -> None:
    browser.open(catalog_file)
    browser.press("/")
    browser.type("lits")
    assert browser.run(SHOWN)[0] == "lits"
    assert browser.run("document.querySelector('#rows mark').textContent.toLowerCase()") == "lits"
    browser.wait("location.hash.includes('q=lits')")
    browser.press("Escape")
    assert browser.text("#found") == "1,314 datasets"


def facets_of(dataset: Dataset) -> dict[str, set[str]]:
    """What the facets should say of a dataset, worked out apart from the page's own code."""
    licence = terms(dataset.licence)
    known = {
        "modality": set(map(str, dataset.modalities)), "organ": set(map(str, dataset.organs)),
        "category": {str(dataset.category)} if dataset.category else set(),
        "task": set(map(str, dataset.tasks)), "access": {str(dataset.access)},
        "year": {str(dataset.year)} if dataset.year else set(),
        "licence": {
            word for word, holds in (
                ("commercial", licence.commercial), ("non-commercial", licence.commercial is False),
                ("share-alike", licence.share_alike), ("no-derivatives", licence.derivatives is False),
                ("agreement", licence.agreement), ("?", licence.commercial is None),
            ) if holds
        },
    }  # fmt: skip
    return {name: values or {"?"} for name, values in known.items()}


@pytest.mark.parametrize(
    "chosen",
    [
        {"modality": ["ct"], "organ": ["liver", "kidney"]},
        {"task": ["segmentation"], "licence": ["commercial"], "access": ["open", "registration"]},
        {"category": ["head-neck"], "year": ["2019", "2020"], "modality": ["?"]},
    ],
)
def test_facets_narrow_and_their_counts_say_what_one_more_click_would_give(
    browser: Any, catalog_file: Path, catalog: Catalog, chosen: dict[str, list[str]]
) -> None:
    browser.open(catalog_file)
    for facet, values in chosen.items():
        for value in values:
            control = f'#facets [data-facet="{facet}"][data-value="{value}"]'
            browser.run(f"document.querySelector({json.dumps(control)}).click()")
    browser.settle()
    facets = [facets_of(dataset) for dataset in catalog]

    def fits(row: dict[str, set[str]], but: str = "") -> bool:
        return all(row[name] & set(values) for name, values in chosen.items() if name != but)

    expected = {dataset.id for dataset, row in zip(catalog, facets, strict=True) if fits(row)}
    assert set(all_shown(browser)) == expected
    counts = browser.run(COUNTS)
    assert len(counts) > 100
    for name, count in counts.items():
        facet, value = name.split(" ", 1)
        assert count == sum(value in row[facet] for row in facets if fits(row, but=facet)), name
    for year in range(2015, 2024):
        title = browser.run(f"document.querySelector('.bar[data-value=\"{year}\"]').title")
        number = sum(str(year) in row["year"] for row in facets if fits(row, but="year"))
        assert title == f"{year}: {number} dataset{'' if number == 1 else 's'}"


def test_years_can_be_given_as_a_span_and_as_a_range_of_bars(
    browser: Any, catalog_file: Path, catalog: Catalog
) -> None:
    browser.open(catalog_file)
    browser.click("#year-from")
    browser.type("2018")
    browser.press("Tab")
    expected = sum(dataset.year is not None and dataset.year >= 2018 for dataset in catalog)
    assert browser.text("#found") == f"{expected} of 1,314 datasets"
    browser.open(catalog_file)
    browser.click('.bar[data-value="2012"]')
    browser.click('.bar[data-value="2015"]', shift=True)
    expected = sum(dataset.year in range(2012, 2016) for dataset in catalog)
    assert browser.text("#found") == f"{expected} of 1,314 datasets"
    assert "2012–2015" in browser.text("#chips")
    browser.click("#chips button")
    assert browser.text("#found") == "1,314 datasets"


def test_everything_can_be_done_with_the_keyboard(browser: Any, catalog_file: Path) -> None:
    browser.open(catalog_file, "#/?modality=ct&organ=liver")
    browser.press("/")
    assert browser.run(FOCUS) == "query"
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press("j")
    browser.press("k")
    second = browser.run(SHOWN)[1]
    assert browser.run(FOCUS) == f"#/dataset/{second}"
    browser.press("Enter")
    browser.wait("!document.getElementById('record').hidden")
    assert browser.run("document.activeElement.tagName") == "H1"
    browser.press("Escape")
    browser.wait("!document.getElementById('catalog').hidden")
    assert browser.run(FOCUS) == f"#/dataset/{second}"
    assert "modality=ct" in browser.run("location.hash")
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    assert browser.run(FOCUS) == "query"
    browser.press("?")  # belongs to the text field
    assert not browser.run("document.getElementById('help').open")
    browser.run("document.activeElement.blur()")
    browser.press("?")
    assert browser.run("document.getElementById('help').open")
    browser.press("Escape")
    assert not browser.run("document.getElementById('help').open")


def test_the_address_holds_the_state_and_back_returns_to_it(browser: Any, catalog_file: Path) -> None:
    browser.open(catalog_file, "#/?q=ct&task=segmentation|detection&sort=newest")
    found = browser.text("#found")
    years = browser.run("[...document.querySelectorAll('#rows .year')].map(e => e.textContent.slice(-4))")
    known = [year for year in years if year.isdigit()]
    assert known == sorted(known, reverse=True) and known
    browser.run("scrollTo(0, 700)")
    browser.run("document.querySelectorAll('#rows a.row')[12].click()")
    browser.wait("!document.getElementById('record').hidden")
    browser.run("history.back()")
    browser.wait("!document.getElementById('catalog').hidden")
    assert browser.text("#found") == found
    assert browser.run("scrollY") == 700
    browser.open(catalog_file, "#/?modality=nonsense&sort=nonsense")
    assert browser.text("#found") == "1,314 datasets"


def test_the_page_knows_the_relatives_that_the_command_knows(catalog: Catalog) -> None:
    data = payload(catalog)
    checked = 0
    for dataset in catalog:
        listed = data["relatives"].get(dataset.id, [])
        expected = {relative.id: relative for relative in catalog.related(dataset.id)}
        assert {entry[0] for entry in listed} == set(expected), dataset.id
        reachable = {dataset.id}
        for name, parent, number, possible in listed:
            a, kind, b, _, _ = data["relations"][number]
            assert {a, b} == {name, parent}
            step = expected[name].path[-1]
            assert (step.a, str(step.relation), step.b) == (a, kind, b)
            assert possible == (expected[name].level == "possible")
        for _ in listed:
            reachable |= {name for name, parent, _, _ in listed if parent in reachable}
        assert reachable == {dataset.id, *expected}, f"{dataset.id}: the steps form no tree"
        checked += len(listed)
    assert checked > 1000


def test_relations_are_a_graph_in_which_recalled_ones_are_dashed(
    browser: Any, catalog_file: Path, catalog: Catalog
) -> None:
    browser.open(catalog_file, "#/dataset/lits")
    browser.wait("!!document.getElementById('graph')")
    direct = {o.a if o.b == "lits" else o.b: o for o in catalog.overlaps if "lits" in (o.a, o.b)}
    nodes = (
        "[...document.querySelectorAll('#graph a.node')]"
        ".map(a => decodeURIComponent(a.getAttribute('href').split('/').pop()))"
    )
    assert set(browser.run(nodes)) == set(direct)
    recalled = sum(overlap.basis is Basis.RECALLED for overlap in direct.values())
    dashed = "document.querySelectorAll('#graph .edge[stroke-dasharray]').length"
    assert browser.run(dashed) == recalled > 0
    assert browser.text(".said").count("recalled") == recalled
    assert "recalled, not read in a source" in browser.text("#legend")
    browser.click("#reach")
    related = {relative.id for relative in catalog.related("lits")}
    assert set(browser.run(nodes)) == related and len(related) > 40
    overlapping = (
        "(() => { const texts = [...document.querySelectorAll('#graph text')];"
        " const boxes = texts.map(t => t.getBoundingClientRect());"
        " return boxes.filter((a, i) => boxes.some((b, j) => j > i && a.left < b.right && b.left < a.right"
        " && a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3)).length; })()"
    )
    assert browser.run(overlapping) == 0
    browser.run("document.querySelector('#graph a[href=\"#/dataset/ircadb-3d\"]').focus()")
    browser.press("Enter")
    browser.wait("location.hash === '#/dataset/ircadb-3d'")
    assert browser.text("#detail h1") == catalog["ircadb-3d"].name


def test_recalled_facts_are_marked_in_the_list_and_in_the_view(
    browser: Any, catalog_file: Path, catalog: Catalog
) -> None:
    browser.open(catalog_file)
    marked = browser.run(
        "[...document.querySelectorAll('#rows li')].filter(li => li.querySelector('.basis'))"
        ".map(li => decodeURIComponent(li.querySelector('a').hash.split('/').pop()))"
    )
    shown = browser.run(SHOWN)
    assert marked == [name for name in shown if catalog[name].basis is not Basis.READ]
    assert 0 < len(marked) < len(shown)
    browser.open(catalog_file, "#/dataset/msd-task03-liver")
    assert "recalled" in browser.text("#detail .note")
    scores = (
        "[...document.querySelectorAll('#detail section')].find(s => s.textContent.startsWith('Published'))"
    )
    assert browser.run(f"{scores}.querySelector('.basis').textContent").startswith("~~")
    assert "95.75" in browser.run(f"{scores}.innerText")
    assert "medloom data fetch msd-task03-liver" in browser.text("#detail pre")


def test_every_dataset_has_a_view_with_its_facts(browser: Any, catalog_file: Path, catalog: Catalog) -> None:
    browser.open(catalog_file)
    for dataset in list(catalog)[::97]:
        browser.run(f"location.hash = '#/dataset/{dataset.id}'")
        browser.wait(f"document.querySelector('#detail .kicker')?.textContent === '{dataset.id}'")
        text = browser.text("#detail")
        assert dataset.name in text and (dataset.licence or "not known") in text
        assert dataset.n_images is None or f"{dataset.n_images:,} {dataset.unit}" in text
    browser.run("location.hash = '#/dataset/no-such-set'")
    browser.wait("document.querySelector('#detail h1').textContent.includes('no-such-set')")
    assert browser.complaints == []


WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_scrolls_only_downwards_and_has_a_drawer(
    browser: Any, catalog_file: Path, width: int
) -> None:
    browser.size(width, 760)
    browser.open(catalog_file, "#/?q=liver")
    assert not browser.run(WIDE)
    assert browser.run("getComputedStyle(document.getElementById('sidebar')).display") == "none"
    browser.click("#filters")
    assert browser.run("document.getElementById('sidebar').checkVisibility()")
    browser.run("document.querySelector('#facets input[data-value=\"ct\"]').click()")
    browser.settle()
    assert browser.text("#drawer-done") == "Show " + browser.text("#found").split(" of ")[0] + " datasets"
    browser.click("#drawer-done")
    assert not browser.run("document.getElementById('sidebar').checkVisibility()")
    assert browser.text("#filters") == "Filters (1)"
    browser.open(catalog_file, "#/dataset/abdomenatlas-8k")
    assert not browser.run(WIDE)
    assert browser.run("document.querySelectorAll('#graph a.node').length") > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("fragment", ["#/?modality=ct&q=liver", "#/dataset/msd-task04-hippocampus"])
def test_text_is_readable_in_light_and_dark(
    browser: Any, catalog_file: Path, low_contrast: str, scheme: str, fragment: str
) -> None:
    browser.prefer(scheme)
    browser.open(catalog_file, fragment)
    assert browser.run("document.documentElement.dataset.theme") == scheme
    assert browser.run(low_contrast) == []
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != paper
    browser.run("localStorage.clear()")


def test_every_control_has_a_name(browser: Any, catalog_file: Path) -> None:
    browser.open(catalog_file)
    tree = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "checkbox", "link", "searchbox", "textbox", "combobox"}
    controls = [
        node for node in tree if node.get("role", {}).get("value") in roles and not node.get("ignored")
    ]
    assert len(controls) > 100
    assert [node for node in controls if not node.get("name", {}).get("value")] == []


HOSTILE = '</script><img src=x onerror="document.title=1">"\'&<b>'


def test_hostile_text_of_own_records_stays_text(browser: Any, tmp_path: Path, catalog: Catalog) -> None:
    own = Dataset(
        id="own-set", name=f"Mine {HOSTILE}", notes=HOSTILE, homepage="javascript:alert(1)",
        licence=HOSTILE, access=Access.OPEN, origin="own.yaml",
    )  # fmt: skip
    small = Catalog(
        [own, catalog["lits"]],
        [Overlap(a="own-set", relation=RelationKind.CONTAINS, b="lits", origin="own.yaml")],
    )
    page = write_catalog_page(small, tmp_path)
    browser.open(page, "#/?q=mine%20%3Cb%3E")
    assert browser.run("document.querySelector('#rows a.row b').textContent") == own.name
    assert browser.run("document.querySelector('#rows .basis span').textContent") == "+"
    browser.open(page, "#/dataset/own-set")
    assert browser.text("#detail h1") == own.name
    assert browser.run("document.querySelectorAll('#detail img, a[href^=javascript]').length") == 0
    assert browser.run("document.title").startswith("Mine </script>")
    assert [text for text in browser.complaints if "Content Security" not in text] == []
    # A string that got past escaping would still not run: the policy names the page's own script only.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    browser.run("fetch('https://example.org/').then(() => { window.ran = 2; }, () => {})")
    browser.settle()
    assert browser.run("window.ran ?? 0") == 0


@pytest.fixture
def many(catalog: Catalog) -> Callable[[int], Catalog]:
    """`many(n)`: a catalogue of n rows, the built-in ones again and again under other ids."""

    def generate(count: int) -> Catalog:
        rows = [(number, catalog.datasets[number % len(catalog)]) for number in range(count)]
        return Catalog([replace(row, id=f"{row.id}-{n}", name=f"{row.name} {n}") for n, row in rows])

    return generate


def test_ten_thousand_rows_stay_usable(
    browser: Any, tmp_path: Path, many: Callable[[int], Catalog], catalog_file: Path
) -> None:
    page = write_catalog_page(many(10_000), tmp_path)
    browser.open(page)
    assert browser.text("#found") == "10,000 datasets"
    # What a change draws does not grow with the rows: this is what keeps it within a frame.
    drawn = "document.querySelectorAll('*').length"
    large = browser.run(drawn)
    browser.open(catalog_file)  # the rows below the first screen are drawn when the page is idle
    browser.wait(f"Math.abs({drawn} / {large} - 1) < 0.05")
    browser.open(page)
    browser.press("/")
    browser.type("lits 9")
    assert 0 < len(all_shown(browser)) < 100
    browser.open(page)
    before = browser.run(f"{SHOWN}.length")
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"{SHOWN}.length > {before}")
    assert browser.complaints == []


def test_the_same_catalogue_gives_the_same_bytes(catalog: Catalog) -> None:
    assert catalog_page(catalog) == catalog_page(load(()))
