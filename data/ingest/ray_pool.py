"""Do the units of a build on the nodes of a Ray cluster: the same units, the same receipts, the same bytes.

Every node must see the output folder and the sources under the same paths: that is tried on each before any
unit is given out, and each receipt is looked up in the folder here. A unit whose node or process has died is
given out again; should the dead one still write, it writes the same bytes, renamed into place at once. Units
that kill two processes are done on this machine, where the image at fault is found (crashes.py).

Ray is the optional extra `ray`. It is imported here alone, without usage statistics, dashboard and logs. On
`local`, a cluster of this machine is made for the build on the loopback interface; it costs some seconds and
500 MB. Memory: a unit asks Ray for what it needs (needs.py), out of what the nodes were started with.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2

from ..atomic import TEMPORARY
from ..errors import ConfigError, ShardError, first_line
from ..shards.format import FORMAT_VERSION
from .needs import WORKER_BYTES, need_of
from .pool import Job, Pool, Tell, do, portable
from .units import HeldOutSets, Receipt, Unit, finished

log = logging.getLogger(__name__)

LOCAL = "local"
OBJECT_STORE_BYTES = 80 << 20  # nothing but plans and receipts passes through it
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 120.0
POLL_SECONDS = 0.5
IN_FLIGHT = 2  # units given out for each CPU: one at work, one waiting
SEEN_SECONDS = 10.0  # until a file that a node wrote must be visible here; network disks take their time
NODE_DEATHS = 10  # of one unit, after which the cluster is not worth waiting for

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray's own switch for "no clusters": with it, all its processes listen on the loopback interface alone.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class RayPool:
    """A connection to a cluster for one build; a context manager."""

    def __init__(self, address: str, out: Path, *, workers: int = 0, memory: int | None = None) -> None:
        """`workers` and `memory` (bytes) are the size of the `local` cluster; others have their own."""
        here = address.startswith((LOCAL, "127."))  # "local" and "localhost:PORT"
        for name, value in (_QUIET | (_LOOPBACK if here else {})).items():
            os.environ.setdefault(name, value)
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigError("--ray needs Ray: pip install 'medloom[ray]'") from error
        self.out = Path(out).absolute()
        self._begun = not self.ray.is_initialized()
        if self._begun:
            self._begin(address, workers, memory)

    def __enter__(self) -> RayPool:
        try:
            self._check_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self.ray.shutdown()
            if self._handler is not None:
                signal.signal(signal.SIGTERM, self._handler)

    def run_all(
        self, units: list[Unit], out: Path, salt: bytes, held: HeldOutSets, *, tell: Tell
    ) -> Iterator[Receipt]:
        """As `pool.run_all`, on the cluster."""
        task = self.ray.remote(_task)
        context = self.ray.put((self.out, salt, held))
        largest = max(node["Resources"].get("memory", 0) for node in self._nodes()) if units else 0
        waiting, sick, done = deque(units), [], 0
        deaths: dict[str, list[int]] = {}  # unit -> [processes, nodes]
        under_way: dict[Any, Unit] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < IN_FLIGHT * max(1, self._cpus()):
                    unit = waiting.popleft()
                    memory = int(min(need_of(unit) + WORKER_BYTES, 0.9 * largest))
                    here = task.options(
                        num_cpus=1, memory=memory, max_retries=0, scheduling_strategy="SPREAD"
                    )
                    under_way[here.remote(context, unit)] = unit
                ready, _ = self.ray.wait(list(under_way), timeout=POLL_SECONDS)
                for reference in ready:
                    unit = under_way.pop(reference)
                    receipt = self._answer(reference, unit, deaths.setdefault(unit.name, [0, 0]))
                    if receipt is not None:
                        done += len(unit.records)
                        yield receipt
                    else:
                        (sick.append if deaths[unit.name][0] > 1 else waiting.append)(unit)
                tell(done, f"{len(waiting) + len(under_way)} of {len(units)} units to go")
        finally:
            for reference in under_way:
                self.ray.cancel(reference, force=True)
        if sick:
            with Pool(out, salt, held, 1, None) as pool:
                yield from pool.isolate(sick, tell, done)

    def _begin(self, address: str, workers: int, memory: int | None) -> None:
        # Ray takes SIGTERM and keeps it; forked processes of the next build would then not end by it.
        main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGTERM) if main else None
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == LOCAL:
            options |= {
                "address": LOCAL, "num_cpus": max(1, workers), "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
            options |= {"_memory": memory} if memory else {}
        else:
            options["address"] = address
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdigit() and "://" not in address:  # Ray itself would wait for five minutes
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            self.ray.init(**options)
        except Exception as error:
            raise ShardError(
                f"--ray {address}: no cluster answers ({first_line(error)}); start one, or say local"
            ) from error

    def _nodes(self) -> list[dict[str, Any]]:
        return [n for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]

    def _cpus(self) -> int:
        return int(sum(node["Resources"]["CPU"] for node in self._nodes()))

    def _check_nodes(self) -> None:
        """Write on every node into the output folder, and look for it here. Raises ShardError."""
        strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        nodes = self._nodes()
        if not nodes:
            raise ShardError("the Ray cluster has no node with a CPU; start one with `ray start`")
        look = self.ray.remote(_look)
        for node in nodes:
            name = f"{TEMPORARY}probe-{node['NodeID']}"
            where = strategy(node["NodeID"], soft=False)
            call = look.options(scheduling_strategy=where, num_cpus=0, max_retries=0)
            try:
                host, versions, fault = self.ray.get(call.remote(self.out, name), timeout=PROBE_SECONDS)
            except Exception as error:
                address = node["NodeManagerAddress"]
                raise ShardError(f"Ray node {address}: cannot work ({first_line(error)}); mend it") from error
            if not fault and not _appears(self.out / name):
                fault = "writes there, but nothing of it is here"
            if fault:
                raise ShardError(
                    f"Ray node {host}: {self.out}: {fault}; --out must be on a disk that all nodes share"
                )
            (self.out / name).unlink(missing_ok=True)
            if versions != _versions():
                raise ShardError(
                    f"Ray node {host} has {versions}, this one {_versions()}: other bytes; install the same"
                )

    def _answer(self, reference: Any, unit: Unit, deaths: list[int]) -> Receipt | None:
        """The receipt, or None when the unit has to be done again (counted in `deaths`)."""
        exceptions = self.ray.exceptions
        try:
            host, kind, value = self.ray.get(reference)
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
            deaths[0] += 1
            log.warning("%s: a Ray worker died (%s)", unit.name, type(error).__name__)
            return None
        except exceptions.RayError as error:  # the node, or the way to it
            deaths[1] += 1
            log.warning("%s: a Ray node was lost (%s)", unit.name, type(error).__name__)
            if deaths[1] == NODE_DEATHS:
                raise ShardError(
                    f"unit {unit.name}: {NODE_DEATHS} nodes of the Ray cluster were lost under it; mend the "
                    "cluster, then run the same command again: finished units are kept"
                ) from error
            return None
        if kind == "fault":
            raise value
        if any(not _appears(self.out / shard.file) for shard in value.shards.values()) or not finished(
            self.out, unit
        ):
            raise ShardError(
                f"Ray node {host} says that {unit.name} is done, but it is not in {self.out}; "
                "--out must be on a disk that all nodes share"
            )
        return value


def _task(context: tuple[Path, bytes, HeldOutSets], unit: Unit) -> tuple[str, str, Any]:
    """One unit, in a Ray worker: (host, "done", receipt) or (host, "fault", error)."""
    out, salt, held = context
    try:
        return socket.gethostname(), "done", do(Job(unit), out, salt, held, lambda _: None)
    except Exception as error:
        return socket.gethostname(), "fault", portable(error)


def _look(out: Path, name: str) -> tuple[str, str, str]:
    """Host, versions, and why this node cannot write the file `name` into `out` ("": it has)."""
    try:
        (out / name).write_text(name)
        return socket.gethostname(), _versions(), ""
    except OSError as error:
        return socket.gethostname(), _versions(), f"cannot be written ({error.strerror or error})"


def _versions() -> str:
    return f"shard format {FORMAT_VERSION}, blosc2 {blosc2.__version__}"


def _appears(path: Path) -> bool:
    end = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
