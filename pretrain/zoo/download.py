"""Fetching the file of a record: from the Hugging Face hub, from an address, or by hand.

Files of the hub lie in its cache, others in $XDG_CACHE_HOME/medloom/zoo. A pinned SHA-256 is compared; most
records pin none, because none could be read when they were written, and the log says what came.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...data.errors import CheckpointError
from ..artefact import sha256
from .record import ZooRecord, load_record

log = logging.getLogger(__name__)


def fetched(record: ZooRecord) -> Path:
    """The file of the record's weights on this disk.

    Raises:
        CheckpointError: each fault of hub and network with its mend; no way but by hand; another SHA-256.
    """
    source = record.download
    if source.by_hand:
        raise CheckpointError(f"zoo:{record.name}: {source.by_hand}; then name it zoo:{record.name}@FILE")
    path = _from_hub(record) if source.hub else _from_address(record)
    if source.sha256:
        found = sha256(path)
        if found != source.sha256:
            raise CheckpointError(
                f"zoo:{record.name}: {path.name} has SHA-256 {found[:12]}, the record says "
                f"{source.sha256[:12]}: changed at its source; to use it all the same, zoo:{record.name}@FILE"
            )
    return path


def pulled(name: str, to: Path | None = None) -> Path | None:
    """Fetch the file of a record ahead of its use; None: timm has put it into its own cache.

    Args:
        to: a folder that gets a copy, to take along.

    Raises:
        CheckpointError: see `fetched`; a copy of what only timm can read; `to` cannot be written.
    """
    from ..hub.pull import copied

    record = load_record(name)
    if record.download.timm:
        if to is not None:
            raise CheckpointError(
                f"zoo:{name}: timm fetches it into the cache of the hub: leave out --to, and take the folder "
                "HF_HOME along"
            )
        from ..sources import from_timm

        from_timm(record.download.timm, True)
        return None
    path = fetched(record)
    if to is None:
        return path
    copied([path], to)
    return to / path.name


def cache() -> Path:
    """Folder of the files that lie on no hub."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medloom" / "zoo"


def _from_hub(record: ZooRecord) -> Path:
    from huggingface_hub import hf_hub_download

    from ..hub.errors import explained
    from ..hub.fetch import again, endpoint
    from ..hub.names import HubName

    source = record.download
    repository, file = str(source.hub), str(source.file)
    name = HubName(f"zoo:{record.name}", repository, source.revision)
    try:
        path = again(lambda: Path(hf_hub_download(repository, file, revision=source.revision)), name)
    except Exception as error:  # the hub's errors have no common base but Exception
        found = explained(error, name, endpoint())
        raise CheckpointError(str(found).replace("name it instead", f"name zoo:{record.name}@DIR")) from error
    log.info("zoo:%s: %s of %s, commit %s", record.name, file, repository, _commit(path, file))
    return path


def _commit(path: Path, file: str) -> str:
    """The commit below which the cache of the hub keeps a file."""
    return path.parts[-1 - len(Path(file).parts)][:12]


def _from_address(record: ZooRecord) -> Path:
    from ...data.errors import StoreError
    from ...data.fetch.download import Expected, download

    url = str(record.download.url)
    file = record.download.file or unquote(Path(urlsplit(url).path).name)
    path = cache() / record.name / file
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = Expected(sha256=record.download.sha256, says="the record", mend=f"look at {record.home}")
    try:
        download(url, path, expected)
    except StoreError as error:
        raise CheckpointError(
            f"zoo:{record.name}: {error}; or fetch it from {record.home} and name it zoo:{record.name}@FILE"
        ) from error
    return path
