"""A site on the loopback, and the catalogue that points to it."""

from __future__ import annotations

import pytest

from ..loopback import serve
from . import sets


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with serve(folder) as running:
        running.etags = True
        yield running


@pytest.fixture
def spleen(site):
    """The catalogue with a small Task09 on the loopback."""
    catalog = sets.built_in()
    sets.msd_tar(site.folder / "Task09_Spleen.tar", catalog.msd[sets.SPLEEN])
    return sets.served(catalog, site.folder, site.url)
