"""Held out by what is known before a pixel is read: relatives in the catalogue, and subjects."""

from __future__ import annotations

from collections.abc import Sequence

from ..catalog.catalog import Catalog
from ..collection import Collection, Scan
from ..errors import ConfigError, nearest


def ids_of(collection: Collection, catalog: Catalog, given: Sequence[str]) -> dict[str, str]:
    """Source -> catalogue id, for those sources that are known there.

    A source whose name is an id (with `-` for `_`) is taken to be that dataset.

    Args:
        given: the user's words, `source=id`, for all others.

    Raises:
        ConfigError: an unknown source or id.
    """
    names = {source.dataset for source in collection.sources}
    found = {name: name.replace("_", "-") for name in names if name.replace("_", "-") in catalog}
    for word in given:
        source, _, identifier = word.partition("=")
        if source not in names:
            raise ConfigError(f"{word!r}: no source {source!r}{nearest(source, names)}; write source=id")
        found[source] = catalog[identifier].id
    return found


def related(
    collection: Collection, catalog: Catalog, ids: dict[str, str], clean_for: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Sources that share, or may share, cases with what is held out: source -> why.

    Held out are the sources of the collection's rules and the datasets of the tasks in `clean_for`. A source
    that is held out itself is not its own relative: what its rules leave is up to subjects and pixels.

    Raises:
        ConfigError: an unknown task in `clean_for`, with the near names.
    """
    ruled = {rule.dataset for rule in collection.held_out}
    targets = {ids[name]: f"source {name}" for name in sorted(ruled) if name in ids}
    reasons: dict[str, dict[str, str]] = {}
    for target, words in targets.items():
        for relative in catalog.related(target):
            reasons.setdefault(
                relative.id, {"held_out": words, "level": str(relative.level), "path": relative.steps}
            )
    for task in clean_for:
        answer = catalog.clean_for(task)
        for target in answer.targets:
            reasons[target] = {"held_out": f"task {task}", "level": "certain", "path": "the task's own data"}
        for relative in answer.excluded:
            why = {"held_out": f"task {task}", "level": str(relative.level), "path": relative.steps}
            reasons.setdefault(relative.id, why)
    own = {target for task in clean_for for target in catalog.clean_for(task).targets}
    return {
        source: {"dataset": identifier, **reasons[identifier]}
        for source, identifier in sorted(ids.items())
        if identifier in reasons and (source not in ruled or identifier in own)
    }


def held_subjects(found: Scan) -> set[tuple[str, str]]:
    """(dataset, subject) of the held-out images."""
    return {(record.dataset, record.subject) for _, record in found.held_out}
