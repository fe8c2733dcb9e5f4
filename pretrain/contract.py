"""The input contract that travels with an encoder: what it was fed, modality by modality.

encoder.json says for each modality by which rules its images were normalised (data/normalise.py), in how many
channels they were stored and at which spacings; whoever uses the encoder on something else is told. Found by
looking at the descriptions of up to 32 samples of each source's first shard, no pixels: a few milliseconds a
source on a local disk, one shard fetched at most from a remote one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..data.normalise import RULE, kind
from ..data.shards.manifest import SourceEntry
from ..data.shards.reader import Shards
from ..data.stream.config import StreamConfig

SAMPLES = 32  # of each source
FAR = 2.0  # a spacing that is this many times outside what was seen is worth a word


def input_contract(
    config: StreamConfig, sizes: Sequence[Sequence[int]], shards: Shards, sources: Sequence[SourceEntry]
) -> dict[str, Any]:
    """The `input` section of encoder.json.

    Args:
        sizes: the largest size that met the encoder, for each shape class of the run; what the loader gave
            (`config.crop`) is larger where the objective cuts views from it.

    Returns:
        rule, crop (and crops, where a run has several classes), channels, and modalities: name -> images seen
        in the collection, share of each normalisation, channels as stored, and for volumes the spacing in mm
        along (D, H, W) at the 5th, 50th and 95th percentile.
    """
    crops = [list(size) for size in sizes]
    return {
        "rule": RULE,
        "crop": crops[0],
        **({"crops": crops} if len(crops) > 1 else {}),
        "channels": config.in_channels,
        "modalities": _modalities(_looked_at(shards, sources), sources),
    }


def crops_of(contract: Mapping[str, Any]) -> list[list[int]]:
    """The sizes that an encoder was trained on, one for each shape class; empty: not on record."""
    return contract.get("crops") or ([contract["crop"]] if contract.get("crop") else [])


def strangers(
    contract: Mapping[str, Any], modalities: Iterable[str], spacing: Sequence[float] | None
) -> list[str]:
    """What of a task's images lies outside of an encoder's contract, in words; empty: nothing that is known.

    Args:
        contract: the `input` section of encoder.json; an encoder without one is not judged.
        spacing: mm along (D, H, W) that the encoder will see; None: pictures, or unknown.
    """
    known: Mapping[str, Any] = contract.get("modalities") or {}
    if not known:
        return []
    said = []
    for modality in sorted(set(modalities)):
        if modality not in known:
            said.append(f"{modality} was not among what it was trained on ({', '.join(sorted(known))})")
            continue
        seen = known[modality].get("spacing_mm")
        if seen is None or spacing is None or len(spacing) != len(seen["p50"]):
            continue
        low, high = np.array(seen["p5"]) / FAR, np.array(seen["p95"]) * FAR
        if (np.array(spacing) < low).any() or (np.array(spacing) > high).any():
            here = " x ".join(f"{value:.2g}" for value in spacing)
            there = " x ".join(f"{value:.2g}" for value in seen["p50"])
            said.append(f"{modality} at {here} mm, it was trained around {there} mm")
    return said


def _looked_at(shards: Shards, sources: Sequence[SourceEntry]) -> list[dict[str, Any]]:
    metas = []
    for source in sources:
        refs = list(islice(shards.refs(source.id), source.shards[0].count))
        step = max(1, len(refs) // SAMPLES)
        metas += [shards.meta(ref) for ref in refs[::step][:SAMPLES]]
    return metas


def _modalities(metas: Sequence[Mapping[str, Any]], sources: Sequence[SourceEntry]) -> dict[str, Any]:
    counted: Counter[str] = Counter()
    for source in sources:
        counted.update({str(name): int(count) for name, count in source.modalities.items()})
    rules: dict[str, Counter[str]] = defaultdict(Counter)
    channels: dict[str, set[int]] = defaultdict(set)
    spacings: dict[str, list[Sequence[float]]] = defaultdict(list)
    for meta in metas:
        name = str(meta["modality"])
        rules[name][kind(meta)] += 1
        channels[name].add(int(meta["shape"][0]))
        if int(meta["ndim"]) == 3 and meta.get("spacing"):
            spacings[name].append(meta["spacing"])
    found: dict[str, Any] = {}
    for name in sorted(counted):
        total = sum(rules[name].values())
        shares = {rule: round(n / total, 3) for rule, n in sorted(rules[name].items())}
        found[name] = {"images": counted[name], "rules": shares, "stored_channels": sorted(channels[name])}
        if spacings[name]:
            percentiles = np.percentile(np.array(spacings[name]), [5, 50, 95], axis=0)
            found[name]["spacing_mm"] = {
                key: [round(float(value), 4) for value in row]
                for key, row in zip(("p5", "p50", "p95"), percentiles, strict=True)
            }
    return found
