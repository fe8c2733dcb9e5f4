"""`medloom launch`: targets render from strict templates, manifests obey their schemas, faults come first."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from medloom.data.config import read_yaml
from medloom.data.errors import ConfigError
from medloom.pretrain.cluster.job import Job, parse_minutes
from medloom.pretrain.cluster.targets import TARGETS, render
from medloom.pretrain.cluster.templates import HOLE, fill, template
from medloom.pretrain.config import load_config
from medloom.scripts import cli, launch

SCHEMAS = Path(__file__).with_name("schemas")
POD = ("--image", "registry/medloom:1", "--mount", "claim:/data")
NEEDS = {
    "slurm": (
        "--partition",
        "gpu",
        "--account",
        "me",
        "--time",
        "24h",
        "--mem",
        "500",
        "--gpu-type",
        "h100",
        "--grace",
        "200",
    ),
    "torchrun": ("--master-addr", "node1"),
    "submitit": ("--partition", "gpu", "--time", "1-12:00:00", "--grace", "200"),
    "k8s": (
        *POD,
        "--time",
        "24h",
        "--mem",
        "500",
        "--namespace",
        "research",
        "--cpus",
        "12",
        "--grace",
        "200",
    ),
    "skypilot": ("--gpu-type", "H100", "--mount", "s3://bucket:/data", "--setup", "pip install medloom"),
}
MANY = ("--nodes", "2", "--gpus", "2", "--env", "GREETING=it's $HOME")


def job(tmp_path: Path, **options: Any) -> Job:
    config = load_config("phantom-mae-2d", [f"out={tmp_path}/run", "data.shards=shards"])
    return Job(config=config, directory=tmp_path, **options)


def rendered(path: Path) -> str:
    text = path.read_text()
    assert not HOLE.search(text)
    return text


def faults(kind: str, document: dict[str, Any], file: str) -> list[str]:
    schema = json.loads((SCHEMAS / file).read_text())
    checker = Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(document)]


@pytest.fixture
def launched(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """target -> the file that `medloom launch` wrote, with what it needs, for two nodes of two GPUs."""

    def write(target: str, *flags: str) -> Path:
        monkeypatch.chdir(tmp_path)
        out = "/data/run" if not TARGETS[target].shared else "run"
        path = recipe(tmp_path / "run")
        status = cli.main(["launch", str(path), f"out={out}", "--on", target, *NEEDS[target], *MANY, *flags])
        assert status == 0
        # For machines that do not see this one's files, the job's files lie in the working folder.
        folder = tmp_path / "run.launch"
        return next(file for file in folder.iterdir() if file.stem == "job")

    return write


def test_every_target_has_a_template_and_a_choice() -> None:
    assert set(launch.TARGETS) == set(TARGETS)
    assert all(template(target).is_file() for target in TARGETS)


@pytest.mark.parametrize("target", ["slurm", "torchrun"])
def test_shell_scripts_are_shell(launched: Callable[..., Path], target: str) -> None:
    path = launched(target)
    text = rendered(path)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
    line = next(line for line in text.splitlines() if line.startswith("export GREETING"))
    said = subprocess.run(["bash", "-c", f'{line}; printf %s "$GREETING"'], capture_output=True, text=True)
    assert said.stdout == "it's $HOME"
    assert f"pretrain {path.parent}/config.yaml resume=true" in text


def test_the_sbatch_script_asks_for_what_was_asked(launched: Callable[..., Path], tmp_path: Path) -> None:
    text = rendered(launched("slurm"))
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))
    assert asked == {
        "job-name": "tiny", "nodes": "2", "ntasks-per-node": "2", "gres": "gpu:h100:2", "cpus-per-task": "2",
        "mem": "500G", "time": "1440", "partition": "gpu", "account": "me", "signal": "USR1@200",
        "requeue": "", "open-mode": "append", "chdir": str(tmp_path),
        "output": f"{tmp_path}/run.launch/%j.log",
    }  # fmt: skip
    assert read_yaml(tmp_path / "run.launch/config.yaml")["encoder"]["depth"] == 1  # resolved, not the recipe


@pytest.mark.parametrize(
    ("status", "restarts", "state", "requeued"),
    [
        (0, 0, "RUNNING", False), (2, 0, "RUNNING", False), (3, 0, "RUNNING", False),
        (137, 0, "RUNNING", True),
        (4, 2, "RUNNING", True), (1, 3, "RUNNING", False), (143, 0, "COMPLETING", False),
    ],
)  # fmt: skip
def test_the_sbatch_script_hands_on_the_status_of_srun(
    launched: Callable[..., Path], tmp_path: Path, status: int, restarts: int, state: str, requeued: bool
) -> None:
    path = launched("slurm")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, line in (
        ("srun", f"exit {status}"),
        ("scontrol", f'echo "$@" >> {tmp_path}/said; echo JobState={state}'),
    ):
        (tools / name).write_text(f"#!/bin/bash\n{line}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "2",
    }  # fmt: skip
    done = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    said = (tmp_path / "said").read_text()
    assert ("requeue 7" in said) == requeued


def test_the_kubernetes_manifest_obeys_the_schema(launched: Callable[..., Path]) -> None:
    text = rendered(launched("k8s"))
    documents = {document["kind"]: document for document in yaml.safe_load_all(text)}
    kinds = {"ConfigMap": "core.v1.ConfigMap", "Service": "core.v1.Service", "Job": "batch.v1.Job"}
    assert set(documents) == set(kinds)
    for kind, name in kinds.items():
        assert faults(f"io.k8s.api.{name}", documents[kind], "kubernetes-1.37.json") == []
    spec = documents["Job"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (spec["completions"], spec["parallelism"], spec["activeDeadlineSeconds"]) == (2, 2, 86400)
    assert (
        pod["terminationGracePeriodSeconds"] == 200
        and pod["subdomain"] == documents["Service"]["metadata"]["name"]
    )
    assert container["resources"]["limits"] == {"cpu": 24, "memory": "500G", "nvidia.com/gpu": 2}
    assert {"name": "GREETING", "value": "it's $HOME"} in container["env"]
    assert {volume["name"] for volume in pod["volumes"]} == {
        place["name"] for place in container["volumeMounts"]
    }
    frozen = yaml.safe_load(documents["ConfigMap"]["data"]["config.yaml"])
    assert frozen["out"] == "/data/run"
    script = container["args"][0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert "--master-addr tiny-0.tiny" in script and "pretrain /etc/medloom/config.yaml resume=true" in script


def test_a_wrong_manifest_would_be_noticed(launched: Callable[..., Path]) -> None:
    job = list(yaml.safe_load_all(rendered(launched("k8s"))))[-1]
    job["spec"]["template"]["spec"]["containers"][0]["restart"] = "Always"
    job["spec"]["completions"] = "two"
    found = faults("io.k8s.api.batch.v1.Job", job, "kubernetes-1.37.json")
    assert len(found) == 2 and any("'restart'" in line for line in found)


def test_the_skypilot_task_obeys_the_schemas(launched: Callable[..., Path], tmp_path: Path) -> None:
    task = yaml.safe_load(rendered(launched("skypilot")))
    file = "skypilot-0.14.json"
    assert faults("task", task, file) == []
    assert faults("resources", task["resources"], file) == []
    stores = [mount for mount in task["file_mounts"].values() if isinstance(mount, dict)]
    assert stores == [{"source": "s3://bucket", "mode": "MOUNT"}]
    assert faults("storage", stores[0], file) == []
    assert task["resources"]["accelerators"] == "H100:2" and task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [3]
    assert task["file_mounts"]["/tmp/medloom/config.yaml"] == f"{tmp_path}/run.launch/config.yaml"
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, capture_output=True).stderr == ""


def test_the_submitit_script_is_python(launched: Callable[..., Path]) -> None:
    path = launched("submitit")
    text = rendered(path)
    compile(text, str(path), "exec")
    assert "timeout_min=2160" in text and "tasks_per_node=2" in text and "slurm_gres='gpu:2'" in text


def test_a_dry_run_shows_everything_and_writes_nothing(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path / "run")
    words = ["launch", str(path), "--on", "slurm", "--nodes", "2", "--submit", "--dry-run"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for part in (
        "batch",
        "network",
        "#SBATCH --nodes=2",
        "encoder:",
        f"submit: sbatch --parsable {tmp_path}",
    ):
        assert part in said
    assert not (tmp_path / "run.launch").exists()


def test_faults_stop_a_launch(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path / "run", "data.batch_size=6")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert cli.main(["launch", str(path), "--on", "slurm", "--nodes", "4", "--grace", "5"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "6 does not divide by 4 ranks" in said
    assert "resume=true continues it" in said
    assert "trainer.grace_seconds is 30" in said
    assert not (tmp_path / "run.launch").exists()
    assert cli.main(["launch", str(path), "--on", "slurm", "--nodes", "2", "resume=true"]) == 0
    assert cli.main(["launch", str(path), "--on", "slurm", "data.shards=elsewhere", "resume=true"]) == 1


def test_a_pod_that_keeps_nothing_is_refused(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["launch", str(recipe(tmp_path / "run")), "--on", "k8s", "--image", "x", "out=runs/a"]
    assert cli.main(words) == 1
    assert "a preemption loses the run" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*words[:-1], "out=/data/a", "--mount", "claim:/data"]) == 0


@pytest.mark.parametrize(
    ("target", "flags", "words"),
    [
        ("torchrun", {"nodes": 2}, "--master-addr: several hosts"),
        ("torchrun", {"partition": "gpu"}, "--partition: torchrun has no such thing"),
        ("k8s", {"account": "me", "image": "x"}, "--account: k8s has no such thing"),
        ("torchrun", {"grace_seconds": 60}, "--grace: torchrun has no such thing"),
        ("slurm", {"on_demand": True}, "--on-demand: slurm has no such thing"),
        ("submitit", {"retries": 1}, "--retries: submitit has no such thing"),
        ("k8s", {}, "--image: Kubernetes needs an image"),
        ("skypilot", {}, "--gpu-type: SkyPilot rents by type"),
    ],
)
def test_what_a_target_cannot_take_is_refused(
    tmp_path: Path, target: str, flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        render(job(tmp_path, **flags), target)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"nodes": 0}, "--nodes 0: at least 1"), ({"gpus": -1}, "--gpus -1"), ({"name": "a b"}, "--name 'a b'"),
     ({"grace_seconds": 0}, "--grace 0")],
)  # fmt: skip
def test_a_job_is_checked(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job(tmp_path, **options)


def test_templates_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "mine.sbatch"
    path.write_text("#SBATCH --nodes={{nodes}}\n#SBATCH --qos={{qos}}\nrun {{container}} {{command}} now\n")
    values = {"nodes": 2, "qos": None, "container": None, "command": "a  b"}
    assert fill(path, values) == "#SBATCH --nodes=2\nrun a  b now\n"
    with pytest.raises(ConfigError, match=r"nothing fills \{\{nodes\}\}; did you mean node"):
        fill(path, {"node": 2, "qos": None, "container": None, "command": "x"})
    with pytest.raises(ConfigError, match=r"no hole \{\{grace\}\} for 30"):
        fill(path, {**values, "grace": 30})


def test_yaml_values_cannot_break_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: {{text}}\nb:\n- {{script}}\nc: {{table}}  # kept\nd: {{gone}}\ne:\n  f: {{rows}}\n")
    values = {
        "text": "x: 'y' # \"z\"", "script": "one\n  two: {a}\n", "table": {"k": ["v", "yes"]}, "gone": None,
        "rows": [{"n": 1, "m": "2"}],
    }  # fmt: skip
    read = yaml.safe_load(fill(path, values))
    assert read == {
        "a": values["text"],
        "b": [values["script"]],
        "c": values["table"],
        "e": {"f": values["rows"]},
    }
    path.write_text("a: x{{text}}\n")
    with pytest.raises(ConfigError, match="must be a whole value"):
        fill(path, {"text": "b"})


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90), ("36h", 2160), ("1.5h", 90), ("2d", 2880), ("24:00:00", 1440), ("1-12:00:00", 2160),
        ("1-12", 2160), ("10:30", 11), ("0:00:30", 1),
    ],
)  # fmt: skip
def test_times_are_those_of_sbatch(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_a_time_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="--time soon"):
        parse_minutes("soon")


def test_names_with_spaces_stay_whole(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    config = load_config("phantom-mae-2d", ["out=run", "data.shards=shards"])
    text = list(render(Job(config=config, directory=folder), "slurm").values())[-1]
    assert f'#SBATCH --chdir="{folder}"' in text
    command = next(line for line in text.splitlines() if line.startswith("srun"))
    assert f"{folder}/run.launch/config.yaml" in shlex.split(command)
