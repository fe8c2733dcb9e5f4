"""Bytes of one file, or a ReadError that says why not.

Readers take the whole file into memory and decode from there: checksums (gzip, PNG) are then verified to the
last byte, which lazy readers skip. The price is the compressed size in memory for the time of the decode.
"""

from __future__ import annotations

import errno
from pathlib import Path

from ..errors import ConfigError, ReadError
from ..interop import archive

FOURTH_AXES = ("channels", "frames")
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def content(path: Path) -> bytes:
    """Return the bytes of `path`, a file or a member of an archive.

    Raises:
        ReadError: it is missing, empty, damaged, a folder or not permitted.
        OSError: the temporary disk, where compressed archives are unpacked, is full.
    """
    try:
        data = archive.read(Path(path))
    except FileNotFoundError:
        raise ReadError(f"{path.name}: no such file; check the path in the collection's table") from None
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise
        raise ReadError(f"{path.name}: cannot be opened ({error.strerror}); check its permissions") from error
    if not data:
        raise ReadError(f"{path.name}: 0 bytes, expected an image; copy or download it again")
    return data


def head_of(path: Path) -> bytes:
    """Return the first 512 bytes of `path`. Raises as `content`."""
    if archive.split(path)[1]:
        return content(path)[:512]
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ReadError(f"{path.name}: cannot be opened ({error.strerror}); check the path") from error
    if not head:
        raise ReadError(f"{path.name}: 0 bytes, expected an image; copy or download it again")
    return head


def single(paths: list[Path], kind: str) -> Path:
    """Return the only path of `paths`. Raises ReadError when there are several: only DICOM has series."""
    if len(paths) != 1:
        raise ReadError(f"{len(paths)} {kind} files given as one image, expected 1: list one record per file")
    return paths[0]


def check_fourth_axis(fourth_axis: str) -> None:
    """Raise ConfigError unless `fourth_axis` is one of FOURTH_AXES."""
    if fourth_axis not in FOURTH_AXES:
        raise ConfigError(f"fourth_axis is {fourth_axis!r}; expected one of {', '.join(FOURTH_AXES)}")
