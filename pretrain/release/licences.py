"""What the licences of the training data say about sharing weights, for the gate and the model card.

Whether weights are a derivative of the data is an open question of law. The gate does not answer it: a source
that forbids profit or changed copies, or whose terms are not known, stops a release, because of the two
answers one would forbid it. The publisher may know more (a permission, a ruling, a private hub): an override
states a reason, which encoder.json and the card repeat. Facts for planning, not legal advice.

Each source has the licence that the collection states; where the catalogue knows the dataset, the stricter of
the two counts. Weights that it was made from count like a source where their own licence is on record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...data.catalog.licences import Terms, strictest, terms
from ..artefact import generations


@dataclass(frozen=True, slots=True)
class Part:
    """One dataset that the weights, or those they started from, have seen; or the licence of the latter."""

    dataset: str
    images: int
    licences: tuple[str, ...]  # as the collections state them
    catalogued: str  # as the catalogue has it; empty: it does not know the dataset
    terms: Terms  # all of these together
    elsewhere: tuple[str, ...] = ()  # the same cases under stricter terms, a sentence each

    @property
    def licence(self) -> str:
        """What the collections state."""
        return ", ".join(self.licences)

    @property
    def forbids(self) -> str:
        """Why weights may not be shared; empty: nothing that is known."""
        found = self.terms
        if found.commercial is False:
            return "non-commercial"
        if found.derivatives is False:
            return "no derivatives"
        if found.commercial is None or found.derivatives is None:
            return "its terms are not known" + (" (an agreement)" if found.agreement else "")
        return ""

    def said(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "dataset": self.dataset, "images": self.images, "licence": self.licence,
            "catalogued": self.catalogued, "restricts": self.terms.words, "forbids": self.forbids,
            "elsewhere": list(self.elsewhere),
        }  # fmt: skip


def parts(record: Mapping[str, Any]) -> list[Part]:
    """Every training source of an encoder.json, those of its ancestors included, each dataset once."""
    from ...data.catalog import load
    from ...data.catalog.origins import origins

    catalog = load()
    found: dict[str, Part] = {}
    for source in _sources(record):
        name, licence = str(source.get("dataset")), str(source.get("licence") or "")
        row = catalog[name] if name in catalog else None  # noqa: SIM401 (a Catalog has no get)
        every = [_terms(licence), *([_terms(row.licence)] if row is not None and row.licence else [])]
        images, stated = int(source.get("count") or 0), (licence or "unknown",)
        if name in found:
            images += found[name].images
            stated = tuple(dict.fromkeys((*found[name].licences, *stated)))
            every.append(found[name].terms)
        found[name] = Part(
            name, images, stated, row.licence if row else "", strictest(every),
            tuple(origins(catalog, [row])) if row else (),
        )  # fmt: skip
    return [found[name] for name in sorted(found)]


def judged(record: Mapping[str, Any], override: str | None = None) -> dict[str, Any]:
    """The `licences` section of encoder.json.

    Returns:
        parts, together (in words), credit (datasets to be named), forbids (a sentence each; empty: the
        weights may be shared), override (the reason why they are shared nevertheless, or None).
    """
    every = parts(record)
    forbids = [f"{part.dataset} ({part.licence}): {part.forbids}" for part in every if part.forbids]
    forbids += _unrecorded(record)
    return {
        "parts": [part.said() for part in every],
        "together": strictest(part.terms for part in every).words,
        "credit": [part.dataset for part in every if part.terms.attribution],
        "share_alike": [part.dataset for part in every if part.terms.share_alike],
        "forbids": forbids,
        "override": override if forbids else None,
    }


def _sources(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The training sources of all generations, and what is stated of their weights."""
    name = record.get("source")
    for one in generations(record):
        training = one.get("training") or {}
        if one.get("licence"):
            yield {"dataset": f"weights of {name}", "licence": one["licence"]}
        yield from training.get("sources") or []
        name = training.get("init_from") or "what it started from"


def _unrecorded(record: Mapping[str, Any]) -> list[str]:
    """Why the sources on record are not all: a sentence."""
    where, what = "encoder.json", "it"
    for one in generations(record):
        training = one.get("training") or {}
        if not training.get("sources"):
            return [f"{where} names no training data, so nothing is known of their licences"]
        if training.get("complete") is False:
            return [f"what {what} was trained on is known only in part"]
        start = training.get("init_from")
        if start and not training.get("ancestor"):
            return [f"it started from {start}, whose training data and licence are not on record"]
        what = str(start or "what it started from")
        where = f"the record of {what}"
    return []


def _terms(licence: str) -> Terms:
    """Terms of what a manifest writes: the licences of several records joined by commas, each counts."""
    return strictest(terms(part) for part in licence.split(",") if part.strip())
