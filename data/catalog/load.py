"""Load the catalogue: the packaged tables, and beside them the user's own records.

from medloom.data.catalog import load
catalog = load()
catalog["lits"].licence, [r.id for r in catalog.related("lits")]
"""

from __future__ import annotations

from functools import lru_cache

from .catalog import Catalog
from .tables import DATASETS, MEDMNIST, MSD, OVERLAPS, Parser, dataset, medmnist_set, msd_task, overlap, read


@lru_cache(maxsize=1)
def built_in() -> Catalog:
    """The packaged tables alone; read once a process."""
    parser = Parser()
    return Catalog(
        read(DATASETS, dataset, parser),
        [row for path in OVERLAPS for row in read(path, overlap, parser)],
        read(MSD, msd_task, parser),
        read(MEDMNIST, medmnist_set, parser),
    )


def load() -> Catalog:
    """The catalogue."""
    return built_in()
