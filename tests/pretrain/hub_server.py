"""A Hugging Face hub on the loopback for tests: downloads, uploads and faults through huggingface_hub itself.

Follows the hub where huggingface_hub looks: commits, ETags, large files by redirect to another host without
the login, gated and private repositories, X-Error-Code. There is no Xet store.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".onnx", ".pth", ".bin")  # kept beside git, as the hub's .gitattributes says


@dataclass
class Repository:
    """Commits (sha -> files) of one repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    gated: bool = False  # files only for `Hub.members`
    private: bool = False  # as if it were not there, except for `Hub.tokens`
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        """A new commit that holds exactly these files; returns its sha."""
        named = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([self.head, len(self.commits), named]).encode()).hexdigest()
        self.commits[sha], self.head = dict(files), sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        """The sha behind `main` or a sha; None: there is none."""
        return self.head if revision == "main" else revision if revision in self.commits else None


@dataclass
class Hub:
    """The state of the server. `faults` lists what happens to the next GETs of files: "cut" sends half and
    hangs up, "stall" sends half and waits, "wrong" flips a bit, "401", "403", "429" and "500" answer so, "ok"
    is none; then all is well.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=lambda: {"hf_known"})  # who may push, and see what is private
    members: set[str] = field(default_factory=set)  # tokens with access to gated repositories
    faults: list[str] = field(default_factory=list)
    only: str = ""  # faults hit the paths with this in them, those of the API ("/api/") included
    patience: float = 30.0  # seconds that "stall" waits
    pause: float = 0.0  # seconds between two blocks of 4 kB
    seen: list[tuple[str, str, int]] = field(default_factory=list)  # (method, path, status)
    authorized: list[str] = field(default_factory=list)  # paths of the requests that carried a login
    objects: dict[str, bytes] = field(default_factory=dict)  # large files that were sent, by sha256
    stop: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, folder: Path, **options: Any) -> str:
        """A repository `org/name` with the files of a folder, or its next commit; returns the sha."""
        repository = self.repositories.setdefault(name, Repository(**options))
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return repository.commit({str(path.relative_to(folder)): path.read_bytes() for path in files})

    def files(self, name: str) -> dict[str, bytes]:
        """What the newest commit holds."""
        return self.repositories[name].commits[self.repositories[name].head]

    def gets(self, part: str) -> int:
        """GETs of paths with this in them."""
        return sum(1 for method, path, _ in self.seen if method == "GET" and part in path)

    def environment(self, cache: Path, token: str = "", **more: str) -> dict[str, str]:
        """Variables for a process whose huggingface_hub talks to this hub alone."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE_"))}
        chosen = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
        login = {"HF_TOKEN": token} if token else {}
        return {**inherited, **chosen, "HF_HUB_DISABLE_XET": "1", **login, **more}

    def visit(self, monkeypatch: pytest.MonkeyPatch, cache: Path, token: str = "") -> None:
        """Let the huggingface_hub of this process talk to this hub alone, with an empty cache."""
        from huggingface_hub import constants

        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
            monkeypatch.delenv(name)
        for name, value in self.environment(cache, token).items():
            if name.startswith("HF_"):
                monkeypatch.setenv(name, value)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, changed in (
            ("ENDPOINT", self.url), ("HUGGINGFACE_CO_URL_TEMPLATE", template), ("HF_HUB_OFFLINE", False),
            ("HF_HUB_CACHE", str(cache / "hub")), ("HF_HUB_DISABLE_XET", True),
            ("HF_TOKEN_PATH", str(cache / "token")),
        ):  # fmt: skip
            monkeypatch.setattr(constants, name, changed)


class Answer(Exception):
    """What a request gets."""

    def __init__(self, status: int, body: Any = b"", error: str = "", **headers: str) -> None:
        super().__init__(status)
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers = named | ({"X-Error-Code": error, "X-Error-Message": error} if error else {})


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the hub while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token:
            hub.authorized.append(path)
        file = "/resolve/" in path or path.startswith("/cdn/")
        due = self.command == "GET" and hub.faults and (hub.only in path if hub.only else file)
        fault = hub.faults.pop(0) if due else ""
        try:
            if fault.isdigit():
                raise Answer(int(fault), error="", Retry_After="0")
            self.route(path)
            raise Answer(404)
        except Answer as answer:
            hub.seen.append((self.command, path, answer.status))
            self.send(answer, fault if file else "")

    do_HEAD = do_GET = do_POST = do_PUT = handle_one

    def route(self, path: str) -> None:
        """Raises the Answer."""
        name = r"([\w.-]+/[\w.-]+)"
        if found := re.fullmatch(rf"/{name}/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups())
        elif path.startswith("/cdn/"):
            self.ranged(self.state.objects[path.split("/")[2]])
        elif found := re.fullmatch(rf"/api/models/{name}(?:/revision/([^/]+))?", path):
            self.describe(found[1], found[2] or "main")
        elif found := re.fullmatch(rf"/api/models/{name}/tree/([^/]+)", path):
            self.tree(found[1], found[2])
        elif path == "/api/whoami-v2":
            self.signed_in()
            raise Answer(
                200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}}
            )
        elif self.command != "GET":
            self.write(path, name)

    def repository(self, name: str) -> Repository:
        found = self.state.repositories.get(name)
        if found is None or (found.private and self.token not in self.state.tokens):
            raise Answer(404 if self.token else 401, error="RepoNotFound")
        return found

    def at(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(name)
        sha = repository.resolve(revision)
        if sha is None:
            raise Answer(404, error="RevisionNotFound")
        return repository, sha

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository, sha = self.at(name, revision)
        if repository.gated and self.token not in self.state.members:
            raise Answer(403 if self.token else 401, error="GatedRepo")
        data = repository.commits[sha].get(file)
        if data is None:
            raise Answer(404, error="EntryNotFound", X_Repo_Commit=sha)
        if not file.endswith(LARGE):
            self.ranged(data, X_Repo_Commit=sha, ETag=f'"{_blob(data)}"')
        digest = hashlib.sha256(data).hexdigest()
        self.state.objects[digest] = data
        elsewhere = self.state.url.replace("127.0.0.1", "localhost")
        raise Answer(
            302, X_Repo_Commit=sha, X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(data)),
            Location=f"{elsewhere}/cdn/{digest}/{file}",
        )  # fmt: skip

    def ranged(self, data: bytes, **headers: str) -> None:
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            part = f"bytes {first}-{last}/{len(data)}"
            raise Answer(206, data[first : last + 1], Content_Range=part, **headers)
        raise Answer(200, data, **headers)

    def describe(self, name: str, revision: str) -> None:
        repository, sha = self.at(name, revision)
        files = [{"rfilename": file} for file in sorted(repository.commits[sha])]
        facts = {"private": repository.private, "gated": "manual" if repository.gated else False}
        raise Answer(200, {"_id": "0", "id": name, "modelId": name, "sha": sha, "siblings": files, **facts})

    def tree(self, name: str, revision: str) -> None:
        repository, sha = self.at(name, revision)
        rows: list[dict[str, Any]] = []
        for file, data in sorted(repository.commits[sha].items()):
            digest = hashlib.sha256(data).hexdigest()
            large = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 134}}
            row = {"type": "file", "path": file, "size": len(data), "oid": _blob(data)}
            rows.append(row | (large if file.endswith(LARGE) else {}))
        raise Answer(200, rows)

    def signed_in(self) -> None:
        if self.token not in self.state.tokens:
            raise Answer(401, {"error": "Invalid username or password."})

    def write(self, path: str, name: str) -> None:
        if path == "/api/validate-yaml":
            raise Answer(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.state.objects[path.split("/")[2]] = self.sent
            raise Answer(200)
        self.signed_in()
        if path == "/api/repos/create":
            wanted = json.loads(self.sent)
            full = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
            if full in self.state.repositories:
                raise Answer(409, {"url": f"{self.state.url}/{full}"})
            self.state.repositories[full] = Repository(private=bool(wanted.get("private")))
            self.state.repositories[full].commit({".gitattributes": b""}, "initial commit")
            raise Answer(200, {"url": f"{self.state.url}/{full}", "name": full, "id": full})
        if found := re.fullmatch(rf"/api/models/{name}/preupload/[^/]+", path):
            self.repository(found[1])
            paths = [file["path"] for file in json.loads(self.sent)["files"]]
            modes = [{"path": file, "uploadMode": "lfs" if file.endswith(LARGE) else "regular",
                      "shouldIgnore": False} for file in paths]  # fmt: skip
            raise Answer(200, {"files": modes})
        if re.fullmatch(rf"/{name}\.git/info/lfs/objects/batch", path):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.state.url}/lfs/{item['oid']}"}}}
                for item in json.loads(self.sent)["objects"]
            ]
            raise Answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(rf"/api/models/{name}/commit/[^/]+", path):
            self.take_commit(found[1])

    def take_commit(self, name: str) -> None:
        repository = self.repository(name)
        files, message = dict(repository.commits.get(repository.head, {})), ""
        for line in self.sent.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(files, message)
        url = f"{self.state.url}/{name}/commit/{sha}"
        raise Answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def send(self, answer: Answer, fault: str) -> None:
        body = answer.body
        if fault == "wrong" and body:
            body = bytes([*body[:-1], body[-1] ^ 1])
        self.send_response(answer.status)
        for key, value in ({"Content-Length": str(len(body))} | answer.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        short = body[: len(body) // 2] if fault in ("cut", "stall") else body
        with contextlib.suppress(OSError):
            for start in range(0, len(short), 1 << 12):
                self.wfile.write(short[start : start + (1 << 12)])
                time.sleep(self.state.pause)
            self.wfile.flush()
        if fault == "stall":
            self.state.stop.wait(self.state.patience)
        if fault in ("cut", "stall"):
            self.close_connection = True


def _blob(data: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
