"""Which launcher started this process, from the variables that torchrun and SLURM set."""

from __future__ import annotations

import pytest
from medloom.data.errors import ConfigError
from medloom.pretrain.cluster.detect import detect, is_main_process
from medloom.pretrain.config import TrainerConfig

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID",
         "SLURM_JOB_NAME", "SLURM_NNODES", "TORCHELASTIC_RUN_ID")  # fmt: skip
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "mae",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}


def test_a_plain_start_takes_what_the_configuration_says() -> None:
    launch = detect(TrainerConfig(devices=3, num_nodes=2), {})
    assert (launch.launcher, launch.devices, launch.num_nodes, launch.plugins) == ("plain", 3, 2, [])


def test_torchrun_decides_itself_also_inside_slurm() -> None:
    env = {**STEP, "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    launch = detect(TrainerConfig(devices=1), env)
    assert (launch.launcher, launch.devices, launch.num_nodes) == ("torchrun", 4, 2)
    with pytest.raises(ConfigError, match="start equal numbers a node"):
        detect(TrainerConfig(), {**env, "WORLD_SIZE": "7"})


def test_a_task_of_srun_needs_no_ntasks_per_node() -> None:
    launch = detect(TrainerConfig(devices=1), STEP)
    assert (launch.launcher, launch.devices, launch.num_nodes) == ("srun", 2, 2)
    assert launch.plugins[0].auto_requeue is False
    with pytest.raises(ConfigError, match="use --ntasks-per-node"):
        detect(TrainerConfig(), {**STEP, "SLURM_STEP_TASKS_PER_NODE": "3,1"})


def test_a_shell_of_a_job_is_a_plain_start_or_a_mistake() -> None:
    with pytest.raises(ConfigError, match="4 tasks and srun did not start this one: write srun before"):
        detect(TrainerConfig(), JOB)
    alone = detect(TrainerConfig(devices=2), {**JOB, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    assert (alone.launcher, alone.devices) == ("plain", 2)
    assert type(alone.plugins[0]).__name__ == "LightningEnvironment"
    shell = detect(TrainerConfig(devices=2), {**STEP, "SLURM_JOB_NAME": "interactive"})
    assert shell.launcher == "plain"


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        (STEP, True),
        ({**STEP, "SLURM_PROCID": "3"}, False),
        ({**JOB, "LOCAL_RANK": "1"}, False),  # a child of Lightning in a shell of a job
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_the_main_process_is_known_before_any_group(
    variables: dict[str, str], main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is main
