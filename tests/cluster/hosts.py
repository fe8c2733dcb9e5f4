"""Two hosts on one machine: network namespaces joined by a veth pair, with torchrun in each.

Needs root and iproute2. The namespaces share files and process ids with the machine, and nothing of its
network: what one host says to the other goes over the pair, and a link that goes down is silent, as a pulled
cable is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def missing() -> str | None:
    """Why there can be no second host here; None when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "not installed: ip of iproute2 (`make test-hosts` installs it)"
    name = f"probe-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return None


class Hosts:
    """Two namespaces; use it as a context manager."""

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.names = tuple(f"host{number}-{tag}" for number in range(2))
        self.links = tuple(f"link{number}-{tag}" for number in range(2))
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def cut(self, host: int) -> None:
        """Take the link of a host down; neither side is told."""
        _ip("-n", self.names[host], "link", "set", self.links[host], "down")

    def mend(self, host: int) -> None:
        """Bring it up again."""
        _ip("-n", self.names[host], "link", "set", self.links[host], "up")

    def start(self, host: int, command: Sequence[str], log: Path) -> subprocess.Popen[str]:
        """Start a command on a host, in a session of its own; both streams go to `log`."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.links[host],
                       "NODE_RANK": str(host)}  # fmt: skip
        with log.open("w") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                env=environment, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        self._running.append(process)
        return process


def torchrun(host: int, recipe: Path, *overrides: str, module: str = "torch.distributed.run") -> list[str]:
    """The command that a user types on one of two hosts."""
    return [
        sys.executable, "-m", module, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={host}",
        f"--master-addr={ADDRESSES[0]}", "--master-port=29511", "-m", "medloom.scripts.cli", "pretrain",
        str(recipe), *overrides,
    ]  # fmt: skip


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {arguments}: {done.stderr}"
