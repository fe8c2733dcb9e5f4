"""The packaged tables as typed records: complete, typed, light, and honest about what was recalled."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from medloom.data.catalog import Basis, load
from medloom.data.catalog.parsing import TABLES, Parser, dataset, read
from medloom.data.catalog.records import Dataset
from medloom.data.catalog.vocabulary import MODALITY_TOKENS, Access, Category, Companion, Task, Unit
from medloom.data.errors import ConfigError
from medloom.data.sample import Modality, Organ


@pytest.fixture(scope="module")
def catalog():
    return load(own=())


def test_every_row_of_the_tables_is_a_record(catalog):
    for name, records in (
        ("datasets", catalog.datasets),
        ("msd", catalog.msd),
        ("medmnist", catalog.medmnist),
    ):
        with (TABLES / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(records) == len(rows)
    assert (len(catalog), len(catalog.msd), len(catalog.medmnist)) == (1314, 10, 18)
    assert sum(o.relation != "member-of" for o in catalog.overlaps) >= 214


def test_values_are_typed_and_of_the_shared_vocabulary(catalog):
    liver = catalog["msd-task03-liver"]
    assert liver.modalities == (Modality.CT,)
    assert liver.organs == (Organ.LIVER,)
    assert (liver.n_images, liver.unit, liver.year) == (201, Unit.VOLUMES, 2018)
    assert (liver.access, liver.category, liver.tasks) == (
        Access.OPEN, Category.CHEST_ABDOMEN, (Task.SEGMENTATION,),
    )  # fmt: skip
    assert all(isinstance(m, Modality | Companion) for d in catalog for m in d.modalities)
    assert {m.value for m in Modality} < set(MODALITY_TOKENS)


def test_the_benchmarks_carry_what_fetching_and_scoring_need(catalog):
    task = catalog.msd["msd-task03-liver"]
    assert task.labels == {0: "background", 1: "liver", 2: "cancer"}
    assert task.median_spacing_mm == (0.77, 0.77, 1.0)
    assert task.scores["nnunet_leaderboard_dsc"] == (95.75, 75.97)
    assert "recalled" in task.results_status
    assert task.url_aws.endswith("Task03_Liver.tar") and len(task.archive_md5) == 32
    path = catalog.medmnist["pathmnist"]
    assert path.sizes == (28, 64, 128, 224) == tuple(path.url) == tuple(path.md5)
    assert len(path.labels) == path.n_classes == 9
    assert path.n_train + path.n_val + path.n_test == path.n_total
    assert all(
        item.source_dataset in catalog for item in catalog.medmnist.values() if " " not in item.source_dataset
    )


def test_an_unknown_id_names_the_near_ones(catalog):
    with pytest.raises(ConfigError, match=r"did you mean.*msd-task03-liver"):
        catalog["msd-task03-livr"]
    assert catalog["MSD_Task03_Liver"].id == "msd-task03-liver"


def test_recalled_facts_are_marked(catalog):
    def row(*sources: str) -> Dataset:
        return Dataset(id="x", name="X", sources=sources)

    assert row("imaging-x").basis is Basis.READ
    assert row("imaging-x", "other:curated").basis is Basis.PARTLY_RECALLED
    assert row("other:curated").basis is Basis.RECALLED
    assert (row("imaging-x").mark, row("imaging-x").recalled) == ("", ())
    assert row("imaging-x", "other:li2021-recalled").mark == "~"
    assert "Li et al. 2021" in row("imaging-x", "other:li2021-recalled").recalled[0]
    with (TABLES / "overlaps.csv").open(newline="") as file:
        recalled = sum(line["basis"].startswith("recalled") for line in csv.DictReader(file))
    assert sum(o.basis is Basis.RECALLED for o in catalog.overlaps[:214]) == recalled == 137


def test_a_wrong_cell_names_table_line_and_column(tmp_path: Path):
    lines = (TABLES / "datasets.csv").read_text().splitlines(keepends=True)
    broken = tmp_path / "datasets.csv"
    broken.write_text("".join([*lines[:5], lines[5].replace(",mri,", ",mrj,"), *lines[6:8]]))
    assert broken.read_text() != "".join(lines[:8])
    with pytest.raises(
        ConfigError, match=r"datasets.csv line 6: modalities: unknown 'mrj'; did you mean mri"
    ):
        read(broken, dataset, Parser())
    broken.write_text(lines[0] + "a,b,c\n")
    with pytest.raises(ConfigError, match="line 2: 3 cells"):
        read(broken, dataset, Parser())


def test_loading_imports_nothing_heavy():
    code = (
        "import sys\nfrom medloom.data.catalog import load\nload(own=()).clean_for('msd-task03-liver')\n"
        "heavy = {'numpy', 'torch', 'omegaconf', 'yaml', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
