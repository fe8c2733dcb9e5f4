"""`push(run, ...)`: a finished run becomes a release, through a gate.

In this order, each a reason to stop: the licences of everything the weights have seen; a staging folder with
weights, record, reference features and what the run knows of its own cost; a clean process that loads these
files alone, computes the features and the run's probe scores again; the card, which states all of it; a look
for names of this machine in every text; one commit on the hub. Nothing is uploaded before all of it passed.

The weights are copied, not written again: their SHA-256 is that of the run.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from ...data.errors import CheckpointError, ConfigError
from ..artefact import CARD, MODELING, RECORD, REFERENCE, TIMM_CONFIG, WEIGHTS, read_record
from ..folder import ENVIRONMENT
from ..hub.registry import REPOSITORY
from ..monitor.beat import read_beat
from ..tracking import METRICS, read_rows
from .card import write_card
from .gate import private, refuse_licences, refuse_verdict, verified_elsewhere
from .licences import judged
from .verify import Verdict

log = logging.getLogger(__name__)

STAGED = "release"  # folder below the run
FILES = (WEIGHTS, RECORD, REFERENCE, TIMM_CONFIG, CARD, MODELING)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a release."""

    folder: Path  # the artefact
    repo: str | None
    commit: str | None  # None: nothing was uploaded
    verdict: Verdict
    record: dict[str, Any]  # encoder.json


def push(
    run: Path,
    repo: str | None,
    *,
    folder: Path | None = None,
    licence: str = "",
    override: str | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    private_repo: bool | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Release the encoder of a run.

    Args:
        run: folder of `medloom pretrain`, or an artefact.
        repo: ORG/NAME on the hub; None: on no hub.
        folder: where the artefact is put, new or with an older one in it; None: RUN/release.
        licence: under which the weights are published, e.g. Apache-2.0; the card says when there is none.
        override: why a licence of the data that stands against sharing does not; recorded.
        scores: rows of `finetune.released`, of held-out tasks.
        private_repo: of a repository that has to be created; None: as the hub does.
        dry_run: all but the upload; asks the hub nothing.

    Raises:
        ConfigError: no name for the repository, a licence that forbids it, a name of this machine.
        CheckpointError: no finished encoder, other features or scores than recorded, a fault of the hub.
    """
    run = Path(run)
    if repo is not None and not REPOSITORY.fullmatch(repo):
        raise ConfigError(f"--to {repo!r}: expected ORG/NAME, a repository of the hub")
    folder = run / STAGED if folder is None else folder
    _free(folder, run)
    record = finished(run)
    record["licences"] = judged(record, override)
    refuse_licences(record["licences"])
    record |= {
        "release": {"name": repo or folder.name, "licence": licence}, "scores": [dict(row) for row in scores],
        "compute": cost(run), "timm": (run / TIMM_CONFIG).is_file(),
    }  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-release-", dir=folder.parent) as held:
        staging = Path(held) / STAGED
        stage(run, staging, record)
        verdict = verified_elsewhere(staging, run)
        refuse_verdict(verdict, run)
        gate = [{"name": c.name, "result": c.result, "detail": c.detail} for c in verdict.checks]
        record |= {"gate": gate, "probes": verdict.probes}
        write_json(staging / RECORD, record)
        write_card(staging)
        private(staging, run)
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    commit = None if dry_run or repo is None else upload(folder, repo, private_repo)
    return Pushed(folder, repo, commit, verdict, record)


def _free(folder: Path, run: Path) -> None:
    """Refuse the source itself, and a folder that holds anything but an older artefact."""
    if folder.resolve() == run.resolve():
        raise ConfigError(f"{folder}: the release would replace what it is made from: name another folder")
    if folder.is_file():
        raise ConfigError(f"{folder}: a file is there: name a folder")
    others = sorted(path.name for path in folder.glob("*") if path.name not in FILES)
    if others:
        raise ConfigError(f"{folder}: holds {', '.join(others[:3])}: name a new folder")


def finished(run: Path) -> dict[str, Any]:
    """encoder.json of a run whose last step is done.

    Raises:
        CheckpointError: there is none.
    """
    if not (run / RECORD).is_file() or not (run / WEIGHTS).is_file():
        raise CheckpointError(
            f"{run}: holds no {WEIGHTS} with {RECORD}: name a finished run of `medloom pretrain` "
            "(resume=true finishes one), or an artefact"
        )
    return read_record(run / RECORD)


def stage(run: Path, folder: Path, record: Mapping[str, Any]) -> None:
    """Copy the artefact into a new folder, with this record; reference features are made where they lack.

    modeling.py is written anew: strangers run it, and one that lay in the run may be anything.
    """
    from ..encoders import build_encoder
    from .reference import belongs, write_reference
    from .standalone import write_modeling

    folder.mkdir(parents=True)
    for name in (WEIGHTS, TIMM_CONFIG):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    write_json(folder / RECORD, dict(record))
    architecture = record["architecture"]
    write_modeling(folder, build_encoder({"name": architecture["name"], **architecture["args"]}))
    if belongs(run / REFERENCE, record):
        shutil.copyfile(run / REFERENCE, folder / REFERENCE)
        return
    from ..weights import load_encoder

    log.info("%s: no reference features of these weights yet; computing them", run.name)
    write_reference(folder, load_encoder(folder, prove=False)[0], record.get("input") or {}, record["sha256"])


def cost(run: Path) -> dict[str, Any]:
    """What the run took: hours over all its stretches, ranks, devices, versions; {} where it does not say."""
    import json

    hours, last = 0.0, 0.0
    for row in read_rows(run / METRICS):
        now = float(row.get("time") or 0.0)
        hours, last = (hours + last, now) if now < last else (hours, now)
    try:
        said = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    beat = read_beat(run)
    total = (hours + last) / 3600
    return {
        "hours": round(total, 4) if total else None,
        "ranks": beat.ranks if beat else 1,
        "devices": said.get("devices"),
        "packages": said.get("packages"),
        "git": said.get("git"),
    }


def upload(folder: Path, repo: str, private_repo: bool | None) -> str:
    """Put the files of a release into one commit of a repository, made if need be; returns the commit.

    The login is HF_TOKEN or that of `hf auth login`; it is read by huggingface_hub and nowhere else.

    Raises:
        CheckpointError: every fault of hub and network.
    """
    from huggingface_hub import HfApi

    from .gate import refused_by_hub

    api = HfApi()
    try:
        api.create_repo(repo, private=private_repo, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Release {repo.rpartition('/')[2]}",
            allow_patterns=list(FILES),
        )  # fmt: skip
    except Exception as error:  # the hub's errors have no common base but Exception
        raise refused_by_hub(error, repo) from error
    return done.oid
