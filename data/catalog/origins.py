"""The same cases under stricter terms elsewhere: what a republished dataset's own licence does not say."""

from __future__ import annotations

from collections.abc import Iterable

from .catalog import Catalog
from .graph import Level
from .licences import terms
from .records import Dataset
from .vocabulary import RelationKind

_CLOSEST = {RelationKind.SAME_AS, RelationKind.DERIVED_FROM, RelationKind.CONTAINS}


def origins(catalog: Catalog, datasets: Iterable[Dataset]) -> list[str]:
    """Sentences on sets that hold the same cases under terms which restrict more than the row's own."""
    found = []
    for dataset in datasets:
        own = terms(dataset.licence)
        for relative in catalog.related(dataset.id):
            if relative.level is not Level.CERTAIN or not {s.relation for s in relative.path} <= _CLOSEST:
                continue
            other = catalog[relative.id]
            theirs = terms(other.licence)
            more = [
                word
                for word, hit in (
                    ("non-commercial", theirs.commercial is False and own.commercial is not False),
                    ("no-derivatives", theirs.derivatives is False and own.derivatives is not False),
                    ("share-alike", theirs.share_alike is True and own.share_alike is not True),
                )
                if hit
            ]
            if more:
                found.append(
                    f"{dataset.id} is {dataset.licence or 'without a stated licence'}, but {other.id} "
                    f"({relative.steps}) is {other.licence}: {', '.join(more)}"
                )
    return found
