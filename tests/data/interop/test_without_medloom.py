"""The programs of docs/interop.md, word for word, in a Python that refuses to import medloom."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.interop.export import export
from medloom.data.phantoms.phantoms import generate

PAGE = Path(__file__).resolve().parents[3] / "docs" / "interop.md"

# `-c` of a child that runs the program as __main__; also in the loader's workers, which are forked.
RUN = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "medloom":
            raise ImportError("medloom may not be imported here")
sys.meta_path.insert(0, Refuse())
try:
    import medloom
except ImportError:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    raise SystemExit("medloom was not refused")
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in several shards of either kind."""
    root = tmp_path_factory.mktemp("phantoms")
    os.environ["MEDLOOM_SALT"] = "a-salt-for-tests"
    try:
        collection = Collection.load(generate(root / "source", subjects=6))
        build(collection, root / "shards", shard_bytes=300_000)
    finally:
        del os.environ["MEDLOOM_SALT"]
    return root / "shards"


def program(section: str) -> str:
    """The Python block under a heading of the page."""
    (block,) = re.findall(
        rf"^## {section}\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return block


def run(path: Path, *words: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_training_needs_no_medloom(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(program("Train without medloom"))
    lines = run(path, shards).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n}D step {s}" for n in (3, 2) for s in range(10)]
    assert all("batch (4, 1, 32, 32, 32)" in line for line in lines[:10])
    assert all("batch (4, 1, 64, 64)" in line for line in lines[10:])
    for line in lines:
        assert 0 < float(line.rpartition(" ")[2]) < 100


def test_its_normalisation_is_ours(shards: Path) -> None:
    import numpy as np
    from medloom.data.normalise import intensity, kind
    from medloom.data.shards.reader import Shards

    names: dict = {"__name__": "program"}
    exec(compile(program("Train without medloom"), "train.py", "exec"), names)
    opened = Shards.open(shards)
    seen = set()
    for ref in opened.refs():
        sample = opened.sample(ref)
        seen.add(kind(sample.meta))
        if kind(sample.meta) in ("hu", "volume"):
            ours = intensity(sample.meta).apply(sample.image)
            np.testing.assert_allclose(names["normalised"](sample.image, sample.meta), ours, atol=1e-4)
    assert {"hu", "volume"} <= seen


def test_ranks_and_workers_read_every_sample_once(shards: Path, tmp_path: Path) -> None:
    code = program("Train without medloom") + (
        "\n\ndef keys(folder):\n"
        "    shards = sorted(map(str, Path(folder).glob('*-2d-*.tar')))\n"
        "    source = wds.WebDataset(shards, shardshuffle=len(shards), seed=0,\n"
        "        nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker)\n"
        "    names = source.map(lambda sample: sample['__key__'])\n"
        "    print(json.dumps(list(wds.WebLoader(names, batch_size=None, num_workers=2))))\n"
        "\nmain = keys\n"
    )
    code = code.replace('if __name__ == "__main__":\n    main(sys.argv[1])\n', "") + "\nmain(sys.argv[1])\n"
    path = tmp_path / "keys.py"
    path.write_text(code)
    read = [key for rank in "01" for key in json.loads(run(path, shards, RANK=rank, WORLD_SIZE="2"))]
    manifest = json.loads((shards / "manifest.json").read_text())
    assert len(read) == len(set(read)) == sum(s["count"] for s in manifest["sources"] if s["ndim"] == 2)


def test_too_few_shards_are_named(shards: Path, tmp_path: Path) -> None:
    names: dict = {"__name__": "program"}
    exec(compile(program("Train without medloom"), "train.py", "exec"), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "64")
        with pytest.raises(SystemExit, match="3 shards for 64 ranks"):
            names["loader_of"](["a", "b", "c"], 3)


def test_monai_reads_an_export(shards: Path, tmp_path: Path) -> None:
    export(shards, tmp_path / "files")
    masked = [
        p.parent for p in (tmp_path / "files").glob("*/metadata.csv") if "_mask.nii.gz" in p.read_text()
    ]
    path = tmp_path / "monai_example.py"
    path.write_text(program("MONAI"))
    lines = run(path, masked[0]).splitlines()
    assert lines
    assert lines[0] == "(2, 1, 32, 32, 32) (2, 1, 32, 32, 32)"
