"""Every documented command parses and names configurations that exist; the README path runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from medloom.data.config import find_config
from medloom.scripts import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The `medloom` lines of a page's bash blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.split(" #")[0].strip() for line in lines if line.strip().startswith(("medloom ", "torchrun "))
    ]


ALL = [(page.name, line) for page in PAGES for line in commands(page)]
README = (ROOT / "README.md").read_text()
BY_HAND = [line for line in commands(ROOT / "README.md") if line in README.split("## Public datasets")[0]]
PUBLIC = README.split("## Public datasets")[1].split("\n## ")[0]
ABOUT_PUBLIC = [line for line in commands(ROOT / "README.md") if line in PUBLIC and line not in BY_HAND]


def words(line: str) -> list[str]:
    """Arguments after `medloom` (or after the module name under torchrun)."""
    parts = shlex.split(line)
    start = parts.index("medloom.scripts.cli") if parts[0] == "torchrun" else 0
    return parts[start + 1 :]


@pytest.mark.parametrize(("page", "line"), ALL, ids=lambda value: str(value)[:60])
def test_documented_commands_are_real(page: str, line: str) -> None:
    argv = words(line)
    parser = cli.build_parser(argv[0])
    arguments = cli.parse(parser, argv)  # exits on an unknown flag
    if argv[0] == "pretrain" and arguments.replay is None:
        from medloom.pretrain.config import load_config

        length = load_config(arguments.config, arguments.overrides).trainer
        assert (length.steps or length.epochs or 0) > 0
    elif argv[0] == "finetune":
        from medloom.finetune.config import load_config as load_task

        overrides = [f"encoder={arguments.encoder}", *arguments.overrides]
        assert load_task(arguments.task, overrides).steps > 0
    elif argv[:2] == ["shards", "build"] and "/" not in arguments.collection:
        assert find_config("collections", arguments.collection).exists()


def test_the_readme_shows_the_whole_path() -> None:
    assert [words(line)[0] for line in BY_HAND] == [
        "doctor", "phantoms", "shards", "shards", "shards", "pretrain", "finetune", "evaluate",
    ]  # fmt: skip


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("line", ABOUT_PUBLIC)
def test_the_commands_on_public_datasets_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words(line)) == 0


def test_the_readme_speaks_of_public_datasets() -> None:
    assert {words(line)[0] for line in ABOUT_PUBLIC} == {"catalog"}


@pytest.mark.slow
def test_the_readme_path_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = {
        "phantoms": ["--subjects", "12"],
        "pretrain": ["trainer.steps=4", "trainer.log_every=2", "probe.every_steps=2"],
        "finetune": ["steps=4"],
    }
    for line in BY_HAND:
        argv = words(line)
        assert cli.main([*argv, *shorter.get(argv[0], [])]) == 0, line
    page = (tmp_path / "runs/hand/ultrasound/evaluation/report.html").read_text()
    assert "phantom" in page
