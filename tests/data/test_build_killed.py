"""A build that is killed at any moment and started again gives the same folder, byte for byte.

MEDLOOM_KILLS sets how often the build is killed (default 3; the slow variant kills ten times).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.shards.check import check

KILLS = int(os.environ.get("MEDLOOM_KILLS", "3"))

# Kills itself at the n-th step that changes the disk: a write to a shard, or an fsync, which comes before and
# after every rename.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from medloom.data import atomic
from medloom.data.ingest.build import build
from medloom.data.collection import Collection
from medloom.data.shards.writer import ShardWriter

left = int(sys.argv[3])

def counted(function):
    def step(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return step

ShardWriter._write = counted(ShardWriter._write)
atomic._fsync = counted(atomic._fsync)
build(Collection.load(sys.argv[1]), Path(sys.argv[2]), shard_bytes=20_000)
print("steps", int(sys.argv[3]) - left)
"""


def run(yaml: Path, out: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(yaml), str(out), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def yaml(tmp_path, make_collection):
    return make_collection(tmp_path / "in", held_out="[{dataset: ct, splits: [test]}]")


@pytest.mark.parametrize("kills", [KILLS, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_steps(yaml, tmp_path, files_of, kills):
    whole = run(yaml, tmp_path / "whole", 10**9)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[-1])
    assert steps > 100
    generator = random.Random(kills)
    out = tmp_path / "out"
    for _ in range(kills):
        # Small enough that the build is never finished early: finished units are not done again.
        done = run(yaml, out, generator.randrange(1, steps // kills))
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(yaml, out, 10**9).returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")
    assert check(out) == []


def test_killed_before_the_manifest_the_folder_is_not_readable(yaml, tmp_path, files_of):
    from medloom.data import open_shards
    from medloom.data.errors import ShardError

    out = tmp_path / "out"
    assert run(yaml, out, 40).returncode == -signal.SIGKILL
    with pytest.raises(ShardError, match="has not finished"):
        open_shards(out)


PARALLEL = """
import sys
from pathlib import Path
from medloom.data.ingest.build import build
from medloom.data.collection import Collection

if __name__ == "__main__":
    build(Collection.load(sys.argv[1]), Path(sys.argv[2]), shard_bytes=20_000, workers=2)
"""


def test_a_killed_parent_leaves_no_workers_and_the_next_build_finishes(yaml, tmp_path, files_of):
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    out = tmp_path / "out"
    parent = subprocess.Popen([sys.executable, script, yaml, out], stderr=subprocess.DEVNULL)
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and parent.poll() is None:
        workers = psutil.Process(parent.pid).children(recursive=True)
        if list(out.glob("units/*.json")) or list(out.glob("*.tar")):
            break
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers
    assert not alive
    build(Collection.load(yaml), out, shard_bytes=20_000)
    build(Collection.load(yaml), tmp_path / "whole", shard_bytes=20_000)
    assert files_of(out) == files_of(tmp_path / "whole")
