"""Names of encoders on the hub: `hf-hub:ORG/NAME[@REVISION]`, or a name of the registry."""

from __future__ import annotations

from dataclasses import dataclass

from ...data.errors import CheckpointError
from .registry import COMMIT, REPOSITORY, Release

PREFIXES = ("hf-hub:", "hf:")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository at a revision, and what is pinned of it."""

    text: str  # as the user wrote it
    repo: str
    revision: str | None = None  # None: its newest commit
    sha256: str | None = None  # of encoder.safetensors
    release: str | None = None  # name in the registry

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return COMMIT.fullmatch(self.revision or "") is not None


def hub_name(text: str) -> HubName:
    """`hf-hub:ORG/NAME[@REVISION]` in its parts.

    Raises:
        CheckpointError: not of this form.
    """
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    repo, _, revision = text.removeprefix(prefix).partition("@")
    if not prefix or not REPOSITORY.fullmatch(repo):
        raise CheckpointError(f"{text}: expected hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION")
    return HubName(text, repo, revision or None)


def of_release(release: Release) -> HubName:
    """The pinned name of a release that lies on the hub."""
    if release.repo is None:
        raise ValueError(f"{release.name} lies on no hub")
    return HubName(release.name, release.repo, release.revision, release.sha256, release.name)
