"""--profile: the parts make the step, the run is not changed, the trace opens and names no machine."""

from __future__ import annotations

import gzip
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import to_yaml
from medloom.scripts.cli import main


def test_a_profile_of_a_run(
    tiny_config: Callable[..., Any], rows_of: Callable[..., Any], tmp_path: Path
) -> None:
    from medloom.pretrain.run import pretrain

    options = ("trainer.steps=9", "trainer.log_every=3", "trainer.accumulate=2")
    plain = pretrain(tiny_config(tmp_path / "plain", *options))
    run = pretrain(tiny_config(tmp_path / "run", *options, "trainer.profile_steps=3"))
    assert rows_of(run) == rows_of(plain)
    found = json.loads((run / "profile" / "profile.json").read_text())
    assert found["steps"] == 3 and found["seconds"] > 0
    assert set(found["parts"]) == {"data wait", "forward", "backward", "update", "other"}
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"], rel=1e-6)
    assert found["parts"]["forward"] > 0 and found["parts"]["backward"] > 0 and found["parts"]["update"] > 0
    assert found["data_wait"] == pytest.approx(found["parts"]["data wait"] / found["seconds"])
    assert 0 < found["mfu"] < 1 and found["tera_operations"] > 0
    names = [row["name"] for row in found["operators"]]
    assert any("AdamW" in name for name in names) and len(names) == len(set(names))
    assert sum(row["share"] for row in found["operators"]) <= 1.0001
    calls = {row["name"]: row["calls"] for row in found["operators"]}
    assert calls["Optimizer.step#AdamW.step"] == 1

    packed = gzip.decompress((run / "profile" / "trace.json.gz").read_bytes()).decode()
    trace = json.loads(packed)
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "host_name" not in trace and str(tmp_path) not in packed
    assert json.dumps(platform.node()) not in packed


def test_the_command_shows_the_table(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_config(tmp_path / "run", "trainer.steps=7")))
    assert main(["pretrain", str(recipe), "--profile", "trainer.profile_steps=2"]) == 0
    said = "".join(capsys.readouterr())
    assert "data wait" in said and "MFU" in said and "aten::" in said
    assert (tmp_path / "run" / "profile" / "profile.txt").read_text().startswith("cpu, ")


def test_a_run_that_is_too_short_says_so(
    tiny_config: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from medloom.pretrain.run import pretrain

    run = pretrain(tiny_config(tmp_path / "run", "trainer.steps=8", "trainer.profile_steps=3"))
    assert "the run ended after 8 steps; it takes 9" in caplog.text
    assert not (run / "profile").exists()
