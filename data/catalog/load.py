"""Load the catalogue: the packaged tables, and beside them the user's own records.

    from medloom.data.catalog import load
    catalog = load()
    catalog["lits"].licence, [relative.id for relative in catalog.related("lits")]

The tables are read once a process (20 ms); own YAML costs OmegaConf's import, 0.2 s, only where there is any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .catalog import Catalog
from .own import own_files, read_own, yaml_files
from .parsing import DATASETS, MEDMNIST, MSD, OVERLAPS, Parser, dataset, medmnist_set, msd_task, overlap, read


@lru_cache(maxsize=1)
def built_in() -> Catalog:
    """The packaged tables alone."""
    parser = Parser()
    return Catalog(
        read(DATASETS, dataset, parser),
        [row for path in OVERLAPS for row in read(path, overlap, parser)],
        read(MSD, msd_task, parser),
        read(MEDMNIST, medmnist_set, parser),
    )


def load(own: Sequence[Path] | None = None) -> Catalog:
    """The catalogue.

    Args:
        own: files or folders of the user's records; None: where `own_files` finds them; (): none.

    Raises:
        ConfigError: an own record is wrong; names file, record and the near words.
    """
    files = own_files() if own is None else yaml_files(own)
    packaged = built_in()
    if not files:
        return packaged
    datasets, overlaps = read_own(files, (item.id for item in packaged))
    return Catalog(
        [*packaged.datasets, *datasets],
        [*packaged.overlaps, *overlaps],
        list(packaged.msd.values()),
        list(packaged.medmnist.values()),
    )
