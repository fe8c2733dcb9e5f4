"""`medloom catalog ...` from the command line: what each prints, in which form, and what it returns."""

from __future__ import annotations

import csv
import io
import json

import pytest
from medloom.scripts import cli

PAGE = "https://example.org/terms"


def run(capsys, *argv: str, status: int = 0) -> str:
    assert cli.main(["catalog", *argv]) == status
    return capsys.readouterr().out


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_search_gives_the_same_answer_in_every_form(capsys):
    asked = ["search", "liver ct", "--modality", "ct", "--organ", "liver", "--task", "segmentation",
             "--licence", "commercial", "--access", "open", "--min-images", "100"]  # fmt: skip
    shown = run(capsys, *asked)
    found = json.loads(run(capsys, *asked, "--format", "json"))
    table = rows(run(capsys, *asked, "--format", "csv"))
    names = [item["id"] for item in found]
    assert "msd-task03-liver" in names
    assert [row["id"] for row in table] == names
    assert all(name in shown for name in names)
    assert f"{len(names)} of 1,314 match" in shown
    assert "more may match" in shown
    assert "~ some facts recalled" in shown
    assert {"basis", "terms", "sources", "notes"} <= set(table[0])
    liver = next(item for item in found if item["id"] == "msd-task03-liver")
    assert (liver["basis"], liver["terms"]) == ("partly recalled", "share-alike")
    assert liver["modalities"] == ["ct"]


def test_search_limits_counts_and_helps(capsys):
    assert len(rows(run(capsys, "search", "ct", "--limit", "3", "--format", "csv"))) == 3
    assert "the first 3 are shown" in run(capsys, "search", "ct", "--limit", "3")
    assert "did you mean liver" in run(capsys, "search", "livr")
    every = rows(run(capsys, "search", "--licence", "commercial", "--format", "csv"))
    more = rows(run(capsys, "search", "--licence", "commercial", "--unknown", "--format", "csv"))
    assert len(more) > len(every) > 100
    years = {row["year"] for row in rows(run(capsys, "search", "--year", "2015-2016", "--format", "csv"))}
    assert years == {"2015", "2016"}
    assert run(capsys, "search", "--year", "sometime", status=2) == ""


def test_show_has_facts_marks_route_and_commands(capsys):
    shown = run(capsys, "show", "msd-task03-liver")
    for words in (
        "msd-task03-liver ~", "1 liver, 2 cancer", "a90ec6c4aa7f6a3d087205e23d4e6397", "CC-BY-SA-4.0",
        "medicaldecathlon.com", "leaderboard", "NSD at 7 mm", "nnU-Net, leaderboard", "95.75", "recalled",
        "medloom data fetch msd-task03-liver", "medloom shards build", "lits",
    ):  # fmt: skip
        assert words in shown, words
    record = json.loads(run(capsys, "show", "msd-task03-liver", "--format", "json"))
    assert record["msd"]["archive_md5"] == "a90ec6c4aa7f6a3d087205e23d4e6397"
    assert record["route"]["baselines"][0]["status"].startswith("recalled")
    assert "realdata-derm" in run(capsys, "show", "ham10000")
    assert cli.main(["catalog", "show", "lit"]) == 2
    assert "did you mean lits" in capsys.readouterr().err


def test_related_and_clean_for_say_level_basis_and_limits(capsys):
    shown = run(capsys, "related", "lits")
    assert "certain" in shown and "possible" in shown and "recalled" in shown
    steps = json.loads(run(capsys, "related", "lits", "--format", "json"))
    assert all(step["evidence_url"].startswith("http") for item in steps for step in item["path"])
    answer = json.loads(run(capsys, "clean-for", "msd-task03-liver", "--format", "json"))
    excluded = {item["id"] for item in answer["excluded"]}
    assert {"lits", "organamnist", "abdomenatlas", "medmnist"} <= excluded
    assert not excluded & set(answer["clean"])
    assert answer["not_known"]
    clean = rows(run(capsys, "clean-for", "msd-task03-liver", "--format", "csv"))
    assert [row["id"] for row in clean] == answer["clean"]
    assert {row["id"] for row in clean if row["same_cases_unknown"] == "True"} == set(answer["unknown"])
    table = run(capsys, "clean-for", "msd-task03-liver")
    assert "cannot be known" in table and "msd-task03-liver = lits < abdomenct-1k" in table
    assert "no relation is recorded; that is no proof" in run(capsys, "related", "msd-task05-prostate")


def test_licence_states_effective_terms_and_stricter_origins(capsys):
    shown = run(capsys, "licence", "msd-task03-liver", "pathmnist")
    assert "together: share-alike" in shown
    assert "may weights trained on it be shared: unknown" in shown
    assert "lits (msd-task03-liver = lits) is CC-BY-NC-ND-4.0: non-commercial, no-derivatives" in shown
    found = json.loads(run(capsys, "licence", "pathmnist", "bloodmnist", "--format", "json"))
    assert found["weights"].startswith("yes")
    assert found["effective"]["commercial"] is True
    assert "unknown" in run(capsys, "licence", "pathmnist", "abdomenct-1k")


def test_stats_in_every_form_with_pictures(capsys, tmp_path):
    shown = run(capsys, "stats", "--out", str(tmp_path / "pictures"))
    assert "partly recalled" in shown
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    report = json.loads(run(capsys, "stats", "--format", "json"))
    table = rows(run(capsys, "stats", "--format", "csv"))
    assert {row["value"]: int(row["datasets"]) for row in table if row["facet"] == "organ"} == report["by"][
        "organ"
    ]


def test_validate_passes_here_and_fails_on_a_fault(capsys, tmp_path):
    import shutil

    from medloom.data.catalog.parsing import TABLES

    assert "0 faults; 1,314 datasets" in run(capsys, "validate")
    tables = shutil.copytree(TABLES, tmp_path / "tables")
    path = tables / "datasets.csv"
    path.write_text(path.read_text().replace("\nlits,LiTS,2017,", "\nlits,LiTS,217,"))
    assert "(lits): year '217'" in run(capsys, "validate", str(tables), status=1)
    own = tmp_path / "own.yaml"
    own.write_text("datasets:\n  - {id: ours, modalities: [ct]}\n")
    assert "1 own ones" in run(capsys, "validate", "--own", str(own))
    assert "ours +" in run(capsys, "search", "ours", "--own", str(own))
    own.write_text("datasets:\n  - {id: ours, modality: [ct]}\n")
    run(capsys, "validate", "--own", str(own), status=2)


def test_report_error_prints_a_patch_and_nothing_else(capsys):
    patch = run(capsys, "report-error", "sliver07", "licence=CC-BY-4.0", "--evidence", PAGE)
    assert patch.startswith("diff --git a/data/catalog/tables/datasets.csv")
    changed = [line for line in patch.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[:9] for line in changed] == ["-sliver07", "+sliver07"]
    more = run(capsys, "report-error", "sliver07", "--relation", "shares-cases:lits", "--evidence", PAGE)
    assert f"+sliver07,shares-cases,lits,{PAGE}," in more
    assert run(capsys, "report-error", "sliver07", "--evidence", PAGE, status=2) == ""
    with pytest.raises(SystemExit):  # a correction without evidence is none
        cli.main(["catalog", "report-error", "sliver07", "licence=MIT"])
