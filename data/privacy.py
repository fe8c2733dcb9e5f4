"""Salted keys: what stands in shards instead of file names, patient ids and study ids.

The choice: keyed BLAKE2b with a secret salt, 64 bits a key, so that the same collection built twice by the
same user gives the same keys, and nobody without the salt can try patient ids against them. The price: two
builds agree only when they share the salt; the chance that two of ten million names collide is 3 in a million
(a scan refuses the second of the two).

The salt comes from the collection's YAML, from MEDLOOM_SALT, or from ~/.config/medloom/salt, which is made at
first use and readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError, ReadError

BURNED_IN = ("refuse", "keep")  # what may become of images that say that they carry text in their pixels

_SLUG = re.compile(r"[a-z0-9_-]{1,60}")
_SHORTEST = 8  # characters; a shorter salt can be tried out


def key_of(salt: bytes, dataset: str, name: str, part: str = "") -> str:
    """Key of a sample: `{dataset}-{16 hex}`, from the record's name and, for frames, the `part` of the file.

    Raises:
        ConfigError: `dataset` is not a slug, or the salt is empty.
    """
    return f"{check_slug(dataset)}-{_digest(salt, 'sample', dataset, name, part)}"


def subject_key(salt: bytes, dataset: str, subject: str) -> str:
    """Key of a subject: 16 hex; the same subject id in two datasets gives two keys. Raises as `key_of`."""
    return _digest(salt, "subject", check_slug(dataset), subject)


def content_key(salt: bytes, content: str) -> str:
    """16 hex of an image's content hash: equal pixels are recognised, but only with the salt."""
    return _digest(salt, "content", content)


def check_burned_in(facts: Mapping[str, Any], rule: str) -> None:
    """Raise ReadError when the pixels carry text, as their file says, and `rule` is "refuse"."""
    if rule == "refuse" and facts.get("BurnedInAnnotation") == "YES":
        raise ReadError(
            "BurnedInAnnotation is YES, expected an image without text in its pixels; "
            "clean it, or set burned_in: keep for the source"
        )


def salt_fingerprint(salt: bytes) -> str:
    """16 hex that tell whether two builds share a salt without giving it away."""
    return _digest(salt, "fingerprint")


def check_slug(dataset: str) -> str:
    """Return `dataset` when it can stand in file names and keys.

    Raises:
        ConfigError: it holds anything but a-z, 0-9, `_` and `-`, or is not 1 to 60 characters long.
    """
    if _SLUG.fullmatch(dataset):
        return dataset
    tame = re.sub(r"[^a-z0-9_-]+", "_", dataset.lower()).strip("_")[:60] or "my_dataset"
    raise ConfigError(f"dataset: {dataset!r} may hold 1 to 60 of a-z 0-9 _ -; write e.g. {tame!r}")


def load_salt() -> bytes:
    """The user's salt: MEDLOOM_SALT, else the salt file (made when absent, mode 600).

    Raises:
        ConfigError: the salt is too short, or the file can neither be read nor made.
    """
    text = os.environ.get("MEDLOOM_SALT")
    if text is not None:
        return as_salt(text, "MEDLOOM_SALT")
    path = salt_path()
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot hold the salt ({error}); set MEDLOOM_SALT instead") from error
    return as_salt(text, str(path))


def as_salt(text: str, where: str) -> bytes:
    """Salt bytes of `text`. Raises ConfigError when it is shorter than 8 characters."""
    text = text.strip()
    if len(text) < _SHORTEST:
        raise ConfigError(f"{where}: a salt of {len(text)} characters is too short; give {_SHORTEST} or more")
    return text.encode()


def salt_path() -> Path:
    """Where the user's salt lies (XDG)."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "medloom" / "salt"


def _make(path: Path) -> None:
    """Write a new salt; of several processes that try at once, one wins and all read the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-salt")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)  # unlike a rename, fails when another process was first
    finally:
        temporary.unlink(missing_ok=True)


def _digest(salt: bytes, *parts: str) -> str:
    if not salt:
        raise ConfigError("the salt is empty: without one, anybody could try patient ids against the keys")
    key = salt if len(salt) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(salt).digest()
    digest = hashlib.blake2b(key=key, digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8
        digest.update(len(data).to_bytes(8, "little") + data)  # ("ab", "c") and ("a", "bc") differ
    return digest.hexdigest()
