"""What the licences of the training data say about sharing weights, for the gate and the model card.

Whether weights are a derivative of the data is an open question of law. The gate does not answer it: a source
that forbids profit or changed copies, or whose terms are not known, stops a release, because of the two
answers one would forbid it. The publisher may know more (a permission, a ruling, a private hub): an override
states a reason, which encoder.json and the card repeat. Facts for planning, not legal advice.

Each source has the licence that the collection states; where the catalogue knows the dataset, the stricter of
the two counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...data.catalog.licences import Terms, strictest, terms


@dataclass(frozen=True, slots=True)
class Part:
    """One dataset that the weights, or those they started from, have seen."""

    dataset: str
    images: int
    licence: str  # as the collection states it
    catalogued: str  # as the catalogue has it; empty: it does not know the dataset
    restricts: str  # both together, in words
    forbids: str  # why weights may not be shared; empty: nothing that is known
    elsewhere: tuple[str, ...] = ()  # the same cases under stricter terms, a sentence each


def parts(record: Mapping[str, Any]) -> list[Part]:
    """Every training source of an encoder.json, those of its ancestors included, each dataset once."""
    from ...data.catalog import load
    from ...data.catalog.origins import origins

    catalog = load()
    found: dict[str, Part] = {}
    for source in _sources(record):
        name, licence = str(source.get("dataset")), str(source.get("licence") or "")
        row = next((catalog[known] for known in [name] if known in catalog), None)
        said = _terms(licence)
        whole = said if row is None or not row.licence else strictest([said, _terms(row.licence)])
        images = int(source.get("count") or 0) + (found[name].images if name in found else 0)
        found[name] = Part(
            name, images, licence or "unknown", row.licence if row else "", whole.words, _forbids(whole),
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
    each = [_terms(part.licence) for part in every]
    return {
        "parts": [asdict(part) | {"elsewhere": list(part.elsewhere)} for part in every],
        "together": strictest(each).words if each else "unknown",
        "credit": [part.dataset for part, one in zip(every, each, strict=True) if one.attribution],
        "share_alike": [part.dataset for part, one in zip(every, each, strict=True) if one.share_alike],
        "forbids": forbids,
        "override": override if forbids else None,
    }


def _sources(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    training = record.get("training") or {}
    yield from training.get("sources") or []
    if training.get("ancestor"):
        yield from _sources(training["ancestor"])


def _unrecorded(record: Mapping[str, Any]) -> list[str]:
    """Why the sources on record are not all: a sentence each."""
    training = record.get("training") or {}
    if not training.get("sources"):
        return ["encoder.json names no training data, so nothing is known of their licences"]
    ancestor, start = training.get("ancestor"), training.get("init_from")
    if ancestor:
        return _unrecorded(ancestor)
    return [f"it started from {start}, whose training data and licence are not on record"] if start else []


def _terms(licence: str) -> Terms:
    """Terms of what a manifest writes: the licences of several records joined by commas, each counts."""
    return strictest(terms(part) for part in licence.split(",") if part.strip())


def _forbids(found: Terms) -> str:
    if found.commercial is False:
        return "non-commercial"
    if found.derivatives is False:
        return "no derivatives"
    if found.commercial is None or found.derivatives is None:
        return "its terms are not known" + (" (an agreement)" if found.agreement else "")
    return ""
