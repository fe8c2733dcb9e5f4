"""A W&B server on the loopback, as much of it as a run, its artifacts and `wandb sync` ask for.

Everything is kept in memory as it was sent: `runs` by id, `artifacts` by name, `uses` as (run, artifact).
`fault` makes it hang, answer 500 or ignore what comes, from the next request on; `close` is its death.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Run:
    """What came for one run id."""

    config: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    job: str = ""
    starts: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the history, in order
    summary: dict[str, Any] = field(default_factory=dict)
    exit: int | None = None
    alerts: list[str] = field(default_factory=list)


class WandbServer:
    """Listens on a free port until `close`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uses: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []  # of all requests, to look for what must not be there
        self.unknown: list[str] = []  # operations that it has no answer for
        self.fault = ""  # "" | hang | error
        self.released = threading.Event()
        self.http = _Quiet(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """What makes W&B talk to it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}

    def close(self) -> None:
        """Stop listening: connections are refused from now on."""
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()

    # ---- answers --------------------------------------------------------------------------------------

    def graphql(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """The `data` of one operation."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else "?"
        answer: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"on_{name}", None)
        if answer is None:
            self.unknown.append(name)
            return {}
        try:
            # Some operations hold their variables in one named `input`.
            return answer(values.get("input", values))
        except (KeyError, TypeError) as error:  # said by the tests; a client would only try again
            self.unknown.append(f"{name}: {error!r} of {values}")
            return {}

    def on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": "lab"}}]}
        return {"viewer": {"id": "V", "entity": "lab", "username": "lab", "flags": "{}", "teams": teams}}

    def on_ServerInfo(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}
        }

    def on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        if run is None:
            return {"model": {"id": "P", "name": "p", "entity": {"id": "E", "name": "lab"}, "bucket": None}}
        tail = json.dumps([json.dumps(line) for line in run.lines[-1:]])
        bucket = {
            "id": values["name"], "name": values["name"], "displayName": values["name"], "tags": [],
            "summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.lines),
            "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail, "eventsTail": "[]",
            "config": json.dumps(run.config), "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return {"model": {"id": "P", "name": "p", "entity": {"id": "E", "name": "lab"}, "bucket": bucket}}

    def on_UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(values["name"], Run())
        run.starts += 1
        run.config = json.loads(values["config"]) if values.get("config") else run.config
        run.group, run.job = values.get("groupName") or run.group, values.get("jobType") or run.job
        project = {"id": "P", "name": "medloom", "entity": {"id": "E", "name": "lab"}}
        bucket = {"id": values["name"], "name": values["name"], "displayName": values["name"], "config": "{}",
                  "sweepName": None, "project": project, "historyLineCount": len(run.lines)}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": run.starts == 1}}

    def on_CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
        made = {"runID": values["run"], "uploadHeaders": [], "files": files}
        return {"createRunFiles": made}

    def on_NotifyScriptableRunAlert(self, values: dict[str, Any]) -> dict[str, Any]:
        self.runs[values["runName"]].alerts.append(f"{values['title']}: {values['text']}")
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_ArtifactType(self, values: dict[str, Any]) -> dict[str, Any]:
        known = self.artifacts.get(values["name"].split(":")[0])
        found = {"artifactType": {"name": known["type"]}} if known else None
        return {"project": {"artifact": found}}

    def on_CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        name, digest = values["artifactCollectionName"], values["digest"]
        known = self.artifacts.get(name)
        committed = known is not None and known["digest"] == digest
        if not committed:
            self.artifacts[name] = {"digest": digest, "type": values["artifactTypeName"], "files": {},
                                    "metadata": json.loads(values.get("metadata") or "{}"),
                                    "runs": []}  # fmt: skip
        if values["runName"]:  # none where the run only uses it
            self.artifacts[name]["runs"].append(values["runName"])
        state = "COMMITTED" if committed else "PENDING"
        sequence = {"id": name, "name": name, "latestArtifact": {"id": name, "versionIndex": 0}}
        made = {"id": name, "digest": digest, "state": state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def on_UseArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        self.uses.append((values["runName"], values["artifactID"]))
        return {"useArtifact": {"artifact": {"id": values["artifactID"]}}}

    def on_CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["artifactID"]
        file = {"id": "M", "name": values["name"], "displayName": values["name"], "uploadHeaders": [],
                "uploadUrl": f"{self.url}/manifest/{name}"}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    on_UpdateArtifactManifest = on_CreateArtifactManifest

    def on_CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for wanted in values["artifactFiles"]:
            name, path = wanted["artifactID"], wanted["name"]
            node = {"id": path, "name": path, "displayName": path, "uploadHeaders": [],
                    "uploadUrl": f"{self.url}/artifact/{name}/{path}", "storagePath": path,
                    "artifact": {"id": name}, "uploadMultipartUrls": None}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[values["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": ""}}}

    def stream(self, run: Run, sent: dict[str, Any]) -> None:
        """What the file stream of a run brings."""
        for name, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"] if name != "output.log"]
            if name == "wandb-history.jsonl":
                del run.lines[part["offset"] :]
                run.lines += lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if "exitcode" in sent:
            run.exit = sent["exitcode"]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.bodies.append(body)
            if server.fault == "hang":
                server.released.wait()
                return
            if server.fault == "error":
                self.answer(500, {"errors": [{"message": "fault"}]})
            elif self.path.endswith("/graphql"):
                asked = json.loads(body)
                self.answer(200, {"data": server.graphql(asked["query"], asked.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                server.stream(server.runs[self.path.split("/")[-2]], json.loads(body or b"{}"))
                self.answer(200, {"exitcode": None, "limits": {}})
            else:
                server.unknown.append(self.path)
                self.answer(404, {})

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.bodies.append(body)
            if self.path.startswith("/artifact/"):
                _, _, name, path = self.path.split("/", 3)
                server.artifacts[name]["files"][path] = body.decode(errors="replace")
            self.answer(200, {})

        def answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-MD5", base64.b64encode(b"0" * 16).decode())
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler
