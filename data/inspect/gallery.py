"""What a folder of shards holds, to look at: a contact sheet (PNG) and a table.

The sheet has one row for each modality and dimensionality, its tiles drawn from all datasets in turn and
evenly spaced within each, so that the same shards give the same sheet. The price: about 10 ms a picture and
50 ms a volume; the metadata of a sample is read only when it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import replacing
from ..errors import ConfigError, ShardError
from ..sample import MODALITIES, Modality
from ..shards.manifest import SourceEntry
from ..shards.reader import SampleRef, Shards
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Progress = Callable[[int, int, str], None]

_TILE, _GAP, _MARGIN = 184, 14, 36  # pixels
_TITLE, _HEADING, _CAPTION = 84, 52, 56  # heights
_NAMED = 3  # modalities or organs that a cell of the table lists
_LEAST_COLUMNS = 4  # so that the title has room

_PAGE, _RULE = (18, 20, 26), (48, 53, 66)
_BRIGHT, _TEXT, _DIM = (245, 247, 250), (214, 219, 228), (136, 145, 161)

_SPELT = {"fmri": "fMRI", "dmri": "dMRI"}
_ACRONYMS = {"ct", "cbct", "mri", "pet", "spect", "oct", "octa", "slo", "dsa", "dbt", "em"}


@dataclass(frozen=True, slots=True)
class _Group:
    """A row of the sheet: a modality in one dimensionality, and the sources that hold it."""

    modality: Modality
    ndim: int
    sources: tuple[tuple[int, SourceEntry], ...]  # (number of its first shard, entry)

    @property
    def count(self) -> int:
        return sum(source.modalities[self.modality] for _, source in self.sources)

    @property
    def tile_height(self) -> int:
        return _TILE * 3 // 2 if self.ndim == 3 else _TILE


def table(shards: Shards) -> list[dict[str, Any]]:
    """One row per source, from the manifest alone: source, modality, organ, ndim, count, bytes, licence,
    labels.

    A source of several modalities or organs lists the most frequent with counts; labels give their number of
    values: `class (7), type (2)`.
    """
    return [
        {
            "source": source.id,
            "modality": _shares(source.modalities),
            "organ": _shares(source.organs),
            "ndim": source.ndim,
            "count": source.count,
            "bytes": source.bytes,
            "licence": source.licence,
            "labels": ", ".join(f"{name} ({len(found)})" for name, found in sorted(source.labels.items())),
        }
        for source in shards.manifest.sources
    ]


def contact_sheet(
    shards: Shards, out_png: str | Path, *, per_group: int = 8, progress: Progress | None = None
) -> Path:
    """Draw the sheet and write it, atomically; returns its path.

    Args:
        per_group: images a row at most.

    Raises:
        ConfigError: `per_group` below 1.
        ShardError: a shard is damaged, or the picture cannot be written.
    """
    from PIL import Image, ImageDraw

    if per_group < 1:
        raise ConfigError(f"per_group: {per_group} < 1; show at least one image a row")
    out_png = Path(out_png)
    rows = [(group, _choose(shards, group, per_group)) for group in _groups(shards)]
    columns = max([len(refs) for _, refs in rows] + [_LEAST_COLUMNS])
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    height = _TITLE + _MARGIN + sum(_HEADING + group.tile_height + _CAPTION for group, _ in rows)
    sheet = Image.new("RGB", (width, height), _PAGE)
    pen = _Pen(ImageDraw.Draw(sheet))
    _draw_title(pen, shards, len(rows), width)
    top, done, total = _TITLE, 0, sum(len(refs) for _, refs in rows)
    for group, refs in rows:
        _draw_heading(pen, group, top, width)
        top += _HEADING
        for column, ref in enumerate(refs):
            if progress is not None:
                progress(done, total, "contact sheet")
            _draw_tile(sheet, pen, shards, ref, _MARGIN + column * (_TILE + _GAP), top, group.tile_height)
            done += 1
        top += group.tile_height + _CAPTION
    if progress is not None:
        progress(total, total, "contact sheet")
    try:
        with replacing(out_png) as temporary:
            sheet.save(temporary, format="PNG", optimize=True)
    except OSError as error:
        reason = error.strerror or error
        raise ShardError(f"{out_png}: cannot be written ({reason}); choose another place") from error
    return out_png


def _groups(shards: Shards) -> list[_Group]:
    """Modalities in the vocabulary's order, pictures before volumes."""
    first, numbered = 0, []
    for source in shards.manifest.sources:
        numbered.append((first, source))
        first += len(source.shards)
    groups = []
    for modality in MODALITIES:
        for ndim in (2, 3):
            own = tuple(
                (first, source)
                for first, source in numbered
                if source.ndim == ndim and source.modalities.get(modality, 0) > 0
            )
            if own:
                groups.append(_Group(modality, ndim, own))
    return groups


def _choose(shards: Shards, group: _Group, most: int) -> list[SampleRef]:
    """At most `most` samples, from the group's sources in turn, evenly spaced within each."""
    counts = [source.modalities[group.modality] for _, source in group.sources]
    shares = [0] * len(counts)
    while sum(shares) < min(most, sum(counts)):
        for number, count in enumerate(counts):
            if shares[number] < count and sum(shares) < most:
                shares[number] += 1
    refs: list[SampleRef] = []
    for (first, source), count, share in zip(group.sources, counts, shares, strict=True):
        wanted = [(2 * place + 1) * count // (2 * share) for place in range(share)]
        refs += _located(shards, first, source, group.modality, wanted)
    return refs


def _located(
    shards: Shards, first: int, source: SourceEntry, modality: Modality, wanted: list[int]
) -> Iterator[SampleRef]:
    """The samples at these ascending places among the source's samples of `modality`."""
    code, before = MODALITIES.index(modality), 0
    for number, entry in enumerate(source.shards, first):
        if len(source.modalities) == 1:
            ordinals = range(entry.count)
        else:
            ordinals = np.flatnonzero(shards.index(number).samples["modality"] == code)
        here = [place for place in wanted if before <= place < before + len(ordinals)]
        yield from (SampleRef(number, int(ordinals[place - before])) for place in here)
        before += len(ordinals)


class _Pen:
    """Text that never leaves its box."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw
        self._fonts: dict[tuple[int, bool], ImageFont.FreeTypeFont] = {}

    def text(
        self,
        place: tuple[float, float],
        text: str,
        size: int,
        colour: tuple[int, int, int],
        *,
        width: float,
        bold: bool = False,
    ) -> float:
        """Write one line, cut with an ellipsis at `width`; `place` is its baseline. Returns its length."""
        font = self._font(size, bold)
        if font.getlength(text) > width:
            while text and font.getlength(text + "…") > width:
                text = text[:-1].rstrip(" ·_-")
            text += "…"
        self.draw.text(place, text, colour, font=font, anchor="ls")
        return font.getlength(text)

    def _font(self, size: int, bold: bool) -> ImageFont.FreeTypeFont:
        import matplotlib
        from PIL import ImageFont

        if (size, bold) not in self._fonts:  # matplotlib carries its fonts: the same letters everywhere
            file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
            path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file
            self._fonts[size, bold] = ImageFont.truetype(str(path), size)
        return self._fonts[size, bold]


def _draw_title(pen: _Pen, shards: Shards, groups: int, width: int) -> None:
    manifest, room = shards.manifest, width - 2 * _MARGIN
    datasets = {source.dataset for source in manifest.sources}
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    facts = (
        f"{_number(manifest.count, 'image')} · {_number(len(datasets), 'dataset')} · "
        f"{_number(groups, 'kind')} of image · {megabytes:,.0f} MB"
    )
    pen.text((_MARGIN, 46), manifest.name, 26, _BRIGHT, width=room, bold=True)
    pen.text((_MARGIN, 70), facts, 14, _DIM, width=room)


def _draw_heading(pen: _Pen, group: _Group, top: int, width: int) -> None:
    room = width - 2 * _MARGIN
    pen.draw.line([(_MARGIN, top + 8), (width - _MARGIN, top + 8)], _RULE, 1)
    left = _MARGIN + pen.text(
        (_MARGIN, top + 36), _title_of(group.modality), 19, _BRIGHT, width=room * 0.5, bold=True
    )
    datasets = len({source.dataset for _, source in group.sources})
    what = "volume" if group.ndim == 3 else "picture"
    facts = f"{group.ndim}D · {_number(group.count, what)} · {_number(datasets, 'dataset')}"
    pen.text((left + 14, top + 36), facts, 13, _DIM, width=room - left - 14)


def _draw_tile(
    sheet: Image.Image, pen: _Pen, shards: Shards, ref: SampleRef, left: int, top: int, height: int
) -> None:
    from PIL import Image, ImageDraw

    meta = shards.meta(ref)
    picture = Image.fromarray(thumbnail(shards, ref, _TILE, meta))
    corners = Image.new("L", (4 * _TILE, 4 * height), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 4 * _TILE - 1, 4 * height - 1), 4 * 8, 255)
    sheet.paste(picture, (left, top), corners.resize((_TILE, height), Image.Resampling.BOX))
    lines = ((_subject_matter(meta), 13, _TEXT), (meta["dataset"], 11, _DIM), (_measures(meta), 11, _DIM))
    for (text, size, colour), below in zip(lines, (18, 33, 47), strict=True):
        pen.text((left + 1, top + height + below), text, size, colour, width=_TILE - 2)


def _subject_matter(meta: Mapping[str, Any]) -> str:
    organ = "" if meta["organ"] == "other" else str(meta["organ"])
    label = str(meta["labels"].get("class", ""))
    return " · ".join(part for part in (organ, label) if part) or "organ not stated"


def _measures(meta: Mapping[str, Any]) -> str:
    shape = [int(n) for n in meta["shape"]]
    extent = "×".join(str(n) for n in shape[1:])
    channels = f"{shape[0]} × " if shape[0] not in (1, 3) else ""
    if not meta["spacing"]:
        return f"{channels}{extent}"
    steps = [f"{mm:.2g}" for mm in meta["spacing"]]
    if len(set(steps)) == 1:
        return f"{channels}{extent} · {steps[0]} mm"
    if len(steps) == 3 and steps[1] == steps[2]:
        steps[1:] = [f"{steps[1]}²"]
    return f"{channels}{extent} · {'×'.join(steps)} mm"


def _title_of(modality: Modality) -> str:
    word = str(modality)
    return _SPELT.get(word) or (word.upper() if word in _ACRONYMS else word[0].upper() + word[1:])


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _shares(counts: Mapping[str, int]) -> str:
    """The only name, or `a 30, b 12, c 7, 2 more`, the most frequent first."""
    if len(counts) == 1:
        return next(iter(counts))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name} {count}" for name, count in ranked[:_NAMED]]
    return ", ".join(named + ([f"{len(ranked) - _NAMED} more"] if len(ranked) > _NAMED else []))
