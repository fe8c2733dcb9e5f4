"""Import is a build: what others wrote becomes a collection of one source, in memory, and is built as any.

So an import has the salted keys, the statistics, the refusals and the resuming of a build, and what can be
imported can also stand in a collection's YAML (layouts webdataset, litdata and nnunet).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..collection import Collection, SourceConfig, source_of_config
from ..config import structured
from ..errors import CollectionError
from ..layouts.base import has_suffix, walk
from .archive import TARS

KINDS = ("webdataset", "litdata", "nnunet")

_MAGIC = re.compile(r"[*?\[{]")
_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LOOKED_AT = 1000  # files of a folder, to guess its kind


def collection_of(
    sources: Sequence[str],
    *,
    kind: str | None,
    modality: str,
    organ: str | None = None,
    licence: str = "unknown",
    dataset: str | None = None,
    overrides: Sequence[str] = (),
) -> Collection:
    """The collection that imports `sources`.

    Args:
        sources: one folder; for webdataset also tars, globs, braces, and .txt files with one of these a line.
        kind: one of KINDS; None guesses.
        dataset: identifier; None takes the folder's name.
        overrides: `key=value` of the source as in a collection's YAML, such as `options.subject=patient`.

    Raises:
        CollectionError: nothing there, or its kind cannot be told.
        ConfigError: a wrong modality, organ, dataset or override.
    """
    listed = [line for text in sources for line in _lines(text)]
    for text in listed:
        if _REMOTE.match(text):
            raise CollectionError(f"{text}: not a file of this machine; copy it here, then import the copy")
    chosen = kind or guess_kind(listed)
    if len(listed) == 1 and Path(listed[0]).is_dir():
        root, shards = Path(listed[0]), []
    elif chosen == "webdataset":
        root, shards = _common(listed)
    else:
        raise CollectionError(f"{' '.join(listed)}: {chosen} is imported from one folder; name that folder")
    values = {
        "dataset": dataset or _slug(root.absolute().name),
        "layout": chosen,
        "modality": modality,
        "organ": organ,
        "licence": licence,
        "options": {"shards": shards} if shards else {},
    }
    config = structured(SourceConfig, values, list(overrides), where="import")
    root = root.absolute()
    return Collection(config.dataset, root, (source_of_config(config, root, "import"),))


def guess_kind(sources: Sequence[str]) -> str:
    """webdataset, litdata or nnunet, from names alone. Raises CollectionError when none or several fit."""
    kinds: set[str] = set()
    for text in sources:
        path = Path(text)
        if not path.is_dir():
            if not path.is_file() and not _MAGIC.search(text):
                raise CollectionError(f"{path}: no such file or folder")
            if has_suffix(text, TARS):
                kinds.add("webdataset")
            continue
        names = [name for (name, _), _ in zip(walk(path), range(_LOOKED_AT), strict=False)]
        if any(has_suffix(name, TARS) for name in names):
            kinds.add("webdataset")
        if "index.json" in names and any(name.endswith(".bin") for name in names):
            kinds.add("litdata")
        stems = {name[:-4] for name in names if name.endswith(".pkl")}
        if any(has_suffix(name, (".npz", ".b2nd")) and name.rpartition(".")[0] in stems for name in names):
            kinds.add("nnunet")
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "neither tars, nor litdata's chunks, nor nnU-Net's cases"
        raise CollectionError(f"{' '.join(sources)}: holds {found}; say which with --from {'|'.join(KINDS)}")
    return kinds.pop()


def _lines(text: str) -> list[str]:
    """`text`, or the lines of the list that it names."""
    path = Path(text)
    if path.suffix != ".txt" or not path.is_file():
        return [text]
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CollectionError(f"{path}: cannot be read as a list of files ({error})") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise CollectionError(f"{path}: lists no file; write one path a line")
    return found


def _common(patterns: Sequence[str]) -> tuple[Path, list[str]]:
    """(deepest folder above all patterns, the patterns below it)."""
    full = [str(Path(text).expanduser().absolute()) for text in patterns]
    plain = [_MAGIC.split(text, maxsplit=1)[0] if _MAGIC.search(text) else text for text in full]
    root = Path(os.path.commonpath([text.rpartition("/")[0] or "/" for text in plain]))
    if not root.is_dir():
        raise CollectionError(f"{root}: no such folder")
    return root, [Path(text).relative_to(root).as_posix() for text in full]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")[:60] or "imported"
