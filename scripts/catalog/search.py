"""`medloom catalog search`: find datasets by words and by facts."""

from __future__ import annotations

import argparse
import re

from .output import add_format, add_own

EPILOG = """Values of one option are alternatives (--modality ct,mri); options add up. Rows whose fact is
unknown do not match and are counted apart; --unknown lists them too.
  --licence takes commercial, non-commercial, share-alike, no-derivatives, known, unknown,
            or the start of a licence: CC-BY-4.0
  --year    takes 2019, 2015-2020, 2020- or -2010"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("text", nargs="*", help="words; each must begin a word of the name, facts or notes")
    for name, meaning in (
        ("modality", "ct, mri, x-ray, histopathology ..., or a synonym (MR, US)"),
        ("organ", "liver, brain, eye ..., or a synonym (retina)"),
        ("task", "segmentation, classification, detection ..."),
        ("category", "head-neck, chest-abdomen, pathology-blood, others"),
        ("dims", "2d, 3d, 2d+t, 3d+t, wsi"),
        ("file-format", "nifti, dicom, png, npz ..."),
        ("licence", "see below"),
        ("access", "open, registration, challenge, application, gone, unknown"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="WORD[,WORD]", help=meaning)
    parser.add_argument("--year", metavar="RANGE", help="of release")
    parser.add_argument("--min-images", type=int, metavar="N", help="at least N, in the unit of the row")
    parser.add_argument("--unknown", action="store_true", help="also rows whose filtered fact is unknown")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N rows")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what matches."""
    from ...data.catalog.plain import plain
    from ...data.catalog.search import Query, near_words, search
    from ..console import print_table, say
    from .output import legend, load, short, write_csv, write_json

    catalog = load(arguments)
    text = " ".join(arguments.text)
    found = search(catalog, Query(
        text=text, modality=_words(arguments.modality), organ=_words(arguments.organ),
        task=_words(arguments.task), category=_words(arguments.category), dims=_words(arguments.dims),
        file_format=_words(arguments.file_format), licence=_words(arguments.licence),
        access=_words(arguments.access), years=_years(arguments.year), min_images=arguments.min_images,
    ))  # fmt: skip
    shown = [*found.hits, *(found.unknown if arguments.unknown else ())][: arguments.limit]
    if arguments.format != "table":
        (write_json if arguments.format == "json" else write_csv)([plain(dataset) for dataset in shown])
        return 0
    print_table([short(dataset) for dataset in shown])
    if len(shown) < len(found.hits):
        say(f"{len(found.hits):,} match; the first {len(shown):,} are shown")
    else:
        near = near_words(catalog, text) if not found.hits else ""
        say(f"{len(found.hits):,} of {len(catalog):,} match" + (f"; {near}" if near else ""))
    if found.unknown:
        kept = "listed after them" if arguments.unknown else "--unknown lists them"
        say(f"{len(found.unknown):,} more may match: a fact asked for is unknown of them ({kept})")
    if marks := legend(shown):
        say(marks)
    return 0


def _words(values: list[str]) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def _years(text: str | None) -> tuple[int, int] | None:
    """`2019`, `2015-2020`, `2020-` or `-2010`.

    Raises:
        ConfigError: none of these.
    """
    from ...data.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{4})?(-)?(\d{4})?", text)
    if not match or not (match[1] or match[3]) or (match[1] and match[3] and not match[2]):
        raise ConfigError(f"--year: {text!r} is no range of years; write 2019, 2015-2020, 2020- or -2010")
    first, last = int(match[1] or 0), int(match[3] or 9999)
    return (first, first) if not match[2] else (first, last)
