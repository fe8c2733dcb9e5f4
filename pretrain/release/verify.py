"""`verify(folder)`: is this artefact whole, is it what its record says, and does it still give its features?

Each check stands for one way in which a release goes wrong: a damaged file, a record of another network,
other features, a card of other weights, a licence that nobody looked at, scores that the file does not have.
Run as a module it writes the checks as JSON: that is how the gate asks a process that has not seen the run.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from ...data.errors import MedloomError
from ..artefact import CARD, MODELING, RECORD, REFERENCE, TIMM_CONFIG, WEIGHTS, fingerprint, read_record
from ..encoders import Encoder

PASSED, FAILED, SKIPPED = "ok", "FAILED", "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    result: str  # ok, FAILED, not checked
    detail: str


@dataclass(slots=True)
class Verdict:
    """All checks of an artefact."""

    checks: list[Check]
    probes: dict[str, Any]  # of `probe.recompute`; empty where they were not asked for

    @property
    def failed(self) -> list[Check]:
        """What did not pass."""
        return [check for check in self.checks if check.result == FAILED]


def verify(folder: Path, run: Path | None = None, *, card: bool = True) -> Verdict:
    """Check an artefact; raises nothing for what is wrong with it.

    Args:
        run: the pretraining run that it came from: its last probe scores are computed again.
        card: look at the model card and the licences, too; the gate does so after it has written them.
    """
    folder = Path(folder).resolve()  # not a release of that name
    verdict = Verdict([], {})
    try:
        record = read_record(folder / RECORD)
    except MedloomError as error:
        verdict.checks.append(Check("record", FAILED, str(error)))
        return verdict
    verdict.checks.append(_hash(folder, record))
    encoder = _network(folder, record, verdict) if verdict.checks[-1].result == PASSED else None
    if encoder is not None:
        verdict.checks.append(_reference(folder, record, encoder))
        if encoder.timm_config() is not None:
            verdict.checks.append(_timm(folder, record, encoder))
        verdict.checks += _modeling(folder, encoder)
        if run is not None:
            verdict.checks.append(_probes(run, encoder, record, verdict))
    if card:
        verdict.checks += [_card(folder, record), _licences(record)]
    return verdict


def _hash(folder: Path, record: dict[str, Any]) -> Check:
    path = folder / WEIGHTS
    if not path.is_file():
        return Check("weights", FAILED, f"{WEIGHTS} is missing")
    found = fingerprint(path)
    if found != {key: record.get(key) for key in found}:
        return Check("weights", FAILED, f"{found['bytes']} bytes of SHA-256 {found['sha256'][:12]}, "
                     f"{RECORD} says {record.get('bytes')} of {str(record.get('sha256'))[:12]}")  # fmt: skip
    return Check("weights", PASSED, f"{found['bytes']:,} bytes, SHA-256 {found['sha256']}")


def _network(folder: Path, record: dict[str, Any], verdict: Verdict) -> Encoder | None:
    """The encoder, rebuilt; the record must say of it what it is."""
    from ..weights import describe, load_encoder

    try:
        encoder, report = load_encoder(folder, prove=False)
    except MedloomError as error:
        verdict.checks.append(Check("network", FAILED, str(error)))
        return None
    wrong = [f"{k} is {v}, the record says {record.get(k)}" for k, v in describe(encoder).items()
             if k not in ("format", "architecture") and record.get(k) != v]  # fmt: skip
    said = f"{len(report.loaded)} tensors, each has its place; {encoder.config.name}, {encoder.ndim}D"
    verdict.checks.append(Check("network", FAILED if wrong else PASSED, "; ".join(wrong) or said))
    return encoder


def _reference(folder: Path, record: dict[str, Any], encoder: Encoder) -> Check:
    from .reference import belongs, difference

    name = "reference features"
    try:
        if not belongs(folder / REFERENCE, record):
            return Check(name, FAILED, f"there is no {REFERENCE} of these weights")
        found, tolerance = difference(folder / REFERENCE, encoder)
    except MedloomError as error:
        return Check(name, FAILED, str(error))
    return Check(name, PASSED if found <= tolerance else FAILED,
                 f"differ by {found:.1e} of their size (at most {tolerance:.0e})")  # fmt: skip


def _timm(folder: Path, record: dict[str, Any], encoder: Encoder) -> Check:
    """Plain timm, which knows nothing of medloom, must give the same features."""
    import timm
    import torch

    from .reference import TOLERANCE, apart, reference_image, reference_sizes

    if not (folder / TIMM_CONFIG).is_file():
        return Check("timm", FAILED, f"{TIMM_CONFIG} is missing")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        (size,) = reference_sizes(encoder, record.get("input") or {})
        image = reference_image(encoder.in_channels, size)
        with torch.no_grad():
            found = apart(model(image), encoder.eval()(image).pooled)
    except Exception as error:  # timm raises what it meets
        return Check("timm", FAILED, f"cannot load it ({type(error).__name__}: {error})".splitlines()[0])
    return Check("timm", PASSED if found <= TOLERANCE else FAILED, f"local-dir: differs by {found:.1e}")


def _modeling(folder: Path, encoder: Encoder) -> list[Check]:
    """The code that strangers run must be medloom's own; nothing where none is due and none is there."""
    from .standalone import modeling

    path, due = folder / MODELING, modeling(encoder)
    if not path.is_file():
        return [] if due is None else [Check(MODELING, FAILED, "is missing")]
    if path.read_text(encoding="utf-8", errors="replace") == due:
        return [Check(MODELING, PASSED, "is that of this version of medloom")]
    return [Check(MODELING, SKIPPED, "is not that of this version of medloom: read it before you run it")]


def _probes(run: Path, encoder: Encoder, record: dict[str, Any], verdict: Verdict) -> Check:
    from .probe import recompute, wrong

    verdict.probes = recompute(run, encoder, record)
    if verdict.probes["not_checked"]:
        return Check("probe scores", SKIPPED, verdict.probes["not_checked"])
    faults = wrong(verdict.probes)
    same = [
        f"{name.removeprefix('probe/')} {score['recorded']:.3f} -> {score['recomputed']:.3f}"
        for name, score in verdict.probes["scores"].items()
        if score["recomputed"] is not None
    ]
    return Check("probe scores", FAILED if faults else PASSED, "; ".join(faults or same))


def _card(folder: Path, record: dict[str, Any]) -> Check:
    path = folder / CARD
    if not path.is_file():
        return Check("model card", FAILED, f"{CARD} is missing; `medloom weights push` writes it")
    if str(record.get("sha256")) not in path.read_text(encoding="utf-8", errors="replace"):
        return Check("model card", FAILED, f"{CARD} is of other weights: it does not name their SHA-256")
    return Check("model card", PASSED, f"{CARD} names these weights")


def _licences(record: dict[str, Any]) -> Check:
    said = record.get("licences")
    if not said:
        return Check("licences", FAILED, f"{RECORD} does not say what the licences of the data allow")
    if said["forbids"] and not said["override"]:
        return Check("licences", FAILED, "; ".join(said["forbids"]))
    if said["forbids"]:
        despite = "; ".join(said["forbids"])
        return Check("licences", PASSED, f"released although {despite}: {said['override']}")
    return Check("licences", PASSED, f"no source forbids it; restrictions: {said['together']}")


def main(arguments: list[str] | None = None) -> None:
    """Verify a folder and write {"checks", "probes"} to a file."""
    parser = argparse.ArgumentParser(prog="python -m medloom.pretrain.release.verify")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    verdict = verify(given.folder, given.run, card=False)
    write_json(given.json, {"checks": [asdict(c) for c in verdict.checks], "probes": verdict.probes})


if __name__ == "__main__":
    main()
