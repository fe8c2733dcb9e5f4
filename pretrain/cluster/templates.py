"""Job files from templates: text with named holes, `{{name}}`, filled strictly.

A hole that nothing fills is an error, and so is a value without a hole: a template of a site's own that lost
`{{grace}}` must not give jobs that are killed without a word. A value of None takes its line away.

In shell and Python files the value stands as it is (the caller quotes). In YAML a hole is a whole value, and
the value is written as YAML, so that no quoting can go wrong; lists, mappings and scripts become blocks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.config import CONFIGS
from ...data.errors import ConfigError, nearest

HOLE = re.compile(r"\{\{(\w+)\}\}")


def template(target: str) -> Path:
    """The shipped template of a target."""
    return next(path for path in sorted(CONFIGS.joinpath("launch").iterdir()) if path.stem == target)


def fill(path: Path, values: Mapping[str, Any]) -> str:
    """The text of the template at `path` with its holes filled.

    Raises:
        ConfigError: the file cannot be read; a hole that is not among `values`; a value that is not None and
            has no hole.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a template file") from error
    holes = set(HOLE.findall(text))
    for hole in sorted(holes - set(values)):
        raise ConfigError(f"{path}: nothing fills {{{{{hole}}}}}{nearest(hole, set(values))}")
    lost = sorted(name for name, value in values.items() if value is not None and name not in holes)
    if lost:
        raise ConfigError(
            f"{path}: no hole {{{{{lost[0]}}}}} for {values[lost[0]]!r}; add it, see {CONFIGS}/launch"
        )
    as_yaml = path.suffix in (".yaml", ".yml")
    lines = []
    for line in text.splitlines():
        names = HOLE.findall(line)
        if names and all(values[name] is None for name in names):
            continue
        lines.append(_yaml_line(path, line, values) if as_yaml and names else _line(line, values))
    return "\n".join(lines) + "\n"


def _line(line: str, values: Mapping[str, Any]) -> str:
    def value(hole: re.Match[str]) -> str:
        return "" if values[hole[1]] is None else f"{values[hole[1]]}{hole[2]}"

    return re.sub(HOLE.pattern + "( ?)", value, line)


def _yaml_line(path: Path, line: str, values: Mapping[str, Any]) -> str:
    match = re.fullmatch(r"(\s*(?:- )?(?:[\w./-]+:)?)\s*\{\{(\w+)\}\}(\s*#.*)?", line)
    if match is None:
        raise ConfigError(f"{path}: {line.strip()}: a hole must be a whole value in YAML")
    head, name, comment = match[1], match[2], match[3] or ""
    value = values[name]
    indent = len(head) - len(head.lstrip())
    if isinstance(value, str) and "\n" in value:
        block = textwrap.indent(value.rstrip("\n"), " " * (indent + 2), lambda part: bool(part.strip()))
        return f"{head.rstrip()} |{comment}\n{block}"
    if isinstance(value, dict | list) and value:
        block = textwrap.indent(_dump(value), " " * (indent + (2 if isinstance(value, dict) else 0)))
        return f"{head.rstrip()}{comment}\n{block}"
    return f"{head.rstrip()} {_dump(value)}{comment}"


def _dump(value: Any) -> str:
    import yaml

    text = yaml.dump(
        value, Dumper=_dumper(), sort_keys=False, default_flow_style=False, width=1000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _dumper() -> Any:
    """PyYAML's safe dumper, with scripts as blocks and without anchors."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper
