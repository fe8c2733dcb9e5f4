"""A real SLURM on this machine: munge, a controller and two virtual nodes under one folder, without systemd.

Needs root and Debian's packages slurm-wlm and munge. The nodes share this machine's cores; partition `high`
preempts partition `low` by requeueing. There is no accounting: state comes from scontrol, the end of a job
from the job completion file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = 2
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")

CONF = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
MpiDefault=none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/finished.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=20
OverTimeLimit=0
{nodes}
PartitionName=low Nodes=n[1-{count}] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n[1-{count}] PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no virtual SLURM here; None when there can."""
    if os.geteuid() != 0:
        return "a virtual SLURM needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (`make test-slurm` installs them)" if absent else None


class VirtualSlurm:
    """A running cluster; use it as a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> VirtualSlurm:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "state").mkdir()
        self._munge()
        ports = _free_ports(NODES + 1)
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName=n{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for i, port in enumerate(ports[1:])
        )
        text = CONF.format(host=host, port=ports[0], root=self.root, nodes=nodes, count=NODES)
        (self.root / "slurm.conf").write_text(text)
        (self.root / "finished.txt").touch()
        try:
            self._start("slurmctld", "-D", "-c")
            for number in range(1, NODES + 1):
                (self.root / f"spool-n{number}").mkdir()
                self._start("slurmd", "-D", "-N", f"n{number}")
            self.until(self._idle, 60, "two idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 1:
            self.run("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 60  # until nothing of a failed test's jobs is left
            while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    @property
    def environment(self) -> dict[str, str]:
        """Of commands on this cluster: names of an outer SLURM would be inherited by every job."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))
        }
        return {**inherited, "SLURM_CONF": str(self.root / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, cwd: Path | None = None, check: bool = True, seconds: float = 120) -> str:
        """Output of a command on this cluster."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path) -> str:
        """Job id of `sbatch ARGUMENTS`."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "--oneliner", job)))

    def wait_for(
        self, job: str, states: Sequence[str], seconds: float = 180, *, again: bool = False
    ) -> dict[str, str]:
        """Facts of a job once it is in one of `states`.

        Args:
            again: let a requeued job start at once instead of after SLURM's two minutes.
        """

        seen = 0.0  # when it was first seen waiting: a start in the second of its end is refused by the nodes

        def there() -> bool:
            nonlocal seen
            found = self.facts(job)
            if again and found["JobState"] == "PENDING" and int(found["Restarts"]) > 0:
                seen = seen or time.monotonic()
                if time.monotonic() > seen + 5:
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            return found["JobState"] in states

        self.until(there, seconds, f"job {job} in {states}")
        return self.facts(job)

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `true()`; a test that waits in vain fails with what the daemons said."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                said = (self.root / "slurmctld.log").read_text()[-3000:]
                raise AssertionError(
                    f"{what}: not within {seconds:g} s\n{self.run('squeue', check=False)}{said}"
                )
            time.sleep(0.5)

    def _idle(self) -> bool:
        return self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D", check=False).strip() == str(
            NODES
        )

    def _start(self, *command: str) -> None:
        log = (self.root / f"{len(self._daemons)}-{Path(command[0]).name}.out").open("wb")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        )

    def _munge(self) -> None:
        """A munge of this cluster alone: key, socket and logs in its folder."""
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        paths = [f"--{name}={self.root}/munge.{end}" for name, end in
                 (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"),
                  ("seed-file", "seed"))]  # fmt: skip
        self._start("munged", "--foreground", "--force", *paths)
        self.until_munge()

    def until_munge(self) -> None:
        """Wait for the socket."""
        deadline = time.monotonic() + 20
        while not (self.root / "munge.socket").exists():
            assert time.monotonic() < deadline, (self.root / "munge.log").read_text()
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
