"""Write a lost or altered manifest again from what is left: receipts of the build, tars, indices, lists.

A receipt says what a shard was written as (count, bytes, SHA-256) and what it holds, so with all receipts
there the result is exact but for two things: the order of the sources, which is that of the collection, and
the rules of what was held out. Shards without a receipt are taken as they are found. Whatever could not be
known is listed in the manifest itself (`build.recovered`); a recovered manifest whose hash is the one that
the altered file carries is proved to be the one that was written. Running the build again is always exact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..shards import index as indexing
from ..shards.format import KIND_JSON
from ..shards.index import Index, read_exactly
from ..shards.manifest import MANIFEST, HeldOut, Manifest, ShardEntry, SourceEntry
from .summary import Part, Summary, source_entry
from .units import UNITS, Receipt

RECOVERED = "recovered"  # key in `Manifest.build`


def recover(folder: Path, sha256: dict[str, str]) -> tuple[Manifest, str]:
    """The manifest of a folder, and how sure it is, in words.

    Args:
        sha256: of the shards whose members are all intact.

    Raises:
        ShardError: nothing is left to tell what the folder holds.
    """
    raw = _json(folder / MANIFEST)
    known = _known(raw, folder)
    receipts = [r for path in sorted((folder / UNITS).glob("*.json")) if (r := Receipt.load(path))]
    parts = {e.file: (e, r.summary[kind]) for r in receipts for kind, e in r.shards.items()}
    found = [file for file in sorted(sha256) if file not in parts]
    parts |= {file: measure(folder / file, sha256[file]) for file in found}
    if not parts:
        raise ShardError(f"{folder}: no receipt and no sound shard is left; build again, or copy it again")
    order = [source.id for source in known.sources] if known else []
    sources = _sources(list(parts.values()), order, known)
    manifest = _assembled(folder, known, sources, receipts)
    if manifest.hash == raw.get("hash"):
        return manifest, "exactly as it was written: its hash is the one that the altered file carries"
    there = {tar.name for tar in folder.glob("[!.]*.tar")} | {e.file for e in (known.shards if known else ())}
    left_out = sorted(there - set(parts))
    unknown = (
        ["rules of what was held out"] if known else ["order of the sources", "rules of what was held out"]
    )
    mark = {"not known": unknown, "taken as found": found, "left out": left_out}
    manifest = replace(manifest, build=manifest.build | {RECOVERED: mark})
    return manifest, "; ".join(f"{name}: {', '.join(items)}" for name, items in mark.items() if items)


def measure(tar: Path, sha256: str) -> Part:
    """A shard as it lies there, with the counts of its samples from their `key.json`."""
    summary, index = Summary(), indexing.rebuild(tar, write=False)
    for meta in metas(tar, index):
        summary.add(meta)
    return ShardEntry(tar.name, len(index), index.tar_bytes, sha256), summary.to_dict()


def metas(tar: Path, index: Index) -> Iterator[dict[str, Any]]:
    """`key.json` of every sample of a tar."""
    with tar.open("rb") as handle:
        for row in index.members[index.members["kind"] == KIND_JSON]:
            yield json.loads(read_exactly(handle.fileno(), int(row["size"]), int(row["offset"])))


def _sources(parts: list[Part], order: list[str], known: Manifest | None) -> tuple[SourceEntry, ...]:
    groups: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part[0].file):
        groups.setdefault(part[0].file.rpartition("-")[0], []).append(part)
    rank = {source: number for number, source in enumerate(order)}
    names = sorted(groups, key=lambda name: (rank.get(name, len(rank)), name))
    licences = {source.id: source.licence for source in known.sources} if known else {}
    kinds = {source.id: source.label_kinds for source in known.sources} if known else {}
    return tuple(source_entry(n, groups[n], licences.get(n, ""), kinds.get(n)) for n in names)


def _assembled(
    folder: Path, known: Manifest | None, sources: tuple[SourceEntry, ...], receipts: list[Receipt]
) -> Manifest:
    """What is not about shards: from build.json and the lists, else from the altered manifest."""
    base = known or Manifest(name=folder.name, sources=())
    identity = _json(folder / "build.json")
    build = {name: identity[name] for name in identity if name not in ("format", "name", "salt_fingerprint")}
    failures, excluded = _lines(folder / "failures.jsonl"), _lines(folder / "excluded.jsonl")
    held_out = base.held_out
    if excluded is not None and not build.get("keep_held_out"):
        hashed = [receipt for receipt in receipts if receipt.unit.startswith("held-out.")]
        held_out = HeldOut(
            rules=held_out.rules,
            excluded=dict(sorted(Counter(row["reason"] for row in excluded).items())),
            checked=sum(len(receipt.hashes) for receipt in hashed),
            not_checked=sorted(key for receipt in hashed for key, _ in receipt.failures),
        )
    return Manifest(
        name=identity.get("name", base.name),
        sources=sources,
        build=build or base.build,
        salt_fingerprint=identity.get("salt_fingerprint", base.salt_fingerprint),
        held_out=held_out,
        failures=base.failures if failures is None else len(failures),
        format=identity.get("format", base.format),
    )


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _known(raw: dict[str, Any], folder: Path) -> Manifest | None:
    try:
        return Manifest.parse(json.dumps(raw).encode(), folder / MANIFEST)
    except ShardError:
        return None


def _lines(path: Path) -> list[dict[str, Any]] | None:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
