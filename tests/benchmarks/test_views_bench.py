"""The comparison of augmentation: every row has both sides, and what is not installed is named."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import views

    monkeypatch.setattr(views, "BATCH", {2: (2, 3, 32, 32), 3: (2, 1, 16, 16, 16)})
    threads = torch.get_num_threads()
    yield views
    torch.set_num_threads(threads)


def test_every_row_is_measured_on_both_sides(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["views", "--rounds", "1", "--json"])
    bench.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["ndim"] for row in rows} == {2, 3}
    for row in rows:
        peers = row.keys() & bench.PEERS.keys()
        assert peers and all(row[name] > 0 for name in {"medloom", *peers})
    names = {row["row"] for row in rows if row["ndim"] == 3 and "monai" in row}
    assert {"affine", "blur", "noise", "bias field", "low resolution", "recipe nnU-Net"} <= names


def test_what_is_not_installed_is_named(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["views", "--rounds", "1", "--only", "3d"])
    monkeypatch.setitem(bench.PEERS, "no_such_library", lambda x: {})
    bench.main()
    assert "no_such_library" in capsys.readouterr().out.splitlines()[-1]
