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


@pytest.mark.parametrize(
    ("environment", "machine", "says"),
    [
        ({}, "api.wandb.ai", "logged in"),
        ({"WANDB_BASE_URL": "https://tracker.example:8080"}, "tracker.example", "logged in"),
        ({"WANDB_BASE_URL": "https://tracker.example:8080"}, "api.wandb.ai", "no login"),
        ({}, "wandb.elsewhere.example", "no login"),
        ({"WANDB_MODE": "dryrun"}, "api.wandb.ai", "kept offline"),
        ({"WANDB_MODE": "disabled"}, "api.wandb.ai", "not logged"),
        ({"WANDB_MODE": "online"}, "elsewhere.example", "without a login"),
    ],
)
def test_tracking_is_told_as_runs_choose_it(
    environment: dict[str, str], machine: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(f"machine {machine} login user password {'0' * 40}\n")
    (finding,) = doctor.tracking()
    assert says in finding.found and (finding.state == "ok") == (says == "logged in")


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
