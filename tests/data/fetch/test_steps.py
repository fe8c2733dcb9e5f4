"""Datasets that cannot be fetched: the page, the host's own way, and the way back to medloom."""

from __future__ import annotations

import pytest
from medloom.data.errors import ConfigError
from medloom.data.fetch.plan import is_file, plan
from medloom.data.fetch.steps import steps

from . import sets

CATALOG = sets.built_in()


def test_every_dataset_has_a_plan_or_steps():
    fetched = 0
    for dataset in CATALOG:
        if dataset.id == "medmnist":
            continue
        wanted = plan(CATALOG, dataset.id)
        fetched += bool(wanted.parts)
        assert bool(wanted.parts) != bool(wanted.reason), dataset.id
        found = steps(dataset, "datasets")
        assert found and not any("\n" in line or "None" in line for line in found), dataset.id
        if dataset.homepage and dataset.access != "gone":
            assert dataset.homepage in found[0]
    assert fetched >= 38  # ten of the Decathlon, eighteen of MedMNIST, and direct files
    with pytest.raises(ConfigError, match=r"eighteen sets.*pathmnist"):
        plan(CATALOG, "medmnist")


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("4d-lung", "idc download 4d_lung --download-dir d/downloads/4d-lung"),
        ("imagecas", "kaggle datasets download -d xiaoweixumedicalai/imagecas -p d/downloads/imagecas"),
        ("ultrasound-nerve", "kaggle competitions download -c ultrasound-nerve-segmentation"),
        ("brats-2021", "synapse get -r syn51514105"),
        ("amos22", "zenodo_get 7262581 -o d/downloads/amos22"),
        ("verse", "osf -p jtfa5 clone d/downloads/verse"),
        ("kits19", "git clone https://github.com/neheller/kits19 d/downloads/kits19"),
        ("slake", "gdown 1EZ0WpO5Z6BJUqC3iPBQJJS1INWSMsh7U -O d/downloads/slake/"),
        ("lits", "make an account there and join the challenge"),
    ],
)
def test_the_hosts_own_way_is_filled_in(identifier, words):
    found = steps(CATALOG[identifier], "d")
    assert any(words in line for line in found), found
    assert found[-1] == f"medloom data fetch {identifier} --from d/downloads/{identifier} --to d"


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("https://msd-for-monai.s3-us-west-2.amazonaws.com/Task09_Spleen.tar", True),
        ("https://zenodo.org/records/10519652/files/pathmnist.npz?download=1", True),
        ("https://figshare.com/ndownloader/articles/2070109?private_link=x", True),
        ("https://cloud.ircad.fr/index.php/s/JN3z7EynBiwYyjy/download", True),
        ("https://zenodo.org/records/7262581", False),
        ("https://www.dropbox.com/s/k88qukc20ljnbuo/PH2Dataset.rar", False),  # no reader of RAR
        ("https://github.com/neheller/kits19", False),
        ("https://www.kaggle.com/datasets/a/b/download?datasetVersionNumber=1", False),
        ("ftp://host/a.zip", False),
    ],
)
def test_which_addresses_are_files(url, direct):
    assert is_file(url) is direct
