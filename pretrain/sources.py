"""Where encoder weights come from: an artefact, run, checkpoint, timm, MONAI, a hub; each as plain tensors.

`read_source` gives the section that rebuilds the encoder, its tensors by artefact name, and its record.
Nothing is ever unpickled: a training checkpoint is read with `weights_only=True`, other files are
safetensors.
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

from ..data.errors import CheckpointError, ConfigError, nearest
from .encoders import ENCODERS, build_encoder
from .encoders.timm_nets import RESERVED
from .monai_source import read_monai

FORMAT = 1
WEIGHTS, RECORD, TIMM_CONFIG = "encoder.safetensors", "encoder.json", "config.json"
TIMM_WEIGHTS = "model.safetensors"
CHECKPOINTS = (".ckpt", ".pt", ".pth")
TIMM_FAMILIES = ("vit", "swin", "convnet")  # in the order in which they are tried


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


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def read_source(text: str, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(encoder section, tensors by artefact name, encoder.json); no tensors without `weights`."""
    if text.startswith("timm:"):
        return _from_timm(text.removeprefix("timm:"), weights)
    if text.startswith("monai:"):
        return *read_monai(text.removeprefix("monai:"), weights=weights), {}
    path = _from_hub(text.removeprefix("hf:")) if text.startswith("hf:") else Path(text)
    if path.is_dir():
        found = [path / name for name in (RECORD, "last.ckpt", "previous.ckpt") if (path / name).is_file()]
        if not found and (path / TIMM_CONFIG).is_file():
            return _from_timm_folder(path, weights)
        if not found:
            raise CheckpointError(
                f"{path}: holds neither {RECORD} nor last.ckpt nor timm's {TIMM_CONFIG}: name a run "
                "folder or an encoder"
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
    if fingerprint(path)["sha256"] != record.get("sha256"):
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
    if not isinstance(ours, dict) or not isinstance(section, dict):
        raise CheckpointError(f"{path}: no `encoder` section: not a checkpoint of `medloom pretrain`")
    kind = ENCODERS.get(str(section.get("name")))
    inner = kind.inner if kind is not None else ""
    prefix = str(ours.get("released", "encoder."))  # the teacher's, after self-distillation
    tensors = {
        key.removeprefix(prefix).removeprefix("_orig_mod.").removeprefix(inner): tensor
        for key, tensor in payload.get("state_dict", {}).items()
        if key.startswith(prefix)
    }
    return section, tensors, {}


def _from_timm(name: str, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """timm's network of that name, with the weights that its tag stands for."""
    config = _section_of_timm(name, f"timm:{name}")
    if not weights:
        return config, {}, {}
    encoder = build_encoder({**config, "pretrained": True})
    return config, {k.removeprefix(encoder.inner): v for k, v in encoder.state_dict().items()}, {}


def _from_timm_folder(
    folder: Path, weights: bool
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """A folder in timm's format: config.json with the architecture and its arguments, model.safetensors."""
    try:
        said = json.loads((folder / TIMM_CONFIG).read_text())
        model = str(said["architecture"])
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder / TIMM_CONFIG}: no description of a timm model ({error})") from error
    pretrained = said.get("pretrained_cfg") or said
    arguments = dict(said.get("model_args") or {})
    channels = arguments.get("in_chans") or (pretrained.get("input_size") or [3])[0]
    kwargs = {key: value for key, value in arguments.items() if key not in RESERVED}
    config = _section_of_timm(model, str(folder), in_channels=int(channels), kwargs=kwargs)
    return config, _timm_tensors(folder, pretrained.get("classifier")) if weights else {}, {}


def _section_of_timm(model: str, source: str, **options: Any) -> dict[str, Any]:
    """The section of the first family that takes timm's model: plain transformer, Swin, convolutional."""
    import timm

    plain = model.split(".")[0]
    if not timm.is_model(plain):
        raise CheckpointError(f"{source}: timm has no such model{nearest(plain, set(timm.list_models()))}")
    config: dict[str, Any] = {}
    for family in TIMM_FAMILIES:
        config = {"name": family, "model": model, **options}
        try:
            build_encoder(config)
            break
        except ConfigError:
            continue
    return config


def _timm_tensors(folder: Path, classifier: str | list[str] | None) -> dict[str, Tensor]:
    """Tensors beside timm's config.json, without those of the classifier."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = next((folder / n for n in (TIMM_WEIGHTS, WEIGHTS) if (folder / n).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: no {TIMM_WEIGHTS} beside {TIMM_CONFIG}: fetch the whole folder")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error}): fetch or export it again") from error
    heads = [classifier] if isinstance(classifier, str) else list(classifier or ())
    return {k: v for k, v in tensors.items() if not any(k.startswith(f"{head}.") for head in heads)}


def _from_hub(name: str) -> Path:
    """Folder of `ORG/NAME[@REVISION]` in the cache of the Hugging Face hub; downloaded if need be."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    wanted = [RECORD, WEIGHTS, TIMM_CONFIG, TIMM_WEIGHTS]
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
    except Exception as error:  # the hub's errors have no common base but Exception
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"hf:{name}: not fetched ({line}): check the name and the login, or fetch it once while online"
        ) from error
    return Path(folder)


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
