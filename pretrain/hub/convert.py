"""An encoder in another form: an artefact, a folder of timm, a file of tensors, for nnU-Net, or ONNX.

Whatever `load_encoder` takes can be converted, on the way to another number of input channels or, for a 2D
network, to the 3D network that it starts. What was trained stays on record: the artefact keeps the training
section of its source, so that leakage is judged as before, and says under `converted` what was done to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from ...data.errors import CheckpointError, ConfigError, nearest
from ..artefact import TIMM_CONFIG, TIMM_WEIGHTS
from ..encoders import Encoder, build_encoder
from ..sources import CHECKPOINTS, LIBRARIES, locate
from ..transfer import Report
from ..weights import describe, load_encoder, named_tensors, save_encoder, start_from, write_tensors
from .inflate import solid_section
from .names import PREFIXES
from .nnunet import write_nnunet
from .onnx import write_encoder_onnx

_FILE = ("file", "bytes", "sha256")  # keys of encoder.json that belong to one file, not to the training
# What was found on these very weights: changed ones were neither scored nor released.
_OF_WEIGHTS = ("scores", "gate", "probes", "release", "compute", "timm")


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded encoder on its way into another form."""

    encoder: Encoder
    report: Report  # of the last step that changed it
    provenance: dict[str, Any]  # for `save_encoder`
    size: tuple[int, ...] | None = None  # pixels of the input of a graph; None: as trained


def convert(
    name: str, form: str, out: Path, *, in_channels: int | None = None, patch_depth: int | None = None,
    size: Sequence[int] | None = None,
) -> Report:  # fmt: skip
    """Write the encoder `name` into `out` as `form`; returns what was loaded and adapted.

    Args:
        form: a key of `FORMS`.
        out: a new folder, or for a single file its name.
        in_channels: of the images it will get; None: as trained.
        patch_depth: makes a 2D network 3D, see `solid_section`.
        size: pixels of the input of the form onnx; None: as trained, see `reference_sizes`.

    Raises:
        ConfigError: an unknown form, or one that this network does not have; no 3D counterpart.
        CheckpointError: see `load_encoder`; `out` exists, or cannot be written.
    """
    if form not in FORMS:
        raise ConfigError(f"--to: unknown form {form!r}{nearest(form, set(FORMS))}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} exists: choose another --out")
    if size is not None and form != "onnx":
        raise ConfigError(f"--size: sets the input of --to onnx; {form} takes all sizes, so leave it out")
    source = load_source(name, in_channels=in_channels, patch_depth=patch_depth)
    source = replace(source, size=None if size is None else tuple(size))
    try:
        FORMS[form](source, out)
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error.strerror or error}): free space or choose another --out"
        ) from error
    return source.report


def load_source(name: str, *, in_channels: int | None = None, patch_depth: int | None = None) -> Source:
    """Load, adapt, and say what is known of it."""
    if patch_depth is None:
        encoder, report = load_encoder(name, in_channels=in_channels)
    else:
        flat, report = load_encoder(name)
        channels = {} if in_channels is None else {"in_channels": in_channels}
        encoder = build_encoder({**solid_section(flat, patch_depth), **channels})
        report = start_from(encoder, flat, report)
    return Source(encoder, report, _provenance(name, encoder, report.record, list(report.adapted)))


def _provenance(name: str, encoder: Encoder, record: Mapping[str, Any], adapted: list[str]) -> dict[str, Any]:
    known = {*describe(encoder), *_FILE}
    said: dict[str, Any] = {key: value for key, value in record.items() if key not in known}
    if name.startswith("random:"):  # the network of NAME and what it takes, and nothing that NAME has learnt
        said = {"source": _without_folders(name)} | ({"input": record["input"]} if "input" in record else {})
    elif not record:
        checkpoint = _checkpoint(name)
        if checkpoint is not None:
            from .checkpoint_record import record_of

            said = record_of(checkpoint)
        else:
            said = {"source": _without_folders(name)}
    if not adapted:
        return said
    said = {key: value for key, value in said.items() if key not in _OF_WEIGHTS}
    contract: dict[str, Any] = dict(said.get("input") or {})
    if contract:
        contract["channels"] = encoder.in_channels
        if len(contract.get("crop") or ()) != encoder.ndim:  # nobody has trained it on crops of that kind
            contract = {key: value for key, value in contract.items() if key not in ("crop", "crops")}
        said["input"] = contract
    return {**said, "converted": {"sha256": record.get("sha256"), "adapted": adapted}}


def _without_folders(name: str) -> str:
    """A name as the record keeps it: no folder of this machine."""
    if name.startswith("random:"):
        return "random:" + _without_folders(name.removeprefix("random:"))
    if name.startswith(PREFIXES):
        return name
    if name.startswith(LIBRARIES):
        model, sign, file = name.partition("@")
        return f"{model}{sign}{Path(file).name}"
    return Path(name).name


def _checkpoint(name: str) -> Path | None:
    """The training checkpoint that `name` stands for; None: it is none."""
    path = locate(name, weights=False)
    if path is not None and path.is_dir():
        path = next((p for p in (path / "last.ckpt", path / "previous.ckpt") if p.is_file()), None)
    return path if path is not None and path.suffix in CHECKPOINTS else None


def _as_artefact(source: Source, out: Path) -> None:
    save_encoder(out, source.encoder, source.provenance)


def _as_timm(source: Source, out: Path) -> None:
    config = source.encoder.timm_config()
    if config is None:
        name = source.encoder.config.name
        raise ConfigError(f"--to timm: timm has no network like {name}: use --to artefact or state-dict")
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / TIMM_WEIGHTS, source.encoder.to_file(named_tensors(source.encoder)))
    write_json(out / TIMM_CONFIG, config)


def _as_state_dict(source: Source, out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out.name}: a state dict is one file: call it {out.name}.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, named_tensors(source.encoder))


def _as_nnunet(source: Source, out: Path) -> None:
    write_nnunet(out, source.encoder, named_tensors(source.encoder), source.provenance.get("input") or {})


def _as_onnx(source: Source, out: Path) -> None:
    write_encoder_onnx(out, source.encoder, source.provenance.get("input") or {}, source.size)


# name -> what writes it; ConfigError where the network has no such form
FORMS: dict[str, Callable[[Source, Path], None]] = {
    "artefact": _as_artefact,
    "timm": _as_timm,
    "state-dict": _as_state_dict,
    "nnunet": _as_nnunet,
    "onnx": _as_onnx,
}
