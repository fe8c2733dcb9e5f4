"""From a name to a folder on this disk: a release of the registry, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from ...data.errors import CheckpointError, ConfigError, nearest
from ..artefact import WEIGHTS, sha256
from .fetch import DESCRIPTION, ENCODER, fetch
from .names import PREFIXES, HubName, hub_name, of_release
from .registry import Release, registry


def located(text: str, *, weights: bool) -> Path | None:
    """Folder of a registry's or a hub's encoder, fetched if need be; None: `text` is neither name.

    Args:
        weights: also the weights; else only what describes them.

    Raises:
        CheckpointError: see `fetch`; a release whose files are not published.
    """
    files = ENCODER if weights else DESCRIPTION
    if text.startswith(PREFIXES):
        return fetch(hub_name(text), files)
    release = registry().get(text)
    if release is None:
        return None
    return _own(release, weights) if release.repo is None else fetch(of_release(release), files)


def name_of(text: str) -> HubName | None:
    """Where `text` lies on a hub; None: it does not."""
    if text.startswith(PREFIXES):
        return hub_name(text)
    release = registry().get(text)
    return of_release(release) if release is not None and release.repo is not None else None


def near_release(text: str) -> str:
    """`; did you mean ...?` with the near names of the registry; empty where there is none."""
    try:
        hint = nearest(text, set(registry()))
    except ConfigError:
        return ""
    return hint if hint.startswith("; did you mean") else ""


def _own(release: Release, weights: bool) -> Path:
    """The folder of a release that lies on no hub."""
    if release.folder is None:
        raise CheckpointError(
            f"{release.name}: its weights are not published; make them with: {release.train}"
        )
    folder = Path(release.folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{release.name}: {folder} is not there: get the folder from where the registry came from"
            + (f", or make it with: {release.train}" if release.train else "")
        )
    if weights and (folder / WEIGHTS).is_file() and sha256(folder / WEIGHTS) != release.sha256:
        raise CheckpointError(
            f"{release.name}: {folder / WEIGHTS} has not the SHA-256 that the registry pins: fetch it again"
        )
    return folder
