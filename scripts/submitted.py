"""What submitit runs on each task: `medloom pretrain`, with its exit status kept.

submitit pickles the call by name, so the job imports it from the same environment. Its own handler is asked
for a checkpoint only while the run is still starting; from then on the run's handlers have taken its place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class Training:
    """Callable for `submitit.Executor.submit`."""

    def __call__(self, arguments: list[str]) -> int:
        """Train; leaves with the status of `medloom` when that is not 0."""
        from .cli import main

        status = main(arguments)
        if status:
            sys.exit(status)
        return status

    def checkpoint(self, arguments: list[str]) -> Any:
        """The same again: there is nothing yet that a start would lose."""
        from submitit.helpers import DelayedSubmission  # type: ignore[import-not-found]

        return DelayedSubmission(self, arguments)
