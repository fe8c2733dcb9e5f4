"""What may leave the machine: the configuration without folders and without the salt of the keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HOST = re.compile(r"^(?:[\w+.-]+:)?//[^/]*")  # of a URL, or of a share of Windows


def public(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration without salt and folders: paths and URLs are cut to their last part.

    A URL without a path has none: nothing is left of it.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items() if key != "salt"}
        if isinstance(value, list):
            return [cut(item) for item in value]
        if isinstance(value, str) and ("/" in value or "\\" in value):
            return Path(HOST.sub("", value.replace("\\", "/"))).name
        return value

    return cut(values)
