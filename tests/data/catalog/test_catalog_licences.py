"""Licences: what each form means, and what a mixture of them allows."""

from __future__ import annotations

import pytest
from medloom.data.catalog import Dataset, load
from medloom.data.catalog.licences import Terms, mixture, terms


@pytest.mark.parametrize(
    ("licence", "answers"),
    [
        ("CC0-1.0", (True, True, False, False)),
        ("CC-BY-4.0", (True, True, False, True)),
        ("CC-BY-SA-4.0", (True, True, True, True)),
        ("CC-BY-NC-4.0", (False, True, False, True)),
        ("CC-BY-NC-SA-3.0-IGO", (False, True, True, True)),
        ("CC-BY-NC-ND (version unstated)", (False, False, False, True)),
        ("CC-BY-ND-4.0", (True, False, False, True)),
        ("MIT", (True, True, False, True)),
        ("GPL-3.0 (repository)", (True, True, True, True)),
        ("", (None, None, None, None)),
        ("custom", (None, None, None, None)),
        ("challenge-use-only", (False, None, None, None)),
        ("TCIA-Restricted / CC-BY-4.0", (None, None, None, True)),
        ("TCIA-NC-Limited / CC-BY-NC-3.0", (False, None, None, True)),
        ("CC-BY-4.0 (DermaMNIST CC-BY-NC-4.0)", (False, True, False, True)),
    ],
)
def test_what_a_licence_means(licence, answers):
    found = terms(licence)
    assert (found.commercial, found.derivatives, found.share_alike, found.attribution) == answers


def test_every_licence_of_the_catalogue_is_read():
    silent = {d.licence for d in load(own=()) if d.licence and terms(d.licence) == Terms()}
    assert silent == {"custom"}


def made(**licences: str) -> list[Dataset]:
    return [Dataset(id=name, name=name, licence=text) for name, text in licences.items()]


def test_a_mixture_is_as_strict_as_its_strictest_part():
    found = mixture(made(a="CC-BY-4.0", b="CC-BY-NC-4.0", c="CC-BY-SA-4.0"))
    assert (found.terms.commercial, found.terms.derivatives, found.terms.share_alike) == (False, True, True)
    assert found.decided_by["non-commercial"] == ("b",)
    assert found.decided_by["share-alike"] == ("c",)
    assert "no-derivatives" not in found.decided_by
    assert found.weights.startswith("unknown")


def test_unknown_terms_of_one_part_are_unknown_of_the_whole():
    found = mixture(made(a="CC0-1.0", b=""))
    assert found.terms.commercial is None
    assert found.unknown == ("b",)
    assert found.weights.startswith("unknown: the terms of b")
    assert mixture(made(a="CC-BY-NC-4.0", b="")).terms.commercial is False  # forbidden anyway


def test_two_share_alike_licences_cannot_both_be_carried():
    found = mixture(made(a="CC-BY-SA-4.0", b="CC-BY-NC-SA-4.0"))
    assert any("CC-BY-NC-SA-4.0, CC-BY-SA-4.0" in sentence for sentence in found.conflicts)
    assert not mixture(made(a="CC-BY-SA-4.0", b="CC-BY-SA-4.0")).conflicts
    assert any("no changed copy of a" in sentence for sentence in mixture(made(a="CC-BY-ND-4.0")).conflicts)


def test_weights_may_be_shared_only_where_both_readings_of_the_law_agree():
    assert mixture(made(a="CC0-1.0")).weights.startswith("yes:")
    assert mixture(made(a="CC-BY-4.0", b="MIT")).weights.startswith("yes, naming the sources")
    for licence in ("CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "", "TCIA-Restricted"):
        assert mixture(made(a="CC0-1.0", b=licence)).weights.startswith("unknown")
