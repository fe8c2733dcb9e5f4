"""Leakage statement: whether the encoder has seen the cases that it is scored on.

Three questions, in this order: does encoder.json list the task's dataset (or a relative of it) among its
training sources; did the collection hold the scored split out; and, where the pretraining shards are at
hand, does any scored case's pixel hash or subject occur in them. The answer is `clean`, `leaked` or
`unknown`; an evaluation does not print a score without it. The price of the last check is reading the
metadata of every shard, about 20,000 samples a second; beyond `_MOST` samples it is left out and said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.config import read_yaml
from ..data.errors import MedloomError
from ..data.shards.reader import Shards
from ..pretrain.artefact import generations
from .data import Case
from .record import TaskRecord

_MOST = 500_000


def statement(
    record: TaskRecord,
    encoder: Mapping[str, Any],
    cases: Sequence[Case],
    *,
    split: str = "test",
    shards: Path | None = None,
    salt_fingerprint: str | None = None,
) -> dict[str, Any]:
    """Judge an encoder.json against a task.

    Args:
        encoder: encoder.json, or {"source": name} for weights that came without one.
        cases: the scored cases.
        split: which split of the task they are.
        shards: the pretraining shards, if they are at hand.
        salt_fingerprint: of the task's shards; subjects compare only under the same salt.

    Returns:
        {"status": clean | leaked | unknown, "statement": a sentence, "checks": [...], "not_checked": [...]}.
    """
    training = encoder.get("training")
    if not isinstance(training, Mapping):
        return _without_record(str(encoder.get("source", "")))
    # A collection holds out by the source's own words: a `test` that was drawn here may lie in its `train`.
    own = {case.meta.get("split") for case in cases} or {split}
    seen, exposed, not_checked = _seen(encoder, record, own)
    among = ", ".join(dict.fromkeys(seen))
    checks = [f"training sources of the encoder: {among or 'neither the dataset nor a relative'} among them"]
    if exposed:
        sentence = (
            f"The encoder was trained on {', '.join(dict.fromkeys(exposed))} without holding {split} out: "
            "these scores do not measure generalisation."
        )
        return _answer("leaked", sentence, checks, not_checked)
    found = _overlap(shards, training, cases, salt_fingerprint)
    if found is None:
        not_checked.append("pixels and subjects: the pretraining shards are not at hand")
    else:
        checks.append(f"{len(cases)} {split} cases against the pretraining shards: {found} in common")
    if training.get("ancestor"):
        not_checked.append("pixels and subjects: the shards that the initial weights were trained on")
    if found:
        sentence = f"{found} of {len(cases)} {split} cases, or their subjects, are in the pretraining shards."
        return _answer("leaked", sentence, checks, not_checked)
    gap = _gap(encoder)
    if gap is not None:
        return _answer("unknown", gap[0], checks, [*not_checked, gap[1]])
    sentence = f"The encoder has not seen {record.dataset}."
    if seen:
        how = "labels and all" if _with_labels(encoder, seen) else "unlabelled"
        sentence = f"The encoder has seen other splits of {record.dataset}, {how}; {split} was held out."
    return _answer("clean", sentence, checks, not_checked)


def _seen(
    encoder: Mapping[str, Any], record: TaskRecord, splits: set[str | None]
) -> tuple[list[str], list[str], list[str]]:
    """Of all generations: the task's dataset and relatives among the sources, those not held out, and
    what was not checked. The `test` of a relative is other cases: only the whole of it can be held out.
    """
    seen, exposed, not_checked = [], [], []
    for one in generations(encoder):
        held_out, sources = one.get("held_out") or {}, (one.get("training") or {}).get("sources") or []
        not_checked += [str(item) for item in held_out.get("not_checked") or []]
        for name in (s.get("dataset") for s in sources):
            if name not in {record.dataset, *record.related}:
                continue
            seen.append(name)
            if not _held_out(held_out.get("rules") or [], name, splits if name == record.dataset else None):
                exposed.append(name)
    return seen, exposed, not_checked


def _with_labels(encoder: Mapping[str, Any], seen: Sequence[str]) -> bool:
    """Whether a generation that learnt from labels had one of these datasets among its sources."""
    learnt = [one.get("training") or {} for one in generations(encoder)]
    return any(
        source.get("dataset") in seen
        for training in learnt
        if (training.get("objective") or {}).get("name") == "supervised"
        for source in training.get("sources") or []
    )


def _gap(encoder: Mapping[str, Any]) -> tuple[str, str] | None:
    """What of the training data is not on record: a sentence, and what is therefore not checked."""
    source = str(encoder.get("source", "the encoder"))
    for one in generations(encoder):
        known = one.get("training") or {}
        start = known.get("init_from")
        if start and not (known.get("ancestor") or {}).get("training"):
            sentence = (
                f"The encoder started from {Path(str(start)).name}, whose training data are not on record."
            )
            return sentence, "training data of the initial weights"
        if known.get("complete") is False:
            return f"What {source} was trained on is known only in part.", "all of its training data"
    return None


def worst_of(statements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statement of several encoders that are scored as one: that of the worst of them."""
    return max(statements, key=lambda one: ("clean", "unknown", "leaked").index(one["status"]))


def _without_record(source: str) -> dict[str, Any]:
    """Weights that came without an encoder.json that speaks of training."""
    if source.startswith("random:"):
        return _answer("clean", "The encoder has random weights: it was trained on nothing.", [], [])
    sentence = f"{source or 'The encoder'} does not say what it was trained on."
    return _answer("unknown", sentence, [], ["training sources", "subjects", "pixels"])


def pretraining_shards(encoder_source: str, encoder: Mapping[str, Any]) -> Path | None:
    """Shards that a run folder was trained on, when they are still there with the same manifest."""
    folder = Path(encoder_source)
    config = (folder if folder.is_dir() else folder.parent) / "config.yaml"
    try:
        shards = Path(str(read_yaml(config).get("data", {}).get("shards", "")))
        wanted = (encoder.get("training") or {}).get("manifest")
        return (
            shards
            if (shards / "manifest.json").is_file() and Shards.open(shards).manifest.hash == wanted
            else None
        )
    except MedloomError:
        return None


def _held_out(rules: Sequence[Mapping[str, Any]], dataset: str, splits: set[str | None] | None) -> bool:
    """Whether the rules of the collection keep these splits of the dataset (None: all) from training."""
    mine = [set(rule.get("splits") or []) for rule in rules if rule.get("dataset") == dataset]
    return set() in mine or (splits is not None and bool(mine) and splits <= set.union(*mine))


def _overlap(
    shards: Path | None, training: Mapping[str, Any], cases: Sequence[Case], salt_fingerprint: str | None
) -> int | None:
    """How many scored cases share pixels or subject with the pretraining shards; None when not checked."""
    if shards is None:
        return None
    pool = Shards.open(shards)
    try:
        if len(pool) > _MOST:
            return None
        used = {source["id"] for source in training.get("sources") or []}
        same_salt = salt_fingerprint is not None and pool.manifest.salt_fingerprint == salt_fingerprint
        hashes, subjects = set(), set()
        for name in [source.id for source in pool.manifest.sources if source.id in used]:
            for ref in pool.refs(name):
                meta = pool.meta(ref)
                hashes.add(meta["content_hash"])
                subjects.add((meta["dataset"], meta["subject"]))
    finally:
        pool.close()
    return sum(
        case.meta["content_hash"] in hashes
        or (same_salt and (case.meta["dataset"], case.subject) in subjects)
        for case in cases
    )


def _answer(status: str, sentence: str, checks: list[str], not_checked: list[str]) -> dict[str, Any]:
    return {"status": status, "statement": sentence, "checks": checks, "not_checked": not_checked}
