"""Where encoder weights come from: artefact, run, checkpoint, timm, MONAI, a hub, the zoo; as plain tensors.

`read_source` gives the section that rebuilds the encoder, its tensors by artefact name, and its record.
Nothing is ever unpickled: files are safetensors, or torch's format read with `weights_only=True` (training
checkpoints, weights of the zoo and of MONAI).
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.errors import CheckpointError, ConfigError, nearest
from .artefact import RECORD, TIMM_CONFIG, TIMM_WEIGHTS, WEIGHTS, read_record, sha256
from .encoders import ENCODERS, build_encoder
from .encoders.timm_nets import RESERVED
from .monai_source import read_monai
from .state_file import read_state
from .zoo.record import names as zoo_names
from .zoo.record import split_name
from .zoo.source import read_zoo

log = logging.getLogger(__name__)

CHECKPOINTS = (".ckpt", ".pt", ".pth")
LIBRARIES = ("timm:", "monai:")
TIMM_FAMILIES = ("vit", "swin", "convnet")  # in the order in which they are tried


def locate(text: str, *, weights: bool = True) -> Path | None:
    """The file or folder behind a name, fetched from a hub if need be; None: a library's own name.

    A name of the registry comes before a file or folder of that name (`./NAME` is the folder).

    Args:
        weights: False: what describes the encoder is enough.
    """
    from .hub.resolve import located

    if text.startswith(LIBRARIES) or split_name(text) is not None:
        return None
    return located(text, weights=weights) or Path(text)


def read_source(text: str, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(encoder section, tensors by artefact name, encoder.json); no tensors without `weights`."""
    if text.startswith("timm:"):
        return from_timm(text.removeprefix("timm:"), weights)
    if text.startswith("monai:"):
        return *read_monai(text.removeprefix("monai:"), weights=weights), {}
    other = split_name(text)
    if other is not None:
        return read_zoo(*other, weights=weights)
    path = locate(text, weights=weights)
    assert path is not None
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
    if sha256(path) != record.get("sha256"):
        raise CheckpointError(
            f"{path}: its sha256 is not the one in {path.stem}.json: changed or damaged; fetch or export it "
            "again"
        )
    return read_state(path)


def _from_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The encoder inside a training checkpoint, which carries its `encoder` section."""
    from .fault_tolerance.checkpoint import fault

    reason = fault(path)
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}: damaged or truncated; try previous.ckpt")
    payload = read_state(path)
    ours = payload.get("medloom") if isinstance(payload, dict) else None
    section = ours.get("encoder") if isinstance(ours, dict) else None
    if not isinstance(ours, dict) or not isinstance(section, dict):
        raise CheckpointError(f"{path}: no `encoder` section: not a checkpoint of `medloom pretrain`")
    kind = ENCODERS.get(str(section.get("name")))
    inner = kind.inner if kind is not None else ""
    prefix = str(ours.get("released", "encoder."))  # the teacher's, after self-distillation
    which = "trained encoder (the student, where there is a teacher)" if prefix == "encoder." else "teacher"
    log.info("%s: the %s after step %s", path, which, ours.get("step", "unknown"))
    tensors = {
        key.removeprefix(prefix).removeprefix("_orig_mod.").removeprefix(inner): tensor
        for key, tensor in payload.get("state_dict", {}).items()
        if key.startswith(prefix)
    }
    return section, tensors, {}


def from_timm(name: str, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
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
    path = next((folder / n for n in (TIMM_WEIGHTS, WEIGHTS) if (folder / n).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: no {TIMM_WEIGHTS} beside {TIMM_CONFIG}: fetch the whole folder")
    tensors = read_state(path)
    heads = [classifier] if isinstance(classifier, str) else list(classifier or ())
    return {k: v for k, v in tensors.items() if not any(k.startswith(f"{head}.") for head in heads)}


def _near(path: Path) -> str:
    """Near names for a path that is not there: what lies beside it, or timm's models for a bare name."""
    import timm

    from .hub.resolve import near_release

    bare = str(path)
    if (hint := near_release(bare)) and not path.parent.name:
        return hint
    if timm.is_model(bare.split(".")[0]):
        return f"; did you mean timm:{bare}?"
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    beside = {entry.name for entry in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name, beside, n=3)
    others = [] if path.parent.name else difflib.get_close_matches(bare, zoo_names(), n=2)
    near += [f"zoo:{name}" for name in others]
    return f"; did you mean {' or '.join(near)}?" if near else f"; {path.parent} holds no such name"
