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
from ..weights import load_encoder, load_into, named_tensors, save_encoder, write_tensors
from .inflate import solid_section
from .nnunet import write_nnunet
from .onnx import write_encoder_onnx

# What the encoder itself says, and what belongs to one file.
_DESCRIPTION = (
    "format", "architecture", "ndim", "patch_size", "embed_dim", "in_channels", "parameters", "file", "bytes",
    "sha256",
)  # fmt: skip


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
    encoder, report = load_encoder(name, in_channels=in_channels)
    adapted = list(report.adapted)
    if patch_depth is not None:
        solid = build_encoder(solid_section(encoder, patch_depth))
        report = load_into(solid, name)
        encoder, adapted = solid, list(report.adapted)
    return Source(encoder, report, _provenance(name, encoder, report.record, adapted))


def _provenance(name: str, encoder: Encoder, record: Mapping[str, Any], adapted: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {key: value for key, value in record.items() if key not in _DESCRIPTION}
    if not record:
        checkpoint = _checkpoint(name)
        if checkpoint is not None:
            from .checkpoint_record import record_of

            said = record_of(checkpoint)
        else:
            said = {"source": name if name.startswith((*LIBRARIES, "hf")) else Path(name).name}
    if not adapted:
        return said
    contract: dict[str, Any] = dict(said.get("input") or {})
    if contract:
        contract["channels"] = encoder.in_channels
        if len(contract.get("crop") or ()) != encoder.ndim:  # nobody has trained it on crops of that kind
            contract = {key: value for key, value in contract.items() if key not in ("crop", "crops")}
        said["input"] = contract
    return {**said, "converted": {"sha256": record.get("sha256"), "adapted": adapted}}


def _checkpoint(name: str) -> Path | None:
    """The training checkpoint that `name` stands for; None: it is none."""
    path = locate(name)
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
