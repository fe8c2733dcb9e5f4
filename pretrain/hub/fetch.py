"""Fetching an encoder from the Hugging Face hub into its cache, checked before it is used.

huggingface_hub does the transfer: cache, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, going on after a cut inside a
file. Added here: a name of the registry never asks the network once it is cached; overload and faults of the
server are tried again; the SHA-256 of the weights is compared with what is pinned, with encoder.json and with
the name under which the hub stores them (huggingface_hub compares none of them), at the price of reading the
file, a second a gigabyte (whoever loads it reads and compares it once more). Damaged files leave the cache
and are fetched once more.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...data.errors import CheckpointError
from ..artefact import CARD, MODELING, RECORD, REFERENCE, TIMM_CONFIG, TIMM_WEIGHTS, WEIGHTS, sha256
from .errors import explained, passing, status_of, unreachable
from .names import HubName

log = logging.getLogger(__name__)

DESCRIPTION = (RECORD, TIMM_CONFIG, CARD)
ENCODER = (*DESCRIPTION, WEIGHTS, TIMM_WEIGHTS, REFERENCE, MODELING)
ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt, then twice as long each time, or as long as the hub asks for
LONGEST_WAIT = 60.0


def fetch(name: HubName, files: Sequence[str] = ENCODER) -> Path:
    """Folder in the cache that holds `files` of the repository, as far as it has them.

    Raises:
        CheckpointError: every fault of hub, network and disk, each with its mend; no encoder in the
            repository; weights that are not what is pinned.
    """
    folder = _fetched(name, files)
    _check_there(folder, name, files)
    damaged = _damaged(folder, name, files)
    if damaged is None:
        return folder
    log.warning("%s: %s is damaged in the cache; fetching it again", name.text, damaged.name)
    _forget(damaged)
    folder = _fetched(name, files)
    damaged = _damaged(folder, name, files)
    if damaged is not None:
        _forget(damaged)
        raise CheckpointError(
            f"{name.text}: {damaged.name} arrived twice with a wrong SHA-256: the hub or a proxy on the way "
            "damages it; try again later or through another network"
        )
    return folder


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def cached(name: HubName, files: Sequence[str] = ENCODER) -> Path | None:
    """Folder in the cache, without the network; None: not all of it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=list(files), local_files_only=True
        )
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None
    return Path(found) if _missing(Path(found), files) is None else None


def commit_of(folder: Path) -> str:
    """The commit that a folder of the cache holds."""
    return folder.name


def _fetched(name: HubName, files: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        here = cached(name, files)
        if here is not None and (name.pinned or constants.HF_HUB_OFFLINE):
            return here
        if here is not None:
            try:
                newest = HfApi().model_info(name.repo, revision=name.revision).sha
            except Exception as error:
                if not unreachable(error):
                    raise
                log.warning(
                    "%s: the hub cannot be reached; taking commit %s from the cache",
                    name.text, commit_of(here)[:12],
                )  # fmt: skip
                return here
            if newest == commit_of(here):
                return here
            log.info("%s: changed from commit %s to %s", name.text, commit_of(here)[:12], str(newest)[:12])
        return again(
            lambda: Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=list(files))),
            name,
        )
    except CheckpointError:
        raise
    except Exception as error:  # the hub's errors have no common base but Exception
        raise explained(error, name, endpoint()) from error


def again(download: Callable[[], Path], name: HubName) -> Path:
    """Call `download` until it does, while what fails may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return download()
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not passing(error):
                raise
            wait = _wait(error, WAIT * 2**attempt)
            log.warning("%s: %s; again in %.0f s", name.text, _short(error), wait)
            time.sleep(wait)
    raise AssertionError


def _wait(error: BaseException, usual: float) -> float:
    """Seconds to wait: what the hub asks for, if that is bearable."""
    from .errors import chain

    for cause in chain(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), LONGEST_WAIT)
    return usual


def _short(error: BaseException) -> str:
    status = status_of(error)
    return f"the hub answers {status}" if status is not None else "the download was cut"


def _missing(folder: Path, files: Sequence[str]) -> str | None:
    """What of an encoder is not in `folder`; None: all is there that was asked for."""
    wants_weights = WEIGHTS in files
    if (folder / RECORD).is_file():
        return WEIGHTS if wants_weights and not (folder / WEIGHTS).is_file() else None
    if (folder / TIMM_CONFIG).is_file():
        return TIMM_WEIGHTS if wants_weights and not (folder / TIMM_WEIGHTS).is_file() else None
    return f"neither {RECORD} nor timm's {TIMM_CONFIG}"


def _check_there(folder: Path, name: HubName, files: Sequence[str]) -> None:
    missing = _missing(folder, files)
    if missing is None:
        return
    fault = f"holds {missing}" if missing.startswith("neither") else f"holds no {missing}"
    raise CheckpointError(f"{name.text}: {endpoint()}/{name.repo} {fault}: not an encoder of medloom or timm")


def _damaged(folder: Path, name: HubName, files: Sequence[str]) -> Path | None:
    """One of these files, of weights, that is not what the hub or encoder.json says; None: all are.

    Raises:
        CheckpointError: the weights are whole, but not those that the registry pins.
    """
    for file in (WEIGHTS, TIMM_WEIGHTS):
        path = folder / file
        if file not in files or not path.is_file():
            continue
        found = sha256(path)
        stored = path.resolve().name  # large files lie under their SHA-256
        said = stored if len(stored) == 64 else _recorded(folder) if file == WEIGHTS else None
        if said is not None and found != said:
            return path
        if file == WEIGHTS and name.sha256 not in (None, found):
            raise CheckpointError(
                f"{name.text}: {WEIGHTS} of {name.repo} has SHA-256 {found[:12]}, the registry pins "
                f"{str(name.sha256)[:12]}: the repository was changed; update medloom, or take it as it is "
                f"with hf-hub:{name.repo}@{name.revision}"
            )
    return None


def _recorded(folder: Path) -> str | None:
    """The SHA-256 in encoder.json."""
    try:
        return str(json.loads((folder / RECORD).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # reading the record says what is wrong with it


def _forget(path: Path) -> None:
    """Remove a file from the cache, whatever name it has there."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
