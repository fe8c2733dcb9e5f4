"""The gate before a release: what refuses it, in words, and the clean process that is asked.

A refusal names the mend, and none can be switched off but the one of licences, which states a reason.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...data.errors import CheckpointError, ConfigError
from ..hub.errors import kinds, status_of
from .verify import Check, Verdict

LONGEST_LINE = 300


def refuse_licences(found: Mapping[str, Any]) -> None:
    """Raises ConfigError where a licence stands against sharing and nobody said why it does not."""
    forbids = list(found["forbids"])
    if not forbids or (found["override"] or "").strip():
        return
    more = f"; and {len(forbids) - 4} more" if len(forbids) > 4 else ""
    raise ConfigError(
        f"not released, because of {'; '.join(forbids[:4])}{more}: train without these sources, correct "
        "`licence` in the collection, or give --licence-override REASON, which the card repeats"
    )


def verified_elsewhere(folder: Path, run: Path) -> Verdict:
    """What a process that has loaded nothing yet finds in a staged artefact.

    Raises:
        CheckpointError: the process died.
    """
    with tempfile.TemporaryDirectory(prefix="medloom-gate-") as held:
        answer = Path(held) / "verdict.json"
        command = [
            sys.executable, "-m", "medloom.pretrain.release.verify", str(folder.resolve()),
            "--run", str(run.resolve()), "--json", str(answer),
        ]  # fmt: skip
        # From another folder, and without a network: what it loads is what lies in the artefact.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=held, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not answer.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise CheckpointError(
                f"{folder}: a clean process cannot load the artefact (exit {done.returncode}): "
                f"{lines[-1][:LONGEST_LINE]}"
            )
        said = json.loads(answer.read_text(encoding="utf-8"))
    return Verdict([Check(**check) for check in said["checks"]], said["probes"])


def refuse_verdict(verdict: Verdict, run: Path) -> None:
    """Raises CheckpointError where a check failed."""
    if verdict.failed:
        said = "; ".join(f"{check.name}: {check.detail}" for check in verdict.failed)
        raise CheckpointError(f"{run}: not released, because a clean process found {said}")


def private(folder: Path, run: Path) -> None:
    """Raises ConfigError where a text of the release names this machine, its user or its folders."""
    names = {
        "the home folder": str(Path.home()),
        "the run folder": str(run.resolve()),
        "the host": platform.node(),
    }
    with suppress(OSError, KeyError):  # a number without a name, as containers give them
        names["a folder of the user"] = f"/home/{getpass.getuser()}"
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".md", ".py"):
            continue
        text = path.read_text(encoding="utf-8")
        for what, name in names.items():
            if len(name) > 3 and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                raise ConfigError(
                    f"{path.name} names {what} ({name}), which a release must not: take it out of "
                    "encoder.json of the run, and push again"
                )


def refused_by_hub(error: BaseException, repo: str) -> CheckpointError:
    """A fault while uploading, in one line with its mend; never the login."""
    from huggingface_hub import constants

    status, found = status_of(error), kinds(error)
    page = f"{constants.ENDPOINT}/{repo}"
    if "LocalTokenNotFoundError" in found or status == 401:
        why = "the hub does not know you: set HF_TOKEN to a token that may write, or `hf auth login`"
    elif status == 403:
        why = f"your login may not write there: use a token with write access, or another name than {repo}"
    elif status == 404:
        why = f"{page} cannot be made: is {repo.partition('/')[0]} your name or an organisation of yours?"
    elif status == 429:
        why = "too many requests (429): wait some minutes and push again"
    elif "OfflineModeIsEnabled" in found:
        why = "HF_HUB_OFFLINE is set: unset it to push"
    elif status is not None:
        why = f"the hub answers {status}: push again later"
    else:
        why = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}): push again with a network"
    return CheckpointError(f"{repo}: not uploaded, {why}; the artefact is complete in `release` of the run")
