"""Typed configuration: a dataclass, a YAML file and a dot-list become one checked object.

The choice: OmegaConf's structured mode, so that a dataclass is the schema, a default exists once, and a typo
is an error with a suggestion instead of a silent new key. The price: a dataclass may hold only what OmegaConf
knows (numbers, strings, booleans, paths, enums, lists, dicts, nested dataclasses, unions of primitives);
a `Literal` is written as `str` and checked by its owner.

A section whose class depends on a `name` key (encoder, objective, layout options) is typed `dict[str, Any]`
in its parent and checked by `polymorphic` against a literal dict of classes that nest a `Config` dataclass.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, nearest
from .remote.stores import public

T = TypeVar("T")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # in a checkout and in an installed wheel alike

Layer = Path | Mapping[str, Any] | Sequence[str] | None


def structured(cls: type[T], *layers: Layer, where: str = "configuration") -> T:
    """Merge `layers` over the defaults of dataclass `cls`; later layers win.

    A layer is a YAML file (`Path`), a mapping, a dot-list (`["optim.base_lr=1e-3", "sources[0].root=x"]`)
    or None. `where` names the mapping layers in messages. `__post_init__` of the dataclasses runs last, so
    that a rule between two fields can live with them (raise ConfigError there).

    Raises:
        ConfigError: unknown key (with near names), wrong type, missing required key, unreadable file.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    source = where
    try:
        config = OmegaConf.structured(cls)
        for layer in layers:
            if layer is None:
                continue
            if isinstance(layer, Path):
                source, layer = str(layer), read_yaml(layer)
            if isinstance(layer, Mapping):
                source = source if source != "command line" else where
                config = OmegaConf.merge(config, OmegaConf.create(dict(layer)))
            else:
                source = "command line"
                for item in layer:
                    key, value = split_assignment(item)
                    OmegaConf.update(config, key, value, merge=True, force_add=False)
        source = where
        OmegaConf.resolve(config)
        return typing.cast(T, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_explain(cls, error)}") from error


def polymorphic(section: Mapping[str, Any], classes: Mapping[str, type], where: str) -> tuple[type, Any]:
    """Choose a class by `section["name"]` and build its nested `Config` from the other keys.

    The registered class nests a dataclass `Config`, or is itself a dataclass. A `Config` that has a `name`
    field gets it. Returns (class, config object).

    Raises:
        ConfigError: no name, a name not in `classes` (with near ones), a wrong key or type in the section.
    """
    name = section.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: needs a `name`{nearest('', set(classes))}")
    if name not in classes:
        raise ConfigError(f"{where}.name: unknown name {name!r}{nearest(name, set(classes))}")
    chosen = classes[name]
    schema = getattr(chosen, "Config", chosen)
    named = any(field.name == "name" for field in dataclasses.fields(schema))
    values = {key: value for key, value in section.items() if named or key != "name"}
    return chosen, structured(schema, values, where=f"{where} ({name})")


def find_config(kind: str, name: str | Path) -> Path:
    """Path of a configuration that the user named: a file, or a shipped one (`realdata-busi`) of that kind.

    Args:
        kind: folder of the shipped ones: collections, pretrain or tasks. `_` and `-` are the same in a name.

    Raises:
        ConfigError: neither a file nor a shipped name; lists the near ones.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path  # read_yaml reports a missing file with the near names of its folder
    shipped = {item.stem: item for item in CONFIGS.joinpath(kind).glob("*.yaml")}
    wanted = str(name).replace("_", "-")
    if wanted not in shipped:
        raise ConfigError(
            f"{name}: no such file, and no shipped {kind} of that name{nearest(wanted, set(shipped))}"
        )
    return shipped[wanted]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping. Keys are strings or integers.

    Raises:
        ConfigError: missing file (with near names), not YAML (with the line), not a mapping.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    if not path.is_file():
        beside = {entry.name for entry in path.parent.glob("*.y*ml")} if path.parent.is_dir() else set()
        hint = nearest(path.name, beside) if beside else f"; {path.parent} holds no YAML file"
        raise ConfigError(f"{path}: no such file{hint}")
    try:
        loaded = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a YAML mapping: {_first_line(error)}") from error
    values = OmegaConf.to_container(loaded)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found a {type(values).__name__}")
    return typing.cast(dict[str, Any], values)


def split_assignment(item: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML (`1e-3` a float, `[1,2]` a list, `null` None).

    Raises:
        ConfigError: no `=`, an empty key, or a value that is not YAML.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"command line: expected key=value, found {item!r}; write e.g. optim.base_lr=1e-3")
    try:
        holder = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(
            f"command line: {key}: {text!r} is not a YAML value: {_first_line(error)}"
        ) from error
    return key.strip(), typing.cast(dict[str, Any], holder)["value"]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, fit to be saved: enums by name, URLs without credentials."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return typing.cast(dict[str, Any], _plain(values))


def to_yaml(config: Any) -> str:
    """YAML text of a config dataclass or mapping, keys in declaration order; `structured` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config if isinstance(config, dict) else to_dict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return public(value) if isinstance(value, Path | str) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _explain(cls: type, error: Exception) -> str:
    """One line for the user: the dotted key, what was expected there, the near names."""
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

    key = str(getattr(error, "full_key", "") or getattr(error, "key", "") or "")
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: required, but not given"
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        parent, _, leaf = key.rpartition(".")
        owner = _class_at(cls, parent)
        actual = getattr(error, "object_type", None)
        if dataclasses.is_dataclass(actual) and actual is not owner:
            # OmegaConf forgets the way to a dataclass that is built as an element of a list.
            owner = typing.cast(type, actual)
            key = _way_to(cls, owner) + leaf
        known = {field.name for field in dataclasses.fields(owner)} if owner else set()
        elsewhere = [name for name in dotted_names(cls) if name.rpartition(".")[2] == leaf]
        hint = f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else nearest(leaf, known)
        return f"{key}: unknown key{hint}"
    # Messages of OmegaConf already name the value and the type that was expected, on their first line.
    return f"{key}: {_first_line(error)}" if key else _first_line(error)


def dotted_names(cls: type, prefix: str = "") -> list[str]:
    """All dotted keys of a config dataclass, `["name", "optim.base_lr", ...]`, in declaration order."""
    names: list[str] = []
    for name, kind in typing.get_type_hints(cls).items():
        names.append(prefix + name)
        inner = _dataclass_in(kind)
        if inner is not None and _is_direct(kind):
            names += dotted_names(inner, f"{prefix}{name}.")
    return names


def _class_at(cls: type, dotted: str) -> type | None:
    """The dataclass that owns the keys below `dotted`; list indices are skipped."""
    current: type | None = cls
    for part in dotted.replace("[", ".[").split("."):
        if not part or part.startswith("[") or current is None:
            continue
        current = _dataclass_in(typing.get_type_hints(current).get(part))
    return current


def _way_to(cls: type, wanted: type) -> str:
    """`sources[].` for the list of dataclasses that holds `wanted`; empty when it is not found."""
    for name, kind in typing.get_type_hints(cls).items():
        inner = _dataclass_in(kind)
        if inner is None:
            continue
        step = f"{name}." if _is_direct(kind) else f"{name}[]."
        if inner is wanted:
            return step
        deeper = _way_to(inner, wanted)
        if deeper:
            return step + deeper
    return ""


def _dataclass_in(kind: Any) -> type | None:
    """The dataclass inside `X`, `X | None`, `list[X]` or `dict[str, X]`."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    for argument in typing.get_args(kind):
        found = _dataclass_in(argument)
        if found is not None:
            return found
    return None


def _is_direct(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return origin is None or origin in (typing.Union, types.UnionType)
