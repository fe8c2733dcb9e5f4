"""The encoder artefact: `encoder.safetensors` with `encoder.json` beside it, and every way to load an
encoder.

encoder.json holds the architecture (enough to rebuild the network), the input contract, what it was trained
on, what was held out, and the size and sha256 of the weights. Nothing is ever unpickled: a training
checkpoint is read with `weights_only=True`. Loading is strict: a tensor that finds no place, or a place
that gets no tensor, is an error unless asked otherwise, because a foundation model that silently starts
from noise looks just like a weak one. The price is one read of the file for its hash (about a second a
gigabyte).

2D encoders keep timm's names and get a timm config.json: without medloom,
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.atomic import write_bytes, write_json
from ..data.config import to_dict
from ..data.errors import CheckpointError, ConfigError, nearest
from .encoders import ENCODERS, Encoder, build_encoder
from .transfer import Report, fill, resample_positions

FORMAT = 1
WEIGHTS, RECORD, TIMM_CONFIG = "encoder.safetensors", "encoder.json", "config.json"
CHECKPOINTS = (".ckpt", ".pt", ".pth")


def save_encoder(folder: Path, encoder: Encoder, provenance: Mapping[str, Any]) -> Path:
    """Write the artefact into `folder`, atomically file by file, and return the path of the weights.

    Args:
        provenance: more keys of encoder.json, plain JSON values: `input` (rule, crop, channels), `training`
            (manifest hash, datasets, steps, seeds), `held_out`.

    Raises:
        ValueError: a provenance key that medloom itself writes.
        CheckpointError: the folder cannot be written.
    """
    from safetensors.torch import save

    description = {**_describe(encoder), "file": WEIGHTS}
    clash = sorted({*description, "bytes", "sha256"} & set(provenance))
    if clash:
        raise ValueError(f"provenance must not hold {clash}: medloom writes these keys")
    tensors = {
        name.removeprefix(encoder.inner): tensor.detach().cpu().contiguous().clone()
        for name, tensor in encoder.state_dict().items()
    }
    weights = Path(folder) / WEIGHTS
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        # As bytes, because save_file makes files that nobody else on a shared disk may read.
        write_bytes(weights, save(tensors, metadata={"format": "pt"}))
        write_json(weights.parent / RECORD, {**provenance, **description, **_fingerprint(weights)})
        config = encoder.timm_config()
        if config is not None:
            write_json(weights.parent / TIMM_CONFIG, config)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the encoder cannot be written ({error}): free space or choose out="
        ) from error
    return weights


def load_encoder(
    name: str | Path, *, in_channels: int | None = None, strict: bool = True, seed: int = 0
) -> tuple[Encoder, Report]:
    """Rebuild an encoder with its weights.

    Args:
        name: a run folder or a folder with encoder.json, a .safetensors file with its .json beside it, a
            training .ckpt, `timm:NAME` (timm's weights), or `random:NAME`, the architecture of any of these
            with fresh weights.
        in_channels: channels of the images it will get; the stem is adapted. None: as trained.
        strict: refuse missing and unused tensors.
        seed: of the fresh weights of `random:`.

    Raises:
        CheckpointError: no such source (near names given), damaged, not what its record says, or tensors
            without a place.
        ConfigError: an architecture that this version does not know.
    """
    text = str(name)
    if text.startswith("random:"):
        config, _, record = _source(text.removeprefix("random:"), weights=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = build_encoder(_with_channels(config, in_channels))
        return encoder, Report(text, missing=list(encoder.state_dict()), record=record)
    config, tensors, record = _source(text, weights=True)
    encoder = build_encoder(_with_channels(config, in_channels))
    return encoder, fill(encoder, tensors, text, strict, record)


def load_into(encoder: Encoder, name: str | Path, *, strict: bool = True) -> Report:
    """Start an existing encoder from the weights of `name` (see `load_encoder`): what `init_from` does.

    Channels of the stem and the grid of stored positions are adapted; everything else must agree.
    """
    source, report = load_encoder(name, strict=strict)
    tensors = {key.removeprefix(source.inner): tensor for key, tensor in source.state_dict().items()}
    known = set(report.missing)
    tensors = {key: tensor for key, tensor in tensors.items() if source.inner + key not in known}
    adapted = resample_positions(source, encoder, tensors)
    result = fill(encoder, tensors, str(name), strict, report.record)
    result.adapted += adapted
    result.unexpected += report.unexpected
    return result


def read_record(path: Path) -> dict[str, Any]:
    """encoder.json as a dict.

    Raises:
        CheckpointError: missing, not JSON, or of a format that this version does not know.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; weights can only be loaded with the record that describes them"
        )
    try:
        record = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}): fetch or export the encoder again"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "architecture" not in record:
        found = record.get("format") if isinstance(record, dict) else None
        raise CheckpointError(f"{path}: format {found!r}, this version reads {FORMAT}: update medloom")
    return record


def _describe(encoder: Encoder) -> dict[str, Any]:
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


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _source(text: str, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(encoder section, tensors by artefact name, encoder.json); no tensors without `weights`."""
    if text.startswith("timm:"):
        return _from_timm(text.removeprefix("timm:"), weights)
    path = Path(text)
    if path.is_dir():
        found = [path / name for name in (RECORD, "last.ckpt", "previous.ckpt") if (path / name).is_file()]
        if not found:
            raise CheckpointError(
                f"{path}: holds neither {RECORD} nor last.ckpt: name a run folder or an encoder"
            )
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"{text}: no such encoder{_near(path)}")
    if path.suffix in CHECKPOINTS:
        return _from_checkpoint(path)
    if path.suffix not in (".safetensors", ".json"):
        raise CheckpointError(f"{path}: not an encoder: expected a folder, .safetensors or .ckpt")
    record = read_record(path.with_suffix(".json"))
    architecture = record["architecture"]
    config = {"name": architecture["name"], **architecture["args"]}
    return config, _from_safetensors(path.with_suffix(".safetensors"), record) if weights else {}, record


def _from_safetensors(path: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a file that is exactly what its record says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; {path.with_suffix('.json').name} is there without its weights"
        )
    size = path.stat().st_size
    if size != record.get("bytes"):
        raise CheckpointError(
            f"{path}: {size} bytes, {path.stem}.json says {record.get('bytes')}: truncated or another file; "
            "fetch or export it again"
        )
    if _fingerprint(path)["sha256"] != record.get("sha256"):
        raise CheckpointError(
            f"{path}: its sha256 is not the one in {path.stem}.json: changed or damaged; fetch or export it "
            "again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error}): fetch or export it again") from error


def _from_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The encoder inside a training checkpoint, which carries its `encoder` section."""
    from .checkpoint import fault

    reason = fault(path)
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}: damaged or truncated; try previous.ckpt")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not readable as a training checkpoint ({line})") from error
    ours = payload.get("medloom") if isinstance(payload, dict) else None
    section = ours.get("encoder") if isinstance(ours, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: no `encoder` section: not a checkpoint of `medloom pretrain`")
    kind = ENCODERS.get(str(section.get("name")))
    inner = kind.inner if kind is not None else ""
    tensors = {
        key.removeprefix("encoder.").removeprefix("_orig_mod.").removeprefix(inner): tensor
        for key, tensor in payload.get("state_dict", {}).items()
        if key.startswith("encoder.")
    }
    return section, tensors, {}


def _from_timm(name: str, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """timm's network, as `vit` where it is a plain transformer, else as `convnet`."""
    import timm

    plain = name.split(".")[0]
    if not timm.is_model(plain):
        raise CheckpointError(f"timm:{name}: timm has no such model{nearest(plain, set(timm.list_models()))}")
    try:
        build_encoder({"name": "vit", "model": name})
        config: dict[str, Any] = {"name": "vit", "model": name}
    except ConfigError:
        config = {"name": "convnet", "model": name}
    if not weights:
        return config, {}, {}
    encoder = build_encoder({**config, "pretrained": True})
    return config, {k.removeprefix(encoder.inner): v for k, v in encoder.state_dict().items()}, {}


def _with_channels(config: Mapping[str, Any], in_channels: int | None) -> dict[str, Any]:
    """The section with other channels, and without a download: the weights come from the source."""
    changed: dict[str, Any] = {} if in_channels is None else {"in_channels": in_channels}
    if "pretrained" in config:
        changed["pretrained"] = False
    return {**config, **changed}


def _near(path: Path) -> str:
    """Near names for a path that is not there: what lies beside it, or timm's models for a bare name."""
    import timm

    bare = str(path)
    if timm.is_model(bare.split(".")[0]):
        return f"; did you mean timm:{bare}?"
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    beside = {entry.name for entry in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name, beside, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; {path.parent} holds no such name"
