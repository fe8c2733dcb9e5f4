"""The catalogue as one page: facets, search, a view of each dataset with its relations.

1,314 rows make a file of 1.3 MB. Facets, search words and relations are computed here, from the records that
the commands use, so that page and terminal agree; the page itself only filters, sorts and draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..catalog import Catalog
from ..catalog.graph import Level
from ..catalog.licences import terms
from ..catalog.records import Dataset, Overlap
from ..catalog.search import haystack
from ..catalog.vocabulary import RECALLED, Access, Category
from .bundle import bundle, write_page
from .sections import sections

STYLES = ("base.css", "catalog.css")
SCRIPTS = (
    "base.js",
    "catalog-index.js",
    "catalog-list.js",
    "catalog-graph.js",
    "catalog-detail.js",
    "catalog.js",
)
UNKNOWN = "?"  # as in base.js
_CAPITALS = frozenset(
    (
        "ct",
        "cbct",
        "dbt",
        "mri",
        "pet",
        "spect",
        "oct",
        "octa",
        "slo",
        "dsa",
        "em",
        "eeg",
        "meg",
        "vqa",
        "wsi",
    )
)

FACETS = {
    "modality": "Modality", "organ": "Organ", "category": "Category", "task": "Task", "licence": "Licence",
    "access": "Access", "year": "Year",
}  # fmt: skip
BASES = {
    "partly recalled": "Some facts of this row are recalled, not read in a source; which, is not recorded.",
    "recalled": "Recalled, not read in a source.",
    "own": "A record of your own, not of the built-in catalogue.",
}
ACCESS = {
    Access.OPEN: "direct download, no account", Access.REGISTRATION: "free account or terms to click",
    Access.CHALLENGE: "join on the challenge's site", Access.APPLICATION: "a person approves, or a fee",
    Access.GONE: "withdrawn", Access.UNKNOWN: "nobody has looked",
}  # fmt: skip


def write_catalog_page(catalog: Catalog, out: Path) -> Path:
    """Write `index.html` of the catalogue into the folder `out`; returns its path.

    Raises:
        ConfigError: it cannot be written.
    """
    return write_page(out, catalog_page(catalog))


def catalog_page(catalog: Catalog) -> str:
    """The page as HTML."""
    count = f"{len(catalog):,} medical image datasets"
    relations = f"{len(catalog.overlaps):,} relations between them are recorded."
    return bundle(
        "Catalogue of medical image datasets", styles=STYLES, scripts=SCRIPTS, body="catalog.html",
        words={"title": count, "kicker": "medloom catalogue", "footer": relations}, data=payload(catalog),
    )  # fmt: skip


def payload(catalog: Catalog) -> dict[str, Any]:
    """What the page is made from, as plain JSON values."""
    patterns: dict[tuple[str, ...], int] = {}
    rows = [_row(dataset) | sections(catalog, dataset, patterns) for dataset in catalog]
    place = {overlap: number for number, overlap in enumerate(catalog.overlaps)}
    return {
        "title": "Catalogue of medical image datasets",
        "datasets": rows,
        "facets": [_facet(key, label, (row["facets"][key] for row in rows)) for key, label in FACETS.items()],
        "relations": [_relation(overlap) for overlap in catalog.overlaps],
        "relatives": _relatives(catalog, place),
        "bases": BASES,
        "commands": [list(pattern) for pattern in patterns],
        "access": ACCESS,
        "recalled": sorted(RECALLED),
    }


def _row(dataset: Dataset) -> dict[str, Any]:
    """One dataset; what is unknown or empty is left out."""
    facets = {
        "modality": [str(token) for token in dataset.modalities],
        "organ": [str(token) for token in dataset.organs],
        "category": [str(dataset.category)] if dataset.category else [],
        "task": [str(token) for token in dataset.tasks],
        "licence": _licence(dataset.licence),
        "access": [str(dataset.access)],
        "year": [str(dataset.year)] if dataset.year else [],
    }
    row = {
        "id": dataset.id,
        "name": dataset.name,
        "facets": {key: values or [UNKNOWN] for key, values in facets.items()},
        "basis": str(dataset.basis),
        "year": dataset.year,
        "dims": ", ".join(_spelt(word) for word in dataset.dims),
        "count": dataset.n_images,
        "unit": str(dataset.unit or ""),
        "subjects": dataset.n_subjects,
        "formats": ", ".join(dataset.formats),
        "access": str(dataset.access),
        "licence": dataset.licence,
        "terms": terms(dataset.licence).words,
        "homepage": dataset.homepage,
        "download": list(dataset.download),
        "notes": dataset.notes,
        "sources": list(dataset.sources),
        "remembered": list(dataset.recalled),
        "words": haystack(dataset),
        **_paper(dataset.paper),
    }
    return {name: value for name, value in row.items() if value or name == "sources"}


def _licence(licence: str) -> list[str]:
    """What the licence allows and asks, in the words of `medloom catalog search --licence`."""
    found = terms(licence)
    answers = {
        "commercial": found.commercial is True, "non-commercial": found.commercial is False,
        "share-alike": found.share_alike is True, "no-derivatives": found.derivatives is False,
        "agreement": found.agreement, UNKNOWN: found.commercial is None,
    }  # fmt: skip
    return [word for word, holds in answers.items() if holds]


def _paper(paper: str) -> dict[str, str]:
    """Address and words of `doi:...`, `arXiv:...` or a URL."""
    for prefix, address in (("doi:", "https://doi.org/"), ("arXiv:", "https://arxiv.org/abs/")):
        if paper.startswith(prefix):
            return {"paper": address + paper.removeprefix(prefix), "paper_label": paper}
    return {"paper": paper}


def _facet(key: str, label: str, rows: Iterable[list[str]]) -> dict[str, Any]:
    """Values of a facet: years in order, the rest by number of datasets; "not known" last."""
    counts = Counter(value for values in rows for value in values)
    unknown = counts.pop(UNKNOWN, 0)
    if key == "year":
        ordered = sorted(counts)
        ordered = [str(year) for year in range(int(ordered[0]), int(ordered[-1]) + 1)] if ordered else []
    elif key == "category":
        ordered = [str(category) for category in Category if str(category) in counts]
    else:
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
    values = [{"value": value, "label": _spelt(value)} for value in ordered]
    return {
        "key": key,
        "label": label,
        "values": values + [{"value": UNKNOWN, "label": "not known"}] * bool(unknown),
    }


def _spelt(token: str) -> str:
    """`ct` -> `CT`, `2d+t` -> `2D+T`; words stay as they are."""
    special = {"fmri": "fMRI", "dmri": "diffusion MRI", "x-ray": "X-ray", "commercial": "commercial use"}
    capital = token in _CAPITALS or token[:1].isdigit()
    return special.get(token) or (token.upper() if capital else token)


def _relation(overlap: Overlap) -> list[str]:
    return [overlap.a, str(overlap.relation), overlap.b, str(overlap.basis), overlap.evidence_url]


def _relatives(catalog: Catalog, place: Mapping[Overlap, int]) -> dict[str, list[list[int | str]]]:
    """{id: [[relative, the one it hangs on, number of the last relation, 1 when only possible], ...]}.

    The one before the last step of a best path is a relative itself, with a path that is at least as sure, so
    these steps form a tree, listed here from its root.
    """
    found: dict[str, list[list[int | str]]] = {}
    for identifier in {end for overlap in catalog.overlaps for end in (overlap.a, overlap.b)}:
        if identifier not in catalog:
            continue
        found[identifier] = [
            [
                relative.id,
                last.a if last.b == relative.id else last.b,
                place[last],
                int(relative.level is Level.POSSIBLE),
            ]
            for relative in catalog.related(identifier)
            for last in relative.path[-1:]
        ]
    return dict(sorted(found.items()))
