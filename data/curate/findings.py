"""The rules of a curation: what each finds, what it does about it, and from which number on.

Thresholds come from measurements on a real collection with injected faults (`python -m benchmarks.curation`);
docs/curation.md says what was measured. A rule that drops takes images away; one that flags only lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, nearest
from .curation import DROP, FLAG

# rule -> (what it does unless the user says otherwise, what it finds)
RULES: dict[str, tuple[str, str]] = {
    "relation": (DROP, "a dataset that shares cases with a held-out one, by the catalogue"),
    "subject": (DROP, "a subject that is held out"),
    "held_out_copy": (DROP, "the same pixels as a held-out image"),
    "held_out_near": (DROP, "a near copy of a held-out image, turned and mirrored ones and its slices too"),
    "copy": (DROP, "the same pixels as another image"),
    "near": (DROP, "a near copy of another image: re-encoded, resized, cropped, shifted in intensity"),
    "turned": (FLAG, "a near copy of another image, turned or mirrored"),
    "slice": (FLAG, "the central slice of a volume"),
    "blank": (DROP, "one value nearly everywhere, or nothing but noise"),
    "truncated": (FLAG, "empty at one end, unlike the others of its kind; a CT cut off by its field of view"),
    "spacing": (FLAG, "a size in millimetres that no body has, or far from the others of its dataset"),
    "text": (FLAG, "lettering in the pixels"),
    "inverted": (FLAG, "the negative of what others of its kind look like"),
    "outlier": (FLAG, "unlike the other images of its dataset; perhaps not medical at all"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which number on a rule finds something."""

    near_2d: float = 0.96  # agreement of registered thumbnails
    near_3d: float = 0.97
    turned: float = 0.98
    blank_mode: float = 0.995  # share of one value
    blank_structure: float = 0.03  # share of the variance that is no noise
    truncated_band: float = 0.25  # share of an axis that is empty at one end only ...
    truncated_deviations: float = 8.0  # ... and as many robust deviations above its dataset's median
    truncated_body: float = 0.5  # share of a side of a CT's field of view that is body
    extent_low: float = 5.0  # mm, of a volume
    extent_high: float = 2200.0
    spacing_low: float = 0.02  # mm, of a volume
    spacing_high: float = 25.0
    spacing_factor: float = 4.0  # times larger or smaller than the median of its dataset
    text_characters: float = 6.0  # in lines of four and more
    inverted: float = -0.4  # correlation with the median picture of its dataset
    outlier: float = 10.0  # robust deviations of the distance from its dataset

    def changed(self, words: Mapping[str, str]) -> Thresholds:
        """With some of them replaced. Raises ConfigError for an unknown name or what is not a number."""
        values = {name: getattr(self, name) for name in self.__slots__}
        for name, word in words.items():
            if name not in values:
                raise ConfigError(f"threshold: unknown {name!r}{nearest(name, set(values))}")
            try:
                values[name] = float(word)
            except ValueError:
                raise ConfigError(f"threshold {name}: {word!r} is not a number") from None
        return Thresholds(**values)


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides, beside the images: part of `curation.json`."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    actions: Mapping[str, str] = field(
        default_factory=lambda: {rule: act for rule, (act, _) in RULES.items()}
    )

    @classmethod
    def of(cls, drop: list[str], flag: list[str], thresholds: Mapping[str, str]) -> Settings:
        """The defaults, with rules that drop or flag otherwise. Raises ConfigError for an unknown rule."""
        actions = {rule: action for rule, (action, _) in RULES.items()}
        for rules, action in ((drop, DROP), (flag, FLAG)):
            for rule in rules:
                if rule not in RULES:
                    raise ConfigError(f"rule: unknown {rule!r}{nearest(rule, set(RULES))}")
                actions[rule] = action
        if both := sorted(set(drop) & set(flag)):
            raise ConfigError(f"rule {both[0]}: is to be dropped and to be flagged; choose one")
        return cls(Thresholds().changed(thresholds), actions)


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that found something in one image (or, without an image, in a record)."""

    rule: str
    record: int
    image: int | None = None  # its place in the table; None: the record as a whole, unseen
    numbers: Mapping[str, Any] = field(default_factory=dict)  # what was measured, and the threshold
    of: int | None = None  # the image that it is a copy of
