"""What may leave the machine: the configuration without folders and without the salt of the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def public(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration without salt and folders: absolute and relative paths are cut to their last part."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items() if key != "salt"}
        if isinstance(value, list):
            return [cut(item) for item in value]
        if isinstance(value, str) and ("/" in value or "\\" in value):
            return Path(value.replace("\\", "/")).name
        return value

    return cut(values)
