"""Search: every filter against a plain loop over the table, unknown facts apart, near words for typos."""

from __future__ import annotations

import csv

import pytest
from medloom.data.catalog import load
from medloom.data.catalog.parsing import TABLES
from medloom.data.catalog.search import Query, near_words, search
from medloom.data.errors import ConfigError


@pytest.fixture(scope="module")
def catalog():
    return load(own=())


@pytest.fixture(scope="module")
def rows():
    with (TABLES / "datasets.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ids(found) -> set[str]:
    return {dataset.id for dataset in found}


@pytest.mark.parametrize(
    ("query", "test", "fact"),
    [
        (Query(modality=("ct",)), lambda r: "ct" in r["modalities"].split(";"), "modalities"),
        (
            Query(modality=("MR", "US")),
            lambda r: {"mri", "ultrasound"} & {*r["modalities"].split(";")},
            "modalities",
        ),
        (Query(organ=("retina",)), lambda r: "eye" in r["organs"].split(";"), "organs"),
        (Query(task=("detection",)), lambda r: "detection" in r["tasks"].split(";"), "tasks"),
        (Query(category=("others",)), lambda r: r["category"] == "others", "category"),
        (Query(dims=("wsi", "2d+t")), lambda r: {"wsi", "2d+t"} & {*r["dims"].split(";")}, "dims"),
        (Query(file_format=("nifti",)), lambda r: "nifti" in r["formats"].split(";"), "formats"),
        (Query(years=(2015, 2016)), lambda r: r["year"] in ("2015", "2016"), "year"),
        (Query(min_images=5000), lambda r: int(r["n_images"]) >= 5000, "n_images"),
        (Query(licence=("CC-BY-4.0",)), lambda r: r["licence"].startswith("CC-BY-4.0"), "licence"),
        (Query(licence=("known",)), lambda r: bool(r["licence"]), None),
    ],
)
def test_a_filter_finds_what_a_loop_over_the_table_finds(catalog, rows, query, test, fact):
    found = search(catalog, query)
    known = [row for row in rows if fact is None or row[fact]]
    assert ids(found.hits) == {row["id"] for row in known if test(row)}
    assert ids(found.unknown) == {row["id"] for row in rows if row not in known}
    assert 0 < len(found.hits) < len(rows)


def test_access_unknown_is_not_open(catalog, rows):
    found = search(catalog, Query(access=("open",)))
    assert ids(found.hits) == {row["id"] for row in rows if row["access"] == "open"}
    assert ids(found.unknown) == {row["id"] for row in rows if row["access"] == "unknown"}
    asked = search(catalog, Query(access=("unknown",)))
    assert ids(asked.hits) == ids(found.unknown)


def test_commercial_use_is_what_the_licence_allows(catalog):
    found = search(catalog, Query(licence=("commercial",)))
    assert found.hits
    assert all("NC" not in dataset.licence and dataset.licence for dataset in found.hits)
    assert {"msd-task03-liver"} <= ids(found.hits)
    assert "lits" not in ids(found.hits) | ids(found.unknown)  # CC-BY-NC-ND
    assert all(not dataset.licence or "CC" not in dataset.licence[:3] or "/" in dataset.licence
               for dataset in found.unknown)  # fmt: skip


def test_the_example_of_the_manual(catalog):
    query = Query(
        text="liver ct", modality=("ct",), organ=("liver",), task=("segmentation",), licence=("commercial",),
        access=("open",), min_images=100,
    )  # fmt: skip
    found = search(catalog, query)
    assert "msd-task03-liver" in ids(found.hits)
    for dataset in found.hits:
        assert dataset.n_images is not None and dataset.n_images >= 100
        assert dataset.access == "open" and "liver" in dataset.organs and "ct" in dataset.modalities
    assert not ids(found.hits) & ids(found.unknown)


def test_names_come_before_facts_and_facts_before_notes(catalog):
    found = [dataset.id for dataset in search(catalog, Query(text="lits")).hits]
    assert found[0] == "lits"
    assert found.index("lits") < found.index("abdomenct-1k")  # names LiTS in its notes
    assert ids(search(catalog, Query(text="liv c")).hits) >= ids(search(catalog, Query(text="liver ct")).hits)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(modality=("cst",)), "--modality: unknown modality 'cst'; did you mean"),
        (Query(organ=("lver",)), "--organ.*did you mean liver"),
        (Query(task=("segmentaton",)), "--task: unknown 'segmentaton'; did you mean segmentation"),
        (Query(access=("opn",)), "--access.*did you mean open"),
        (Query(licence=("comercial",)), "--licence.*commercial"),
    ],
)
def test_a_wrong_word_names_the_near_ones(catalog, query, message):
    with pytest.raises(ConfigError, match=message):
        search(catalog, query)


def test_a_word_that_no_row_has_names_the_near_ones(catalog):
    assert "liver" in near_words(catalog, "ct livr")
    assert near_words(catalog, "ct liver") == ""
