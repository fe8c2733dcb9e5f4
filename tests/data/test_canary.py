"""Nothing that names a person travels: a canary in every place that can hold text is found in no output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ReadError
from medloom.data.ingest.build import BuildResult, build
from medloom.data.readers import jpeg, read
from medloom.data.readers.dicom_facts import ALLOWED

from .canary_files import PICTURES, sources, write_collection
from .canary_search import CANARY, WORDS, found_below, found_in, needles, unpacked


@dataclass(frozen=True)
class Built:
    """A collection full of canaries, its shards, and all that was logged meanwhile."""

    root: Path
    shards: Path
    result: BuildResult
    log: str
    filled: int


class _Lines(logging.Handler):
    """Keeps everything that is logged, of any library at any level."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()} {record.args} {record.exc_text}")


@contextlib.contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Lines of all loggers at debug level."""
    handler, root = _Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("made")
    collection, filled = write_collection(root)
    with everything_logged() as lines:
        result = build(Collection.load(collection), out / "shards")
    return Built(root, out / "shards", result, "\n".join(lines), filled)


@pytest.fixture(scope="module")
def made(built: Built) -> tuple[Path, str]:
    """What the commands make of the shards: pages, statistics, a training run; and what they print."""
    out = built.shards.parent / "more"
    out.mkdir()
    run = [
        "pretrain", "phantom-mae-2d", f"data.shards={built.shards}", f"out={out / 'run'}", "trainer.steps=3",
        "trainer.log_every=1", "data.batch_size=4", "trainer.checkpoint_every_steps=3", "probe.every_steps=0",
        "panels.every_steps=2", "tracking.wandb=offline", "data.workers=0", "name=canary",
    ]  # fmt: skip
    commands = [
        ["-v", "shards", "show", str(built.shards)],
        ["-v", "shards", "check", str(built.shards)],
        ["-v", "shards", "stats", str(built.shards), "--out", str(out / "stats")],
        ["-v", "gallery", str(built.shards), "--out", str(out / "gallery")],
        ["-v", *run],
        ["-v", "report", "--run", str(out / "run"), "--out", str(out / "report.html")],
    ]
    code = (
        "import json, sys, pathlib\n"
        "from medloom.scripts.cli import main\n"
        "from medloom.data import open_shards\n"
        "from medloom.data.inspect.gallery import contact_sheet\n"
        "folder, sheet, commands = json.loads(sys.argv[1])\n"
        "contact_sheet(open_shards(folder), pathlib.Path(sheet))\n"
        "codes = [main(command) for command in commands]\n"
        "assert codes == [0] * len(codes), codes\n"
    )
    words = json.dumps([str(built.shards), str(out / "sheet.png"), commands])
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CONFIG_HOME": str(out / "config"), "XDG_CACHE_HOME": str(out / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout + done.stderr


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    for word in WORDS:
        for how, needle in needles(word).items():
            assert len(needle) > 5, how
            assert found_in(b"\0\1" + needle + b"\2"), how
    assert found_in(f"x{CANARY}y".encode("utf-16-le")) and not found_in(b"nobody")
    assert any("dicom" in hit for hit in found_below_a_name(tmp_path))


def found_below_a_name(folder: Path) -> list[str]:
    (folder / f"dicom-{CANARY}").mkdir()
    (folder / f"dicom-{CANARY}" / "a").write_bytes(b"")
    return found_below(folder)


def test_the_canaries_are_in_the_sources(built: Built) -> None:
    assert built.filled > 3000, "attributes of the dictionary, sequences and private blocks"
    for path in sources(built.root):
        if "missing" not in path.name and path.suffix not in (".yaml", ".img"):
            hits = [hit for name, data in unpacked(path.name, path.read_bytes()) for hit in found_in(data)]
            assert hits or "cut" in path.name or path.name.endswith("seg.nii.gz"), path.name


def test_images_of_every_kind_are_stored(built: Built) -> None:
    counts = {entry.id: entry.count for entry in built.result.manifest.sources}
    assert counts["slices-3d"] >= 1 and counts["slices-2d"] >= 2
    assert counts["volumes-3d"] == 3 and counts["pictures-2d"] == 7 and counts["others-3d"] == 2
    reasons = " | ".join(failure.reason for failure in built.result.failures)
    assert len(built.result.failures) > 10 and "BurnedInAnnotation is YES" in reasons


def test_no_canary_is_in_the_shards_or_the_lists(built: Built) -> None:
    names = {path.name for path in built.shards.rglob("*")}
    assert {"failures.jsonl", "excluded.jsonl", "manifest.json", "slices-3d-00000.tar"} <= names
    assert not found_below(built.shards)


def test_no_canary_is_in_the_log_of_any_library_at_debug_level(built: Built) -> None:
    assert "refused" in built.log
    assert not found_in(built.log.encode("utf-8", "surrogateescape")), built.log


def test_no_canary_is_in_what_the_commands_make_and_print(made: tuple[Path, str]) -> None:
    out, printed = made
    kinds = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert {".png", ".html", ".jsonl", ".yaml", ".ckpt", ".safetensors", ".wandb"} <= kinds
    assert not found_below(out)
    assert not found_in(printed.encode())


def test_facts_of_dicom_are_those_of_the_allow_list(built: Built) -> None:
    ours = {"format", "orientation", "frame", "frames", "nonfinite", "order", "time", "regions"}
    seen: set[str] = set()
    for name, data in unpacked("shards", (built.shards / "slices-3d-00000.tar").read_bytes()):
        if name.endswith(".json"):
            seen |= set(json.loads(data)["facts"])
    assert seen and seen <= ALLOWED | ours


def test_readers_say_nothing_of_a_file_when_they_refuse_it(built: Built) -> None:
    """The file's own name apart, which the build takes out."""
    refused = 0
    with everything_logged() as lines:
        for path in sources(built.root):
            renamed = path.with_name(f"x{path.suffix}") if CANARY not in path.suffix else path.with_name("x")
            path.rename(renamed)
            try:
                read([renamed])
            except ReadError as error:
                refused += 1
                text = str(error).replace(CANARY, "") if path.suffix in (".csv", ".yaml") else str(error)
                assert not found_in(text.encode()), f"{path.name}: {error}"
            finally:
                renamed.rename(path)
    assert refused > 15
    assert not found_in("\n".join(lines).encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("rule", ["refuse", "keep"])
def test_the_source_says_what_becomes_of_burned_in_annotation(
    built: Built, tmp_path: Path, rule: str
) -> None:
    only = built.root / f"dicom-{CANARY}" / f"{CANARY}^Erika"
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for name in (f"IM.{CANARY}0.dcm", f"{CANARY}-burned.dcm"):
        (folder / name).write_bytes((only / name).read_bytes())
    yaml = tmp_path / "c.yaml"
    yaml.write_text(
        "name: c\nsalt: a salt for these tests\nsources:\n"
        f"- {{dataset: d, layout: dicom_tree, root: in, burned_in: {rule}}}\n"
    )
    result = build(Collection.load(yaml), tmp_path / "out")
    assert result.manifest.count == (1 if rule == "refuse" else 2)
    reasons = [failure.reason for failure in result.failures]
    assert len(reasons) == (1 if rule == "refuse" else 0)
    assert all("burned_in: keep" in reason for reason in reasons)


def test_reserved_segments_of_a_jpeg_do_not_travel() -> None:
    """No decoder takes them, so no picture with them is stored; the bytes that are kept hold none."""
    picture = PICTURES["a.jpg"](np.full((16, 16, 3), 90, np.uint8))
    segments = b"".join(
        bytes((0xFF, marker, 0, 2 + len(CANARY))) + CANARY.encode()
        for marker in (0x02, 0x7F, 0xC8, 0xF0, 0xFD)
    )
    kept = jpeg.strip(picture[:2] + segments + picture[2:], "a.jpg")
    assert not found_in(kept) and kept == jpeg.strip(picture, "a.jpg")
