"""The command table: help of every command, light imports, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from medloom.scripts import cli


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: medloom {name}" in shown
    assert cli.COMMANDS[name][1][1:30] in " ".join(shown.split())


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from medloom.scripts import cli\n"
        "try: cli.main(['pretrain', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'timm', 'wandb', 'blosc2', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrian"])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "phantom-ct-lesion", "steps=3", "seed=1", "--encoder", "x"],
        ["finetune", "phantom-ct-lesion", "--encoder", "x", "steps=3", "seed=1"],
        ["finetune", "phantom-ct-lesion", "steps=3", "--encoder", "x", "seed=1"],
    ],
)
def test_overrides_may_stand_anywhere(words: list[str]) -> None:
    assert cli.parse(cli.build_parser("finetune"), words).overrides == ["steps=3", "seed=1"]


@pytest.mark.parametrize(
    "words", [["doctor", "a=b"], ["pretrain", "x", "--steps=3"], ["pretrain", "x", "steps"]]
)
def test_what_is_no_override_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if words[-1] == "steps":  # a bare word is taken as an override and refused by the configuration
        assert cli.main(["pretrain", "phantom-mae-2d", "steps"]) == 2
    else:
        with pytest.raises(SystemExit):
            cli.parse(cli.build_parser(words[0]), words)
    assert words[-1] in capsys.readouterr().err


def test_a_users_mistake_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "phantom-mae-2"]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: phantom-mae-2: no such file")
    assert "did you mean phantom-mae-2d" in shown
    assert "\n" not in shown
    assert "Traceback" not in shown
