"""data/config.py: the schema is the dataclass; every mistake names its key and a mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from medloom.data.config import polymorphic, read_yaml, split_assignment, structured, to_dict, to_yaml
from medloom.data.errors import ConfigError
from omegaconf import MISSING


@dataclass
class Optim:
    base_lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass
class Source:
    dataset: str = MISSING
    root: str = "."
    splits: list[str] | None = None


@dataclass
class Run:
    name: str = "run"
    steps: int = 10
    out: Path | None = None
    optim: Optim = field(default_factory=Optim)
    sources: list[Source] = field(default_factory=list)
    encoder: dict[str, Any] = field(default_factory=lambda: {"name": "vit"})
    anything: Any = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps: {self.steps} < 1; give at least one step")


class Vit:
    @dataclass
    class Config:
        name: str = "vit"
        depth: int = 4


class Convnet:
    @dataclass
    class Config:
        width: int = 8


def test_layers_merge_in_order_and_types_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\noptim: {base_lr: 1e-4}\nsources:\n- {dataset: x, splits: [train]}\n")
    run = structured(Run, path, {"steps": 20}, ["optim.base_lr=3e-4", "sources[0].root=/data", "out=here"])
    assert run == Run(
        "a", 20, Path("here"), Optim(3e-4), [Source("x", "/data", ["train"])], {"name": "vit"}, None
    )
    assert type(run.sources[0]) is Source


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"stepz": 3}, ["stepz", "unknown key", "did you mean steps"]),
        ({"base_lr": 3}, ["base_lr", "did you mean optim.base_lr"]),
        ({"optim": {"beta": 3}}, ["optim.beta", "betas"]),
        (["optim.bse_lr=3"], ["command line", "optim.bse_lr", "base_lr"]),
        ({"sources": [{"dataset": "x", "rot": "."}]}, ["sources[].rot", "did you mean root"]),
        ({"sources": [{}]}, ["dataset", "required"]),
        ({"steps": "many"}, ["steps", "many", "Integer"]),
        (["steps=2.5"], ["steps", "2.5", "Integer"]),
        ({"optim": {"betas": 3}}, ["optim.betas"]),
        (["steps=0"], ["0 < 1"]),
        (["steps"], ["key=value", "steps"]),
        (["name=[a"], ["name", "not a YAML value"]),
        ({"name": "${nowhere}"}, ["nowhere"]),
    ],
)
def test_mistakes_name_the_key_and_the_mend(layer: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        structured(Run, layer, where="run.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_file_errors(tmp_path: Path) -> None:
    (tmp_path / "phantom-mae.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match=r"no such file; did you mean phantom-mae\.yaml\?"):
        read_yaml(tmp_path / "phantom-mea.yaml")
    with pytest.raises(ConfigError, match="line 2"):
        read_yaml(tmp_path / "phantom-mae.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    with pytest.raises(ConfigError, match="holds no YAML"):
        read_yaml(tmp_path / "nowhere" / "x.yaml")


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("stepz: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: stepz"):
        structured(Run, path, ["steps=3"])


def test_polymorphic_sections() -> None:
    classes = {"vit": Vit, "convnet": Convnet}
    chosen, config = polymorphic({"name": "vit", "depth": 6}, classes, "encoder")
    assert chosen is Vit
    assert config == Vit.Config("vit", 6)
    assert polymorphic({"name": "convnet"}, classes, "encoder")[1] == Convnet.Config(8)
    with pytest.raises(ConfigError, match=r"encoder\.name: unknown name 'vitt'; did you mean vit"):
        polymorphic({"name": "vitt"}, classes, "encoder")
    with pytest.raises(ConfigError, match=r"encoder \(vit\): dept: unknown key; did you mean depth"):
        polymorphic({"name": "vit", "dept": 6}, classes, "encoder")
    with pytest.raises(ConfigError, match=r"encoder: needs a `name`; known: convnet, vit"):
        polymorphic({}, classes, "encoder")


def test_values_and_round_trip() -> None:
    assert split_assignment("a.b=1e-3") == ("a.b", 1e-3)
    assert split_assignment("a={x: [1, null]}") == ("a", {"x": [1, None]})
    assert split_assignment("a=x=y") == ("a", "x=y")
    assert split_assignment("a=") == ("a", None)
    run = structured(Run, {"out": "somewhere", "sources": [{"dataset": "x"}], "anything": {255: 1}})
    assert to_dict(run)["out"] == "somewhere"
    assert structured(Run, yaml.safe_load(to_yaml(run))) == run
