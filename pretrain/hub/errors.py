"""What went wrong at a hub, in one line that says what to do.

huggingface_hub wraps what happened in errors of its own, several deep; the first cause that is understood
decides. Its classes are told by name where older versions lack them or keep them elsewhere.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ...data.errors import CheckpointError, first_line
from .names import HubName

# of httpx, requests and huggingface_hub, by name: which of them is used depends on the version
_NO_ANSWER = {"TransportError", "RequestException", "ConnectionError", "OfflineModeIsEnabled"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRANSIENT = (408, 429, 500, 502, 503, 504)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """Status of the hub's answer that an error stands for; None: there was none."""
    for cause in chain(error):
        found = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(found, int):
            return found
    return None


def kinds(error: BaseException) -> set[str]:
    """Names of the classes of an error and of its causes, bases included."""
    return {base.__name__ for cause in chain(error) for base in type(cause).__mro__}


def passing(error: BaseException) -> bool:
    """Whether the same request again may well do: overload, a fault of the server, a line that was cut."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    broken = {"RemoteProtocolError", "ReadTimeout", "ReadError", "ChunkedEncodingError"}
    return bool(broken & kinds(error)) or "Consistency check failed" in str(error)


def unreachable(error: BaseException) -> bool:
    """Whether nobody sensible answered, so that what is in the cache is the best there is."""
    status = status_of(error)
    return status in TRANSIENT if status is not None else bool(_NO_ANSWER & kinds(error))


def full(error: BaseException) -> bool:
    """Whether the disk is the cause."""
    return any(isinstance(cause, OSError) and cause.errno in _FULL for cause in chain(error))


def explained(error: BaseException, name: HubName, endpoint: str) -> CheckpointError:
    """The error for the user."""
    return CheckpointError(f"{name.text}: {_reason(error, name, endpoint)}")


def _reason(error: BaseException, name: HubName, endpoint: str) -> str:
    found, status = kinds(error), status_of(error)
    page = f"{endpoint}/{name.repo}"
    offer = (
        f"run `medloom weights pull {name.text}` once with a network; or, on another machine, with --to DIR, "
        "bring DIR here and name it instead"
    )
    if full(error):
        return "the disk is full, nothing half was kept: free space, or set HF_HOME to a larger disk"
    if "PermissionError" in found:
        return "the cache of the hub cannot be written: set HF_HOME to a folder of yours"
    if "OfflineModeIsEnabled" in found:
        return f"not in the cache, and HF_HUB_OFFLINE is set: {offer}"
    if "RevisionNotFoundError" in found:
        return _revision(name, page)
    if "GatedRepoError" in found:
        if status == 401:
            return f"gated, and you are not logged in: ask for access at {page}, then `hf auth login`"
        return f"gated, and your login has no access: ask for it at {page} (its owner answers)"
    if "DisabledRepoError" in found:
        return f"the hub has disabled the repository {page}"
    if "RepositoryNotFoundError" in found:
        return f"no such repository, or a private one: check the name at {page}; if private, `hf auth login`"
    if "RemoteEntryNotFoundError" in found:
        return f"a file of the repository is gone: see {page}"
    if status == 401:
        return "the hub does not know your login: `hf auth login` again, or correct HF_TOKEN"
    if status == 403:
        return f"forbidden: your login may not read {page}"
    if status == 429:
        return "too many requests (429): wait some minutes; a login (`hf auth login`) has a higher limit"
    if status is not None:
        return f"the hub answers {status}: try again later{_cached_only(status)}"
    if "Consistency check failed" in str(error):
        return "the download was cut again and again: run the same command again"
    return f"not in the cache, and {endpoint} cannot be reached ({_line(error)}): {offer}"


def _revision(name: HubName, page: str) -> str:
    if name.release is not None:
        return (
            f"commit {str(name.revision)[:12]} is gone from {page}: its history was rewritten; update "
            f"medloom, or take what is there now with hf-hub:{name.repo}"
        )
    return f"{page} has no revision {name.revision!r}: name a branch, a tag or a commit of it"


def _cached_only(status: int) -> str:
    return "; nothing is in the cache" if status >= 500 else ""


def _line(error: BaseException) -> str:
    *_, root = chain(error)
    return first_line(root)
