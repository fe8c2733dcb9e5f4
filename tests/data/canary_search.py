"""Looking for canaries: words that stand for a patient's name, in any byte and any usual encoding of it."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

CANARY = "QZVXKJWB"  # begins every text; what follows says where it was put
NUMBER = "918273645"  # the same in identifiers and decimal strings
DATE = "19181127"
WORDS = (CANARY, NUMBER, DATE)


def needles(word: str) -> dict[str, bytes]:
    """How -> bytes of a word, lower case."""
    found = {"utf-8": word.encode(), "hex": word.encode().hex().encode()}
    for coding in ("utf-16-le", "utf-16-be"):
        found[coding] = word.encode(coding)
        found[f"hex of {coding}"] = word.encode(coding).hex().encode()
    for offset in range(3):
        for name, raw in (("utf-8", word.encode()), ("utf-16-le", word.encode("utf-16-le"))):
            text = base64.b64encode(bytes(offset) + raw)
            found[f"base64 of {name} at {offset}"] = text[
                (offset * 8 + 5) // 6 : (offset + len(raw)) * 8 // 6
            ]
    return {how: needle.lower() for how, needle in found.items()}


NEEDLES = [(word, how, needle) for word in WORDS for how, needle in needles(word).items()]


def found_in(data: bytes) -> list[str]:
    """What of the canaries stands in `data`, with what follows it."""
    lower = data.lower()
    hits = []
    for word, how, needle in NEEDLES:
        place = lower.find(needle)
        if place >= 0:
            hits.append(f"{word} as {how}: {data[max(0, place - 60) : place + 60]!r}")
    return hits


def found_below(folder: Path) -> list[str]:
    """Canaries in names and contents of all files below a folder, inside of what is packed too."""
    hits = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        hits += [f"name of {name}: {hit}" for hit in found_in(name.encode("utf-8", "surrogateescape"))]
        if path.is_file():
            for inner, data in unpacked(name, path.read_bytes()):
                hits += [f"{inner}: {hit}" for hit in found_in(data)]
    return hits


def unpacked(name: str, data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """A file's bytes and those of everything packed in it: archives, streams, PNG chunks, Blosc2 metadata."""
    yield name, data
    if depth == 4:
        return
    inner: list[tuple[str, bytes]] = []
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = [(info.filename, archive.read(info)) for info in archive.infolist()]
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            inner = [
                (info.name, stream.read()) for info in tar if (stream := tar.extractfile(info)) is not None
            ]
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        inner = list(png_texts(data))
    elif data[2:9] == b"b2frame":
        inner = list(blosc2_texts(data))
    for magic, opened in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
        if data.startswith(magic):
            with contextlib.suppress(EOFError, OSError, lzma.LZMAError):  # cut short
                inner = [("unpacked", opened.decompress(data))]
    for label, piece in inner:
        yield from unpacked(f"{name} > {label}", piece, depth + 1)


def png_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Chunks of a PNG that hold packed text or profiles, unpacked."""
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind in (b"zTXt", b"iCCP", b"iTXt"):
            for start in range(len(body)):
                if body[start : start + 1] == b"\x78":
                    try:
                        yield kind.decode(), zlib.decompress(body[start:])
                    except zlib.error:
                        continue
        place += 12 + length


def blosc2_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Metadata of a Blosc2 frame, which is packed."""
    import blosc2

    frame = blosc2.ndarray_from_cframe(data)
    for label, layers in (("meta", frame.schunk.meta), ("vlmeta", frame.schunk.vlmeta)):
        for key in list(layers):
            key = key.decode() if isinstance(key, bytes) else key
            yield f"{label} {key}", repr(layers[key]).encode()
