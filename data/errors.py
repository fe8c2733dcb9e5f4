"""Errors that a user can mend.

Every message is one line and names three things: what (a file, a key), what was expected, and the mend.
The command line prints the message alone and exits with 2; any other exception is a fault of medloom and
keeps its traceback.
"""


class MedloomError(Exception):
    """Base of all errors whose message is meant for the user."""

    status = 2  # exit status of the command: the user can mend it


class ConfigError(MedloomError):
    """A configuration names an unknown key, a wrong type, or values that contradict each other."""


class CollectionError(MedloomError):
    """A collection or a layout cannot be used as a whole (missing folder, empty, subject in two splits)."""


class ReadError(MedloomError):
    """One file cannot be read or is refused; a build lists it in failures.jsonl and goes on."""


class ShardError(MedloomError):
    """Shards cannot be written or read (disk full, truncated tar, checksum mismatch)."""

    member = ""  # name of the damaged member, where one is to blame


class StoreError(MedloomError):
    """A remote store or its cache cannot be used; unlike a ShardError, another sample would not help."""


class RankError(MedloomError):
    """Another rank of a distributed run has ended or does not answer."""

    status = 4  # the same command again may well do


class LoaderError(MedloomError):
    """A worker that reads batches has died."""


class CheckpointError(MedloomError):
    """A checkpoint or an encoder artefact cannot be loaded."""


def first_line(error: BaseException | str) -> str:
    """First line of a message, to be quoted in one of ours; the kind of an error that has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(wrong: str, known: list[str] | tuple[str, ...] | set[str], *, most: int = 3) -> str:
    """Return a `; did you mean ...?` suffix that lists the known names nearest to `wrong`.

    The suffix is never empty: without a near name it lists the known ones, cut to the first twelve.
    """
    import difflib

    near = difflib.get_close_matches(wrong, sorted(known), n=most, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    names = sorted(known)
    tail = ", ..." if len(names) > 12 else ""
    return f"; known: {', '.join(names[:12])}{tail}"
