"""Which sources of a folder a run reads, and whether their shards are all there."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from ..shards.manifest import SourceEntry
from ..shards.reader import Shards
from .config import StreamConfig


def select(config: StreamConfig, shards: Shards) -> tuple[list[SourceEntry], list[int]]:
    """The sources of `config.ndim` that sources/exclude leave, and the number of the first shard of each.

    Raises:
        ConfigError: an unknown name, or nothing left.
        ShardError: a shard is missing or has another size.
    """
    manifest = shards.manifest
    known = {name for s in manifest.sources for name in (s.id, s.dataset)}
    for key in ("sources", "exclude", "weights"):
        for name in getattr(config, key):
            if name not in known:
                where = f"data.{key} names {name!r}, not in {shards.root}"
                raise ConfigError(where + nearest(name, known))
    chosen, first, number = [], [], 0
    for source in manifest.sources:
        names = {source.id, source.dataset}
        wanted = not config.sources or names & set(config.sources)
        if source.ndim == config.ndim and wanted and not names & set(config.exclude):
            chosen.append(source)
            first.append(number)
        number += len(source.shards)
    if not chosen:
        there = ", ".join(f"{s.id} ({s.ndim}D)" for s in manifest.sources) or "nothing"
        raise ConfigError(
            f"no {config.ndim}D source is left by data.sources/exclude; the shards hold {there}"
        )
    shards.check(shard for source in chosen for shard in source.shards)
    return chosen, first


def source_weights(config: StreamConfig, sources: list[SourceEntry]) -> dict[str, float]:
    """Weights by source id; a dataset's weight goes to each of its sources, a source's own wins."""
    given = config.weights
    return {
        s.id: given.get(s.id, given.get(s.dataset, 1.0)) for s in sources if {s.id, s.dataset} & set(given)
    }
