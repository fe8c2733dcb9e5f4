"""The sbatch script of a benchmark: an array of shares, then one job that makes the page."""

from __future__ import annotations

import shlex

from .config import BenchmarkConfig


def sbatch(config: BenchmarkConfig, *, parts: int, jobs: int, hours: float = 24.0) -> str:
    """Text of a script for `sbatch`.

    Args:
        parts: tasks of the array; each does its share of the cells with `jobs` processes.
        hours: limit of a task; one that is cut off is queued again and goes on.
    """
    out = shlex.quote(config.out)
    folder = shlex.quote(f"{config.out}/slurm")
    whole, minutes = divmod(round(60 * hours), 60)
    gpu = "" if config.device == "cpu" else "#SBATCH --gres=gpu:1\n"
    return f"""#!/bin/bash
# Save as grid.sbatch, add your account and partition, then:
#   mkdir -p {folder}
#   id=$(sbatch --parsable grid.sbatch)
#   sbatch --dependency=afterany:$id --wrap "medloom benchmark --out {out} --page"
#SBATCH --job-name=medloom-benchmark
#SBATCH --array=0-{parts - 1}
#SBATCH --cpus-per-task={4 * jobs}
#SBATCH --mem={16 * jobs}G
#SBATCH --time={whole}:{minutes:02d}:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output={config.out}/slurm/%a-%A.log
{gpu}
# SIGTERM comes two minutes before the end, or with a preemption: cells save, and status 3 says "not all".
medloom benchmark --out {out} --array "$SLURM_ARRAY_TASK_ID/{parts}" --jobs {jobs} &
child=$!
trap 'kill -TERM "$child"' TERM
wait "$child"; status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"  # after scancel it is no longer RUNNING
if [ "$status" -eq 3 ] && scontrol show job --oneliner "$task" | grep -q JobState=RUNNING; then
  scontrol requeue "$task"
fi
exit "$status"
"""
