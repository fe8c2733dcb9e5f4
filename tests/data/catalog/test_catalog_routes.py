"""Routes: facts with their basis, baselines from the tables, task records and commands that exist here."""

from __future__ import annotations

import shlex

import pytest
from medloom.data.catalog import load
from medloom.data.catalog.pictures import draw
from medloom.data.catalog.routes import route, tasks_here
from medloom.data.catalog.statistics import statistics
from medloom.data.errors import ConfigError
from medloom.scripts import cli
from PIL import Image


@pytest.fixture(scope="module")
def catalog():
    return load(own=())


def test_the_decathlon_has_metrics_tolerances_and_baselines(catalog):
    found = route(catalog, "msd-task03-liver")
    assert found.metrics[0] == "Dice" and "7 mm" in found.metrics[1]
    assert "recalled" in found.metrics_basis
    nnunet = next(b for b in found.baselines if b.name == "nnU-Net, leaderboard")
    assert nnunet.scores["Dice liver"] == 95.75 and nnunet.scores["NSD cancer"] == 90.65
    assert "recalled" in nnunet.status and nnunet.source
    assert found.leaderboard is not None and "recalled" in found.leaderboard.basis


def test_medmnist_has_the_published_table(catalog):
    found = route(catalog, "pathmnist")
    assert found.metrics == ("AUC", "ACC")
    assert {b.name: b.scores for b in found.baselines}["ResNet-18 (28)"] == {"AUC": 0.983, "ACC": 0.907}
    three = {b.name for b in route(catalog, "organmnist3d").baselines}
    assert "ResNet-18 (3d)" in three and "ResNet-18 (28)" not in three


def test_an_address_that_was_only_derived_says_so(catalog):
    grand = next(d for d in catalog if "grand-challenge.org" in d.homepage and d.id not in catalog.msd)
    found = route(catalog, grand.id).leaderboard
    assert found is not None and found.value.endswith("/evaluation/challenge/leaderboard/")
    assert "not opened" in found.basis
    assert route(catalog, "ham10000").leaderboard is None  # unknown stays unknown
    with pytest.raises(ConfigError, match="did you mean"):
        route(catalog, "ham1000")


def test_task_records_name_datasets_of_the_catalogue(catalog):
    found = {task.name: task.dataset for task in route(catalog, "ham10000").tasks}
    assert found == {"dermamnist": "dermamnist"} | {
        f"realdata-derm{part}": "derm_ham10000" for part in ("", "-age", "-retrieval")
    }
    for name, ids, _, _ in tasks_here():
        known = any(identifier in catalog for identifier in ids)
        assert known or name.startswith(("phantom", "generic")), name


@pytest.mark.parametrize("identifier", ["msd-task03-liver", "msd-task10-colon", "pathmnist", "organmnist3d"])
def test_the_route_of_a_benchmark_leads_from_fetching_to_a_score(catalog, identifier):
    found = route(catalog, identifier)
    assert [task.name for task in found.tasks if not task.part] == [identifier]
    wanted = [
        f"medloom data fetch {identifier}",
        f"medloom shards build datasets/{identifier}/collection.yaml --out shards/{identifier}",
        f"medloom finetune {identifier} --root datasets --encoder ENCODER --out runs/{identifier}",
        f"medloom evaluate runs/{identifier}",
    ]
    assert [line for line in found.commands if line in wanted] == wanted


def test_where_no_kind_of_task_fits_the_route_says_so(catalog):
    assert "no record yet" in route(catalog, "drive").no_task
    assert {route(catalog, name).no_task for name in catalog.medmnist} == {""}
    shown = route(catalog, "medmnist").commands  # has no files of its own
    assert shown == tuple(f"medloom catalog show {member}" for member in catalog.medmnist)


@pytest.mark.parametrize(
    "identifier", ["ham10000", "lits", "medmnist", "chestmnist", "drive", *load(()).msd, *load(()).medmnist]
)
def test_the_commands_of_a_route_are_real(catalog, identifier):
    commands = route(catalog, identifier).commands
    for line in commands:
        argv = shlex.split(line)[1:]
        arguments = cli.parse(cli.build_parser(argv[0]), argv)  # exits on what does not exist
        assert callable(arguments.run)


def test_statistics_add_up_and_are_drawn(catalog, tmp_path):
    report = statistics(catalog)
    assert report["datasets"] == len(catalog)
    for facet in ("category", "year", "access", "facts", "commercial use"):
        assert sum(report["by"][facet].values()) == len(catalog), facet
    assert report["by"]["modality"]["mri"] == sum("mri" in d.modalities for d in catalog)
    assert report["modality x organ"]["ct"]["liver"] == sum(
        "ct" in d.modalities and "liver" in d.organs for d in catalog
    )
    paths = draw(report, tmp_path)
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").resize((64, 64)).getdata())) > 8  # not blank
