"""One process at a time in a folder that it writes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import ShardError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock file `path`, and hold it; it is made where it is not there.

    A file system without locks is taken as it is: then two processes may do the same work.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.debug("%s cannot be locked (%s)", path, error)
        yield


@contextlib.contextmanager
def locked(folder: Path, who: str) -> Iterator[None]:
    """Hold the lock of an existing folder; it ends with the process, however that ends.

    Args:
        who: what may be holding it, in words: "another build is".

    Raises:
        ShardError: another process holds it. A file system without locks is taken as it is.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(f"{folder}: {who} working in this folder; wait for it") from error
        except OSError:
            log.debug("%s: this file system has no locks", folder)
        yield
    finally:
        os.close(descriptor)
