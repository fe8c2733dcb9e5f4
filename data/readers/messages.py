"""What decoders say of a file, without what they quote from it.

Decoders warn, log (Pillow logs every TIFF tag at debug level) and raise with the values they stumbled over: a
patient's name in the wrong field would be carried into our log and into failures.jsonl. So they are held back
while a file is read, and of an exception's text only those words pass that the file does not contain. The
price: a message about an unusual value does not name the value.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

LOGGERS = ("pydicom", "openjpeg", "libjpeg", "pylibjpeg", "rle", "PIL", "tifffile", "nibabel", "imagecodecs",
           "highdicom", "tiffslide", "libav", "blosc2")  # fmt: skip

HIDDEN = "<value>"

_HEAD = 1 << 20  # bytes of a file that are searched for the words of a message
_LONGEST = 160  # characters
_WORD = re.compile(r"[^\s'\"(),:;\[\]{}<>=|`]{3,}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings and logs of all decoders.

    Process-wide while it lasts; readers work in processes, not in threads.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    if min(levels) > logging.CRITICAL:  # a caller holds them back already; changing levels costs 0.3 ms
        yield
        return
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def line(error: BaseException, data: bytes | bytearray = b"") -> str:
    """A decoder's message on one short line; words that occur in the first megabyte of `data` are hidden."""
    head = bytes(data[:_HEAD])

    def shown(match: re.Match[str]) -> str:
        word = match.group().rstrip(".")
        strange = not word.isascii() or "\\" in word or word.encode() in head
        return HIDDEN if strange else match.group()

    text = _WORD.sub(shown, " ".join(str(error).split()))
    return text[:_LONGEST] or type(error).__name__
