"""Find datasets by words and by facts.

Every word of the text must begin a word of the row (`liv` finds liver); names count more than tokens, tokens
more than notes. A filter on a fact that is unknown of a row does not match it; such rows are returned apart,
so that 867 rows without a stated licence are not silently lost. A scan of all rows takes about 2 ms (13 ms
the first time) and needs no index on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import CollectionError, ConfigError, nearest
from ..sample import Modality, Organ, parse_modality, parse_organ
from .licences import terms
from .records import Dataset
from .vocabulary import FORMATS, MODALITY_TOKENS, Access, Category, Companion, Dims, Task

LICENCE_WORDS = ("commercial", "non-commercial", "share-alike", "no-derivatives", "known", "unknown")

Test = Callable[[Dataset], "bool | None"]  # None: the fact is not known of the row


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked for; empty fields ask nothing. Several values of one field are alternatives."""

    text: str = ""
    modality: tuple[str, ...] = ()  # the vocabulary, or a synonym that `parse_modality` knows
    organ: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    file_format: tuple[str, ...] = ()
    licence: tuple[str, ...] = ()  # one of LICENCE_WORDS, or the start of a licence (`CC-BY-4.0`)
    access: tuple[str, ...] = ()
    years: tuple[int, int] | None = None  # first and last, both included
    min_images: int | None = None  # in the unit of the row: images, volumes, slides, videos, frames


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: what matches, best first, and what might if more were known of it."""

    hits: tuple[Dataset, ...]
    unknown: tuple[Dataset, ...]  # matches all that is known, but a filtered fact is not


def search(datasets: Iterable[Dataset], query: Query) -> Found:
    """Find the datasets that match every part of `query`.

    Raises:
        ConfigError: a filter names a word that the vocabulary does not know; names the near ones.
    """
    datasets = tuple(datasets)
    tests = list(_tests(query, datasets))
    words = _words(query.text)
    hits: list[tuple[int, str, Dataset]] = []
    unknown: list[tuple[int, str, Dataset]] = []
    for dataset in datasets:
        score = _score(dataset, words) if words else 0
        if score is None:
            continue
        answers = [test(dataset) for test in tests]
        if False not in answers:
            (unknown if None in answers else hits).append((-score, dataset.id, dataset))
    return Found(*(tuple(item[2] for item in sorted(part, key=lambda i: i[:2])) for part in (hits, unknown)))


def near_words(datasets: Iterable[Dataset], text: str) -> str:
    """For words of `text` that no row has: `; did you mean ...?`; empty when every word occurs."""
    rows = [haystack(dataset) for dataset in datasets]
    for word in _words(text):
        if not any(f" {word}" in part for row in rows for part in row):
            known = {token for row in rows for part in row[:2] for token in part.split()}
            return f"no row has {word!r}{nearest(word, known)}"
    return ""


def _tests(query: Query, datasets: Sequence[Dataset]) -> Iterable[Test]:
    """One test for each filter that is set."""
    lists: list[tuple[tuple[str, ...], Callable[[str], str], str]] = [
        (query.modality, _modality, "modalities"), (query.organ, _organ, "organs"),
        (query.task, _member("task", Task), "tasks"), (query.dims, _member("dims", Dims), "dims"),
        (query.file_format, _member("format", FORMATS), "formats"),
    ]  # fmt: skip
    for words, parse, column in lists:
        if words:
            yield _overlaps(column, frozenset(parse(word) for word in words))
    if query.category:
        yield _one("category", frozenset(_member("category", Category)(word) for word in query.category))
    if query.access:
        yield _one("access", frozenset(_member("access", Access)(word) for word in query.access))
    if query.licence:
        names = frozenset(dataset.licence.lower() for dataset in datasets if dataset.licence)
        several = [_licence(word, names) for word in query.licence]
        yield lambda dataset: _either([test(dataset) for test in several])
    if query.years:
        first, last = query.years
        yield lambda dataset: None if dataset.year is None else first <= dataset.year <= last
    if query.min_images is not None:
        least = query.min_images
        yield lambda dataset: None if dataset.n_images is None else dataset.n_images >= least


def _overlaps(column: str, wanted: frozenset[str]) -> Test:
    def test(dataset: Dataset) -> bool | None:
        values = getattr(dataset, column)
        return not wanted.isdisjoint(values) if values else None

    return test


def _one(column: str, wanted: frozenset[str]) -> Test:
    def test(dataset: Dataset) -> bool | None:
        value = getattr(dataset, column)
        if value is None or (value == Access.UNKNOWN and Access.UNKNOWN not in wanted):
            return None
        return value in wanted

    return test


def _licence(word: str, names: frozenset[str]) -> Test:
    """A test of the terms, or of the licence's own name."""
    asked = word.strip().lower()
    answers: dict[str, Test] = {
        "commercial": lambda d: terms(d.licence).commercial,
        "non-commercial": lambda d: _not(terms(d.licence).commercial),
        "share-alike": lambda d: terms(d.licence).share_alike,
        "no-derivatives": lambda d: _not(terms(d.licence).derivatives),
        "known": lambda d: bool(d.licence),
        "unknown": lambda d: not d.licence,
    }
    if asked in answers:
        return answers[asked]
    if not any(name.startswith(asked) for name in names):
        raise ConfigError(f"--licence: unknown {word!r}{nearest(asked, {*LICENCE_WORDS, *names})}")
    return lambda d: d.licence.lower().startswith(asked) if d.licence else None


def _modality(word: str) -> str:
    if word.strip().lower() in MODALITY_TOKENS:
        return MODALITY_TOKENS[word.strip().lower()]
    try:
        return parse_modality(word)
    except CollectionError as error:
        raise ConfigError(f"--modality: {error}") from error


def _organ(word: str) -> str:
    try:
        return parse_organ(word)
    except CollectionError as error:
        raise ConfigError(f"--organ: {error}") from error


def _member(option: str, known: Iterable[str]) -> Callable[[str], str]:
    names = {str(name) for name in known}

    def parse(word: str) -> str:
        found = word.strip().lower()
        if found not in names:
            raise ConfigError(f"--{option}: unknown {word!r}{nearest(found, names)}")
        return found

    return parse


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


@lru_cache(maxsize=8192)
def haystack(dataset: Dataset) -> tuple[str, str, str]:
    """(name, tokens, notes), each as ` word word`, so that a search for ` liv` meets the start of a word."""
    tokens = [
        *dataset.modalities, *dataset.organs, *dataset.tasks, *dataset.dims, *dataset.formats,
        dataset.category or "", dataset.licence,
    ]  # fmt: skip
    tokens += [word for word, modality in _PLAIN.items() if modality in dataset.modalities]
    parts = (f"{dataset.id} {dataset.name}", " ".join(tokens), dataset.notes)
    return tuple("".join(f" {word}" for word in _words(part)) for part in parts)  # type: ignore[return-value]


# Words that people type for a modality and that begin no token of it.
_PLAIN: dict[str, Modality | Organ | Companion] = {
    "mr": Modality.MRI, "us": Modality.ULTRASOUND, "xray": Modality.XRAY, "cxr": Modality.XRAY,
    "pathology": Modality.HISTOPATHOLOGY, "wsi": Modality.HISTOPATHOLOGY,
}  # fmt: skip


def _score(dataset: Dataset, words: list[str]) -> int | None:
    """Sum of where each word was met: name 8, tokens 4, notes 1, whole words twice; None: one nowhere."""
    name, tokens, notes = haystack(dataset)
    total = 0
    for word in words:
        start, whole = f" {word}", f" {word} "
        best = max(
            weight * (1 + (whole in f"{part} ")) if start in part else 0
            for part, weight in ((name, 8), (tokens, 4), (notes, 1))
        )
        if not best:
            return None
        total += best
    return total


def _either(answers: list[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer
