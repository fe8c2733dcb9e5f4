"""Find a shipped YAML by name, so that `medloom pretrain phantom-mae-2d` works from any folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..data.errors import ConfigError, nearest


def shipped(kind: str, name: str | Path) -> Path:
    """Return the YAML at path `name`, or the shipped one of that name in `configs/<kind>/`.

    Raises:
        ConfigError: neither exists; the message lists the near names.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(files("medloom.configs"))) / kind
    candidate = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent == Path() and candidate.is_file():
        return candidate
    known = {entry.stem for entry in folder.glob("*.yaml")}
    raise ConfigError(f"{path}: no such file, and no shipped {kind} configuration{nearest(path.stem, known)}")
