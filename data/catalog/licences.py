"""What a licence allows, and what holds for a mixture of datasets. Facts for planning, not legal advice.

A licence is read into four answers, each yes, no or unknown (None). A mixture is as strict as its strictest
part, and what is unknown of one part is unknown of the whole. Whether weights trained on data are a
derivative of the data is an open question of law, so it is answered only where both answers lead to the same:
every part allows derivatives for any purpose. No row of the catalogue says anything on weights itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .records import Dataset

_CC = re.compile(r"CC-BY(?P<letters>(?:-(?:NC|SA|ND))*)(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one licence says; None where it is not known."""

    commercial: bool | None = None  # use for profit
    derivatives: bool | None = None  # changed copies may be shared
    share_alike: bool | None = None  # changed copies carry the same licence
    attribution: bool | None = None  # the source must be named
    agreement: bool = False  # a contract is signed or clicked, and may say more than these four

    @property
    def known(self) -> bool:
        """Whether the three answers that decide on use are known."""
        return None not in (self.commercial, self.derivatives, self.share_alike)

    @property
    def words(self) -> str:
        """The restrictions in words: `non-commercial, share-alike`, `none but attribution`, `unknown`."""
        found = [
            word
            for word, hit in (
                ("non-commercial", self.commercial is False),
                ("no-derivatives", self.derivatives is False),
                ("share-alike", self.share_alike is True),
                ("agreement", self.agreement),
            )
            if hit
        ]
        if not self.known:
            return ", ".join([*found, "rest unknown"] if found else ["unknown"])
        return ", ".join(found) or ("none but attribution" if self.attribution else "none")


_OPEN = Terms(commercial=True, derivatives=True, share_alike=False, attribution=False)
_PERMISSIVE = Terms(commercial=True, derivatives=True, share_alike=False, attribution=True)
_COPYLEFT = Terms(commercial=True, derivatives=True, share_alike=True, attribution=True)
_RESEARCH = Terms(commercial=False, agreement=True)
_CONTRACT = Terms(agreement=True)

# Start of a licence's name, lower case -> terms. What a contract says beyond that was not read: unknown.
_NAMED: dict[str, Terms] = {
    "cc0": _OPEN, "pddl": _OPEN, "odc-by": _PERMISSIVE, "mit": _PERMISSIVE, "apache": _PERMISSIVE,
    "bsd": _PERMISSIVE, "gpl": _COPYLEFT, "odbl": _COPYLEFT, "nih-open": Terms(attribution=True),
    "non-commercial": Terms(commercial=False), "research-only": Terms(commercial=False),
    "challenge-use-only": Terms(commercial=False), "stanford-research-use": _RESEARCH,
    "tcia-nc-limited": _RESEARCH, "tcia-": _CONTRACT, "physionet-": _CONTRACT, "adni-dua": _CONTRACT,
    "egd-dua": _CONTRACT, "nctn-": _CONTRACT, "synapse-terms": _CONTRACT, "birn-": _CONTRACT,
    "paid": _CONTRACT,
}  # fmt: skip


@lru_cache(maxsize=512)
def terms(licence: str) -> Terms:
    """Terms of a licence as the tables write it; several inside one set (` / `) give the strictest of each.

    An empty or unrecognised licence is unknown in every answer.
    """
    parts = [_single(part) for part in re.split(r"\s+/\s+|\(|\)|;", licence) if part.strip()]
    recognised = [part for part in parts if part is not None]
    return strictest(recognised) if recognised else Terms()


def strictest(several: Iterable[Terms]) -> Terms:
    """Terms of a mixture: forbidden if any part forbids, else unknown if any part is unknown."""
    several = list(several)
    if not several:
        return Terms()
    return Terms(
        commercial=_all([t.commercial for t in several]),
        derivatives=_all([t.derivatives for t in several]),
        share_alike=_any([t.share_alike for t in several]),
        attribution=_any([t.attribution for t in several]),
        agreement=any(t.agreement for t in several),
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Effective terms of several datasets, each answer with the ids that decide it."""

    terms: Terms
    decided_by: dict[str, tuple[str, ...]]  # "non-commercial" -> ids; only what holds
    unknown: tuple[str, ...]  # ids whose terms are not wholly known
    conflicts: tuple[str, ...]  # sentences
    weights: str  # may weights be shared: a sentence that starts with yes, no or unknown


def mixture(datasets: Sequence[Dataset]) -> Mixture:
    """Effective terms of a mixture of datasets."""
    each = {dataset.id: terms(dataset.licence) for dataset in datasets}
    tests = {
        "non-commercial": lambda t: t.commercial is False,
        "no-derivatives": lambda t: t.derivatives is False,
        "share-alike": lambda t: t.share_alike is True,
        "agreement": lambda t: t.agreement,
        "attribution": lambda t: t.attribution is True,
    }
    decided = {word: tuple(name for name, t in each.items() if test(t)) for word, test in tests.items()}
    decided = {word: ids for word, ids in decided.items() if ids}
    unknown = tuple(name for name, t in each.items() if not t.known)
    return Mixture(
        strictest(each.values()), decided, unknown, _conflicts(datasets, decided), _weights(datasets, unknown)
    )


def _conflicts(datasets: Sequence[Dataset], decided: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Parts that cannot be adapted into one shared work."""
    found = []
    alike = {d.licence for d in datasets if d.id in decided.get("share-alike", ())}
    if len(alike) > 1:
        found.append(
            f"share-alike under {len(alike)} licences ({', '.join(sorted(alike))}): "
            "one adapted copy of all cannot carry each"
        )
    if "no-derivatives" in decided:
        frozen = ", ".join(decided["no-derivatives"])
        found.append(f"no changed copy of {frozen} may be shared; shards are changed copies")
    return tuple(found)


def _weights(datasets: Sequence[Dataset], unknown: Sequence[str]) -> str:
    """The sentence on weights; see the module's docstring."""
    whole = strictest(terms(dataset.licence) for dataset in datasets)
    if unknown:
        return f"unknown: the terms of {', '.join(unknown[:6])}{', ...' * (len(unknown) > 6)} are not known"
    if whole.commercial and whole.derivatives and whole.share_alike is False and not whole.agreement:
        credit = ", naming the sources" if whole.attribution else ""
        return f"yes{credit}: every part allows changed copies for any purpose, so it holds either way"
    return f"unknown: no part says so, and it is unsettled whether weights are a derivative ({whole.words})"


def _single(part: str) -> Terms | None:
    """Terms of one licence; None for words that are no licence (`version unstated`)."""
    text = part.strip()
    word = text.lower()
    match = _CC.search(text)
    if match and not word.startswith("cc0"):
        letters = set(match["letters"].upper().split("-"))
        return Terms(
            commercial="NC" not in letters, derivatives="ND" not in letters,
            share_alike="SA" in letters, attribution=True,
        )  # fmt: skip
    return next((found for name, found in _NAMED.items() if word.startswith(name)), None)


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _any(answers: Sequence[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False
