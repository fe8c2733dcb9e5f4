"""`medloom pretrain --replay RUN/bad/step-N.json`: a bad step once more, on one process."""

from __future__ import annotations

from pathlib import Path


def replay_step(path: Path, overrides: list[str]) -> int:
    """Print what the step does here; 1 when it is bad again, 0 when it is not."""
    from ..pretrain.config import load_config
    from ..pretrain.fault_tolerance.bad_steps import read_record
    from ..pretrain.fault_tolerance.replay import replay
    from ..pretrain.folder import CONFIG
    from .console import print_table, say

    record, folder = read_record(path), path.resolve().parent.parent
    config = load_config(folder / CONFIG, overrides)
    found = replay(record, folder, config)
    say(f"recorded: {record.line}; then {record.action} (newest checkpoint: step {record.checkpoint})")
    say(f"here: one process, {found.precision}, weights after step {found.weights_step}")
    rows = [{"part": f"rank {b['rank']}, micro-batch {b['micro']}"} for b in record.batches]
    if len(found.losses) != len(rows):
        rows = [{"part": f"all ranks, micro-batch {micro}"} for micro in range(len(found.losses))]
    print_table([row | {"loss recorded": f"{was:.6g}", "loss here": f"{now:.6g}"}
                 for row, (was, now) in zip(rows, found.losses, strict=True)], title="losses")  # fmt: skip
    samples = sorted(found.samples, key=lambda row: -_badness(row))
    print_table([{"sample": row["key"], "position": row["position"], "rank": row["rank"],
                  "largest intensity": f"{row['largest']:.4g}",
                  "loss alone": None if row["loss"] is None else f"{row['loss']:.6g}"}
                 for row in samples], title="samples, the worst first")  # fmt: skip
    print_table([{"part": name, "gradient norm": f"{norm:.4g}"} for name, norm in found.norms.items()],
                title="gradient")  # fmt: skip
    say("the step is as bad here as it was in the run" if found.repeats else "the step is sound here")
    for line in found.lines():
        say(f"- {line}")
    return int(found.repeats)


def _badness(row: dict[str, float]) -> float:
    value = row["loss"] if row["loss"] is not None else row["largest"]
    return value if value == value else float("inf")
