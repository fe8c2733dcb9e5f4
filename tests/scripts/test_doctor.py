"""The doctor names faults with their mend and exits accordingly."""

from __future__ import annotations

from pathlib import Path

import pytest
from medloom.scripts import cli, doctor


def test_a_sound_machine_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "torch" in shown
    assert "offline" in shown


def test_missing_shards_are_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--shards", str(tmp_path)]) == 1
    assert "fault" in capsys.readouterr().out


def test_a_missing_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    states = {finding.what: finding.state for finding in doctor.packages()}
    assert states["no-such-package"] == "fault"


def test_more_workers_than_cores_is_noted() -> None:
    cores = next(finding for finding in doctor.processors(workers=10_000) if finding.what == "cpu cores")
    assert cores.state == "note"
    assert "data.workers=" in cores.mend
