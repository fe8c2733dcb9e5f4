"""What releases/ holds: the encoders that the registry pins, their cards, and whether they may be there."""

from __future__ import annotations

from pathlib import Path

import pytest
from medloom.pretrain.artefact import CARD, MODELING, RECORD, read_record
from medloom.pretrain.hub.registry import registry
from medloom.pretrain.release.card import card
from medloom.pretrain.release.licences import judged
from medloom.pretrain.release.verify import verify
from medloom.pretrain.weights import load_encoder

RELEASES = Path(__file__).parents[2] / "releases"
NAMES = sorted(folder.name for folder in RELEASES.iterdir() if folder.is_dir())


def test_the_registry_names_each_and_pins_it() -> None:
    shipped = {name: one for name, one in registry().items() if one.folder}
    assert set(NAMES) <= set(shipped) and NAMES
    for name in NAMES:
        one, record = shipped[name], read_record(RELEASES / name / RECORD)
        assert Path(str(one.folder)) == RELEASES / name
        facts = (one.sha256, one.bytes, one.architecture, one.ndim, one.parameters, one.licence)
        assert facts == (
            record["sha256"], record["bytes"], record["architecture"]["name"], record["ndim"],
            record["parameters"], record["release"]["licence"],
        )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_by_name_and_proves_its_features(name: str) -> None:
    encoder, report = load_encoder(name, prove=True)
    assert report.proved is not None and report.proved < 1e-3
    assert sum(p.numel() for p in encoder.parameters()) == registry()[name].parameters
    assert sum(path.stat().st_size for path in (RELEASES / name).iterdir()) < 25e6
    assert all(check.result != "FAILED" for check in verify(RELEASES / name).checks)


@pytest.mark.parametrize("name", NAMES)
def test_every_licence_allows_it_to_be_here(name: str) -> None:
    record = read_record(RELEASES / name / RECORD)
    found = judged(record)
    assert found["forbids"] == [] and found["override"] is None
    assert found["parts"] == record["licences"]["parts"]
    assert not found["share_alike"] or "SA" in record["release"]["licence"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_what_its_record_says_and_has_scores_with_leakage_statements(name: str) -> None:
    folder = RELEASES / name
    record = read_record(folder / RECORD)
    text = (folder / CARD).read_text(encoding="utf-8")
    body = card(record).split("\n## Input\n")[1]  # before it: how to use what lies beside it
    assert text.split("\n## Input\n")[1] == body
    assert ("from modeling import load" in text) == (folder / MODELING).is_file()
    assert record["scores"] and all(row["leakage"] == "clean" for row in record["scores"])
    assert all(row["low"] <= row["mean"] <= row["high"] for row in record["scores"])
