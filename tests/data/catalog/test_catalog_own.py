"""The user's own records in YAML: beside the built-in ones, related to them, and refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from medloom.data.catalog import Basis, load
from medloom.data.catalog.search import Query, search
from medloom.data.errors import ConfigError
from medloom.data.sample import Modality

GOOD = """
datasets:
  - id: our-liver-ct
    name: Our liver CT
    modalities: [ct]
    organs: [liver]
    tasks: [segmentation]
    n_images: 40
    unit: volumes
    licence: CC-BY-NC-4.0
overlaps:
  - {a: our-liver-ct, relation: shares-cases, b: lits}
"""


def written(folder: Path, text: str, name: str = "ours.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_own_records_answer_every_question(tmp_path):
    catalog = load(own=[written(tmp_path, GOOD)])
    ours = catalog["our-liver-ct"]
    assert (ours.modalities, ours.n_images) == ((Modality.CT,), 40)
    assert (ours.basis, ours.mark, ours.origin) == (Basis.OWN, "+", str(tmp_path / "ours.yaml"))
    assert len(catalog) == 1315
    assert ours in search(catalog, Query(text="our liver", licence=("non-commercial",))).hits
    assert "our-liver-ct" in catalog.clean_for("msd-task03-liver").ids  # through LiTS
    assert catalog.related("our-liver-ct")[0].id == "lits"
    assert catalog.related("our-liver-ct")[0].basis is Basis.OWN
    assert "our-liver-ct" not in load(own=())


def test_they_are_found_where_the_user_keeps_them(tmp_path, monkeypatch):
    assert "our-liver-ct" not in load()
    written(Path(os.environ["XDG_CONFIG_HOME"]), GOOD, "medloom/catalog/ours.yaml")
    assert "our-liver-ct" in load()
    other = written(tmp_path, GOOD.replace("our-", "their-").replace("Our ", "Their "))
    monkeypatch.setenv("MEDLOOM_CATALOG", str(other))
    assert "their-liver-ct" in load()
    assert "our-liver-ct" not in load()
    monkeypatch.setenv("MEDLOOM_CATALOG", os.pathsep.join([str(tmp_path / "no"), str(other)]))
    with pytest.raises(ConfigError, match="no such file or folder"):
        load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("modalities: [ct]", "modalities: [cst]"),
            r"our-liver-ct: modalities: unknown 'cst'; did you mean ct",
        ),
        (("organs:", "organ:"), r"unknown key; did you mean organs"),
        (("b: lits", "b: litz"), r"no dataset litz; did you mean lits"),
        (("id: our-liver-ct", "id: lits"), r"id lits is taken.*same-as"),
        (("id: our-liver-ct", "id: Our CT"), r"lower-case letters"),
        (("shares-cases", "shares"), r"relation: unknown 'shares'; did you mean shares-cases"),
        (("n_images: 40", "n_images: many"), r"n_images"),
    ],
)
def test_a_wrong_record_is_refused_with_file_and_mend(tmp_path, change, message):
    text = GOOD.replace(*change)
    assert text != GOOD
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as raised:
        load(own=[path])
    assert "ours.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)
