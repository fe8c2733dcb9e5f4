"""`curation.json`: every decision of a curation with its reasons, and nothing that names a person or a file.

A JSON object whose `rows` stand one a line, so that two curations can be compared with `diff`. A row is
one record (a file, or a DICOM series): its salted key, salted hashes of its images' pixels, and findings.
The hashes bind the row to what was looked at: an image that has changed since is refused by a build, not
stored unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import ConfigError, ReadError
from ..privacy import content_key, salt_fingerprint

FORMAT = 1
FILE = "curation.json"
DROP, FLAG = "drop", "flag"

NOT_CURATED = "is not in the curation; run `medloom data curate` again"
CHANGED = "has changed since it was curated; run `medloom data curate` again"


@dataclass(frozen=True, slots=True)
class Row:
    """What a build needs of one record."""

    content: tuple[str, ...] = ()  # salted hashes of its images, in the reader's order
    drop: str = ""  # why the whole record is left out, whatever its pixels are
    images: Mapping[int, str] = field(default_factory=dict)  # number of an image -> why it is left out

    @property
    def drops_all(self) -> bool:
        """Whether nothing of the record is left."""
        return bool(self.drop) or (bool(self.content) and len(self.images) == len(self.content))

    def check(self, number: int, content: str, salt: bytes) -> None:
        """Raise ReadError unless image `number` of the record still has the pixels that were looked at."""
        if number >= len(self.content) or self.content[number] != content_key(salt, content):
            raise ReadError(CHANGED)

    def check_count(self, count: int) -> None:
        """Raise ReadError unless the record still has as many images."""
        if count != len(self.content):
            raise ReadError(CHANGED)


@dataclass(frozen=True, slots=True)
class Curation:
    """A curation as a build uses it."""

    path: Path
    digest: str  # SHA-256 of the file: part of a build's identity
    rows: Mapping[str, Row]

    @classmethod
    def load(cls, path: Path, collection: str, salt: bytes) -> Curation:
        """Read `curation.json` (or the folder that holds it), made for this collection with this salt.

        Raises:
            ConfigError: no such file, not a curation, or another collection's or salt's.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            data = path.read_bytes()
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise ConfigError(f"{path}: format {found['format']}, expected {FORMAT}; curate again")
            rows = {row["key"]: _row(row) for row in found["rows"]}
            name, mark = found["collection"], found["salt_fingerprint"]
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror}); run `medloom data curate`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: is not a curation ({error!r}); run `medloom data curate` again"
            ) from error
        if name != collection:
            raise ConfigError(f"{path}: is a curation of collection {name!r}, expected {collection!r}")
        if mark != salt_fingerprint(salt):
            raise ConfigError(
                f"{path}: was made with another salt, so none of its keys is known here; "
                "set the salt with which it was made, or curate again"
            )
        return cls(path, hashlib.sha256(data).hexdigest(), rows)

    def of(self, keys: Iterable[str]) -> dict[str, Row]:
        """Rows of these records."""
        return {key: self.rows[key] for key in keys if key in self.rows}


def write(path: Path, head: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a curation atomically; the same content gives the same bytes."""
    text = json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    body = ",\n".join(lines)
    write_text(path, f'{text[:-2]},\n "rows": [\n{body}\n ]\n}}\n')


def _row(row: Mapping[str, Any]) -> Row:
    """Findings without `image` concern the record as a whole."""
    images: dict[int, str] = {}
    whole = ""
    for finding in row.get("findings", ()):
        if finding["action"] != DROP:
            continue
        reason = f"curation: {finding['rule']}"
        if "image" in finding:
            images.setdefault(int(finding["image"]), reason)
        else:
            whole = whole or reason
    return Row(tuple(row.get("content", ())), whole, images)
