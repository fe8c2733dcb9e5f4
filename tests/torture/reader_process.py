"""A process that reads files for the tests, so that a decoder which crashes is a failed test and no more.

The child has its own bound of address space: a header that claims terabytes is a MemoryError in there, as it
is on a machine that is full. The parent learns: "read", "refused", "memory", another exception's name, "died"
with the signal, or "hung".
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_BYTES = 12 << 30  # of address space, which libraries claim generously
PATIENCE = 60.0  # seconds for files of some kilobytes


def verdict(paths: Sequence[Path], options: dict[str, Any]) -> tuple[str, str]:
    """What `read` makes of the files, in one word, and the message."""
    import numpy as np
    from medloom.data.errors import ReadError
    from medloom.data.readers import read

    try:
        images = read(paths, **options)
    except ReadError as error:
        return "refused", str(error)
    except MemoryError:
        return "memory", ""
    except Exception as error:
        return type(error).__name__, "".join(traceback.format_exception(error)[-6:])
    for image in images:
        if not (image.array.size and np.isfinite(image.array).all()):
            return "unusable image", f"{image.array.shape}"
    return "read", f"{len(images)} images"


def _serve(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(verdict(*connection.recv()))


class ReaderProcess:
    """A child that reads; started again when it has died."""

    def __init__(self) -> None:
        self._start()

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stop()

    def read(self, paths: Sequence[Path], options: dict[str, Any] | None = None) -> tuple[str, str]:
        """(word, message); see the module."""
        self._connection.send((list(paths), options or {}))
        if not self._connection.poll(PATIENCE):
            self._stop()
            self._start()
            return "hung", f"no answer in {PATIENCE:.0f} s"
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._connection.close()
            self._start()
            return "died", f"exit code {code}"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
