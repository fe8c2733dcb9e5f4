"""The demo at a few steps: every stage runs, the report stands, a second run only continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from medloom.scripts import cli


@pytest.mark.slow
def test_the_demo_runs_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--quick"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("done in")
    assert str((out / "report.html").resolve()) in last
    page = (out / "report.html").read_text()
    assert "phantom" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for track in ("phantom-ultrasound", "phantom-ct-lesion"):
        summary = json.loads((out / track / "evaluation" / "summary.json").read_text())
        assert set(summary["arms"]) >= {"pretrained", "scratch"}
    rows = (out / "phantom-mae-2d" / "metrics.jsonl").read_text()

    assert cli.main(["demo", "--out", str(out), "--quick"]) == 0
    assert (out / "phantom-mae-2d" / "metrics.jsonl").read_text() == rows
