"""JPEG bytes without metadata, entropy-coded data untouched.

EXIF, XMP, ICC, IPTC, comments, thumbnails, reserved segments and whatever follows the end marker may name a
person, a place or a device. What the decoder needs stays, and nothing else: tables, frame and scan headers,
APP0 JFIF (without its thumbnail) and APP14 Adobe (colour transform).
"""

from __future__ import annotations

from ..errors import ReadError

_SOS, _EOI = 0xDA, 0xD9
# SOF0..15 with DHT (C4) and DAC (CC) but not JPG (C8); SOS, DQT, DNL, DRI, DHP, EXP.
_NEEDED = {*range(0xC0, 0xD0), *range(0xDA, 0xE0)} - {0xC8}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}


def strip(data: bytes, name: str) -> bytes:
    """Return the JPEG `data` without metadata: of its segments, those that decoding needs.

    The decoded pixels are identical. Source: ITU-T T.81, annex B.

    Raises:
        ReadError: no start marker, a segment longer than the file, or no end marker.
    """
    if data[:2] != b"\xff\xd8":
        raise ReadError(f"{name}: no JPEG start marker; copy or download it again")
    kept = [b"\xff\xd8"]
    position = 2
    while True:
        position, marker = _marker(data, position, name)
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            return b"".join(kept)
        if marker in _STANDALONE:
            continue
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end > len(data) or end < position + 2:
            raise _truncated(name)
        kept.append(_segment(marker, data[position + 2 : end]))
        position = end
        if marker == _SOS:
            position = _scan_end(data, position, name)
            kept.append(data[end:position])


def beyond_baseline(data: bytes) -> bool:
    """Whether the picture has more than 8 bits a sample or is coded without loss: see its frame header."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAMES:
            return data[position + 4] > 8 or marker in _LOSSLESS
        if marker == 0xFF:
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _marker(data: bytes, position: int, name: str) -> tuple[int, int]:
    """Position after the next marker, and the marker; fill bytes (0xFF) before it are skipped."""
    while position < len(data) and data[position] == 0xFF:
        position += 1
        if position < len(data) and data[position] != 0xFF:
            return position + 1, data[position]
    raise _truncated(name)


def _segment(marker: int, body: bytes) -> bytes:
    """The bytes to keep of one marker segment."""
    if marker == 0xE0 and body.startswith(b"JFIF\0"):
        body = body[:12] + b"\0\0"  # version, density; thumbnail of 0 x 0
    elif marker == 0xEE and body.startswith(b"Adobe"):
        body = body[:12]
    elif marker not in _NEEDED:
        return b""
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _scan_end(data: bytes, position: int, name: str) -> int:
    """Position of the marker that ends the entropy-coded data starting at `position`."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise _truncated(name)
        following = data[position + 1]
        if following == 0xFF:
            position += 1
        elif following == 0 or following in _STANDALONE:
            position += 2
        else:
            return position


def _truncated(name: str) -> ReadError:
    return ReadError(f"{name}: truncated JPEG (no end marker in its place); copy or download it again")
