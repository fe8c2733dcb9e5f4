"""`medloom weights info`: what the record of an encoder says, without fetching its weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights info`."""
    parser.add_argument("name", help="a released name, hf-hub:ORG/NAME, a run folder or an artefact")


def run(arguments: argparse.Namespace) -> int:
    """Print the record."""
    if _of_zoo(arguments.name):
        return 0
    from ...pretrain.hub.registry import registry
    from ...pretrain.sources import read_source
    from ..console import say, size

    release = registry().get(arguments.name)
    if release is not None:
        say(f"{release.name}: {release.title}")
        for word, value in (
            ("files", release.where), ("licence of the weights", release.licence), ("made by", release.train)
        ):  # fmt: skip
            _line(word, value)
        if release.repo is None and release.folder is None:
            return 0
    section, _, record = read_source(arguments.name, weights=False)
    _line("network", _network(section, record))
    if not record:
        say("  no encoder.json: what it was trained on and what was held out is not known")
        return 0
    _line("weights", f"{size(record['bytes'])}, SHA-256 {record['sha256']}")
    _input(record.get("input") or {})
    _training(record.get("training") or {})
    _held_out(record.get("held_out") or {})
    return 0


def _of_zoo(name: str) -> bool:
    """Print what is known of an encoder of others; False: `name` is not one."""
    from ...pretrain.zoo.record import load_record, split_name
    from ...pretrain.zoo.table import facts
    from ..console import say

    other = split_name(name)
    if other is None:
        return False
    record = load_record(other[0])
    say(f"{record.name}: {record.title}")
    for word, text in facts(record):
        _line(word, text)
    return True


def _line(word: str, value: object) -> None:
    from ..console import say

    if value not in (None, ""):
        say(f"  {word}: {value}")


def _network(section: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """`vit3d, 21.3 M parameters, 3D, patch 4 × 16 × 16, 1 channel, 384 features`."""
    name = " ".join(str(section[key]) for key in ("name", "model") if section.get(key))
    if not record:
        return name
    channels = record["in_channels"]
    parts = [
        name, f"{record['parameters'] / 1e6:.2f} M parameters", f"{record['ndim']}D",
        f"patch {_by(record['patch_size'])}", f"{channels} channel{'s' * (channels != 1)}",
        f"{record['embed_dim']} features",
    ]  # fmt: skip
    return ", ".join(parts)


def _input(contract: Mapping[str, Any]) -> None:
    """Normalisation, crops, and a table of modalities."""
    from ...pretrain.contract import crops_of
    from ..console import print_table

    if not contract:
        return
    sizes = " and ".join(_by(crop) for crop in crops_of(contract))
    crops = f"crops of {sizes}, " if sizes else ""
    _line("input", f"{crops}intensities by rule {contract.get('rule', 'unknown')}")
    modalities: Mapping[str, Any] = contract.get("modalities") or {}
    print_table([
        {
            "modality": name,
            "images": facts.get("images"),
            "normalised by": ", ".join(facts.get("rules") or {}),
            "spacing in mm (median)": _by(facts["spacing_mm"]["p50"]) if "spacing_mm" in facts else "",
        }
        for name, facts in modalities.items()
    ])  # fmt: skip


def _training(training: Mapping[str, Any]) -> None:
    """Objective, length, sources with their licences, and what came before."""
    from ...data.catalog.licences import terms
    from ..console import print_table

    if not training:
        _line("training", "not on record")
        return
    parts = [(training.get("objective") or {}).get("name", "unknown objective")]
    if training.get("steps") is not None:
        each = f" of {training['batch_size']}" if training.get("batch_size") else ""
        parts.append(f"{training['steps']} steps{each}")
    if training.get("samples") is not None:
        parts.append(f"{training['samples']} samples in all")
    if training.get("complete") is False:
        parts.append("known only in part")
    _line("training", ", ".join(parts))
    _line("started from", training.get("init_from"))
    print_table([
        {
            "dataset": source["dataset"], "images": source.get("count"),
            "licence": source.get("licence") or "unknown",
            "restrictions": terms(source.get("licence") or "").words,
        }
        for source in training.get("sources") or []
    ])  # fmt: skip
    ancestor = training.get("ancestor")
    if ancestor:
        name = f"the encoder {ancestor['sha256'][:12]}" if ancestor.get("sha256") else "its own training"
        _line("before that", f"{name}, trained on")
        _training(ancestor.get("training") or {})


def _held_out(held_out: Mapping[str, Any]) -> None:
    rules = held_out.get("rules") or []
    said = "; ".join(_rule(rule) for rule in rules)
    _line("held out of training", said or "nothing")


def _rule(rule: Mapping[str, Any] | str) -> str:
    if isinstance(rule, str):
        return rule
    return ", ".join(f"{key} {value}" for key, value in rule.items() if value not in (None, "", [], {}))


def _by(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
