"""The encoder artefact: `encoder.safetensors` with `encoder.json` beside it, and every way to load an
encoder.

encoder.json holds the architecture (enough to rebuild the network), the input contract, what it was trained
on, what was held out, and the size and sha256 of the weights. Nothing is ever unpickled: a training
checkpoint is read with `weights_only=True`. Loading is strict: a tensor that finds no place, or a place
that gets no tensor, is an error unless asked otherwise, because a foundation model that silently starts
from noise looks just like a weak one. The price is one read of the file for its hash (about a second a
gigabyte).

2D encoders keep timm's names and get a timm config.json: without medloom,
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads them. 3D encoders get a `modeling.py`, which
stands for them without medloom (release/standalone).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.atomic import write_bytes, write_json
from ..data.config import to_dict
from ..data.errors import CheckpointError
from .artefact import FORMAT, RECORD, REFERENCE, TIMM_CONFIG, WEIGHTS, fingerprint
from .encoders import Encoder, build_encoder
from .release.reference import CHEAP, belongs, prove_encoder, write_reference
from .release.standalone import write_modeling
from .sources import locate, read_source
from .transfer import Report, adapt, fill


def save_encoder(folder: Path, encoder: Encoder, provenance: Mapping[str, Any]) -> Path:
    """Write the artefact into `folder`, atomically file by file, and return the path of the weights.

    Args:
        provenance: more keys of encoder.json, plain JSON values: `input` (rule, crop, channels), `training`
            (manifest hash, datasets, steps, seeds), `held_out`.

    Raises:
        ValueError: a provenance key that medloom itself writes.
        CheckpointError: the folder cannot be written.
    """
    description = {**describe(encoder), "file": WEIGHTS}
    clash = sorted({*description, "bytes", "sha256"} & set(provenance))
    if clash:
        raise ValueError(f"provenance must not hold {clash}: medloom writes these keys")
    tensors = named_tensors(encoder)
    weights = Path(folder) / WEIGHTS
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(weights, encoder.to_file(tensors))
        print_of = fingerprint(weights)
        write_json(weights.parent / RECORD, {**provenance, **description, **print_of})
        config = encoder.timm_config()
        if config is not None:
            # timm asks the hub for this name, and for .safetensors in place of .bin before it.
            config["pretrained_cfg"]["hf_hub_filename"] = f"{weights.stem}.bin"
            write_json(weights.parent / TIMM_CONFIG, config)
        write_modeling(weights.parent, encoder)
        fresh = _rebuilt({**to_dict(encoder.config), "name": encoder.config.name}, tensors)
        write_reference(weights.parent, fresh, provenance.get("input") or {}, print_of["sha256"])
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the encoder cannot be written ({error}): free space or choose out="
        ) from error
    return weights


def load_encoder(
    name: str | Path,
    *,
    in_channels: int | None = None,
    strict: bool = True,
    seed: int = 0,
    prove: bool | None = None,
) -> tuple[Encoder, Report]:
    """Rebuild an encoder with its weights.

    Args:
        name: the first that fits of a name of the registry (configs/weights.yaml: commit and SHA-256 pinned),
            `hf-hub:ORG/NAME[@REVISION]` (a repository of the Hugging Face hub, also `hf:`), a run folder or a
            folder with encoder.json or timm's config.json, a .safetensors file with its .json beside it, a
            training .ckpt, `timm:NAME` (timm's weights), `monai:NAME@FILE` (the encoder of MONAI's network),
            `zoo:NAME[@FILE]` (an encoder of others; also its bare name), or `random:NAME`, the architecture
            of any of these with fresh weights.
        in_channels: channels of the images it will get; the stem is adapted. None: as trained.
        strict: refuse missing and unused tensors.
        seed: of the fresh weights of `random:`.
        prove: compute the features of the reference image again, and refuse others than those in
            reference.npz beside the weights. None: where the file is there, nothing was adapted and
            the encoder has up to 100 million parameters; True: always, a missing file is an error.

    Raises:
        CheckpointError: no such source (near names given), damaged, not what its record says, tensors
            without a place, or other features than the released ones.
        ConfigError: an architecture that this version does not know.
    """
    text = str(name)
    if text.startswith("random:"):
        config, _, record = read_source(text.removeprefix("random:"), weights=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = _shell(config, in_channels)
        return encoder, Report(text, missing=list(encoder.state_dict()), record=record)
    place = locate(text)
    # By its whole path, so that a folder is not taken for the release of its name.
    found = text if place is None or not place.exists() else str(place.absolute())
    config, tensors, record = read_source(found, weights=True)
    encoder = _shell(config, in_channels)
    report = fill(encoder, tensors, text, strict, record)
    if prove is not False:
        report.proved = _proved(place, config, tensors, encoder, report, always=prove is True)
    return encoder, report


def load_into(encoder: Encoder, name: str | Path, *, strict: bool = True) -> Report:
    """Start an existing encoder from the weights of `name` (see `load_encoder`): what `init_from` does.

    What is adapted, and listed in the report: channels and patch of the stem, the grid of stored positions
    (left out where this encoder computes its own), kernels of a 2D network for a 3D one; class and register
    tokens that the source lacks keep their first values. Everything else must agree.
    """
    return start_from(encoder, *load_encoder(name, strict=strict), strict=strict)


def start_from(encoder: Encoder, source: Encoder, report: Report, *, strict: bool = True) -> Report:
    """Start an encoder from another that was loaded, see `load_into`.

    Args:
        report: of loading `source`.
    """
    tensors = {key.removeprefix(source.inner): tensor for key, tensor in source.state_dict().items()}
    known = set(report.missing)
    tensors = {key: tensor for key, tensor in tensors.items() if source.inner + key not in known}
    adapted = adapt(source, encoder, tensors)
    result = fill(encoder, tensors, report.source, strict, report.record, new_tokens=True)
    result.adapted += adapted
    result.unexpected += report.unexpected
    return result


def named_tensors(encoder: Encoder) -> dict[str, Tensor]:
    """All tensors under the names of the library whose network it is, copied to the CPU."""
    return {
        name.removeprefix(encoder.inner): tensor.detach().cpu().contiguous().clone()
        for name, tensor in encoder.state_dict().items()
    }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a .safetensors file, whole or not at all."""
    from safetensors.torch import save

    # As bytes, because save_file makes files that nobody else on a shared disk may read.
    write_bytes(path, save(tensors, metadata={"format": "pt"}))


def describe(encoder: Encoder) -> dict[str, Any]:
    """The part of encoder.json that follows from the encoder alone."""
    arguments = to_dict(encoder.config)
    name = arguments.pop("name")
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # the weights are in the file
    return {
        "format": FORMAT,
        "architecture": {"name": name, "args": arguments},
        "ndim": encoder.ndim,
        "patch_size": list(encoder.patch_size),
        "embed_dim": encoder.embed_dim,
        "in_channels": encoder.in_channels,
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }


def _rebuilt(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
    """The network that a loader builds around these tensors, on the CPU and with the channels of training."""
    with torch.random.fork_rng(devices=[]):
        encoder = _shell(config)
    fill(encoder, tensors, "the encoder as it was trained", False, {})
    return encoder


def _proved(
    place: Path | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    encoder: Encoder,
    report: Report,
    *,
    always: bool,
) -> float | None:
    """Difference from the reference features beside the weights; None: not computed."""
    path = None
    if place is not None and (place.name in (RECORD, WEIGHTS) or (place / RECORD).is_file()):
        path = (place if place.is_dir() else place.parent) / REFERENCE
    if path is None or not belongs(path, report.record):
        if always:
            raise CheckpointError(
                f"{report.source}: no {REFERENCE} of these weights, so nothing proves that they were loaded "
                "right: leave out prove=True"
            )
        return None
    whole = not (report.adapted or report.missing or report.unexpected)
    if not always and not (whole and sum(p.numel() for p in encoder.parameters()) <= CHEAP):
        return None
    return prove_encoder(path, encoder if whole else _rebuilt(config, tensors))


def _shell(config: Mapping[str, Any], in_channels: int | None = None) -> Encoder:
    """The network that tensors go into: with other channels if need be, and without a download."""
    return build_encoder(
        config if in_channels is None else {**config, "in_channels": in_channels}, download=False
    )
