"""An HTTP server on the loopback for tests: ranges, and faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Loopback:
    """Serves `folder` at `url`. `faults` lists what happens to the next GETs: "cut" sends half and hangs up,
    "429" and "500" answer so, "stall" sends half and waits, "wrong" flips a bit, "ok" is none; then all is
    well.
    """

    folder: Path
    url: str = ""
    ranges: bool = True  # whether Range is understood
    faults: list[str] = field(default_factory=list)
    only: str = ""  # faults hit the files with this in their name
    missing: set[str] = field(default_factory=set)  # answered with 404
    etags: bool = False  # whether versions of files are told apart: ETag is sent, If-Range is heeded
    redirects: dict[str, str] = field(default_factory=dict)  # file -> URL, answered with 302
    refused: bool = False  # all answered with 403
    authorization: str = ""  # expected of every request
    seen: list[tuple[str, str, int]] = field(default_factory=list)  # (path, Range or "", bytes sent)
    patience: float = 30.0  # seconds that "stall" waits
    pause: float = 0.0  # seconds between two blocks of 64 kB
    stop: threading.Event = field(default_factory=threading.Event)

    def sent(self, file: str) -> int:
        """Bytes of the bodies sent of this file."""
        return sum(size for path, _, size in self.seen if path.split("?")[0].endswith(file))

    def gets(self, file: str) -> int:
        """Requests for this file."""
        return sum(1 for path, _, _ in self.seen if path.split("?")[0].endswith(file))


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Loopback]:
    """Run the server while the block runs."""
    state = Loopback(Path(folder))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            file = state.folder / self.path.split("?")[0].lstrip("/")
            fault = ""
            if body and state.faults and state.only in file.name:
                fault = state.faults.pop(0)
            if state.refused or (
                state.authorization and self.headers.get("Authorization") != state.authorization
            ):
                return self.answer(403)
            if file.name in state.redirects:
                return self.answer(302, Location=state.redirects[file.name])
            if file.name in state.missing or not file.is_file():
                return self.answer(404)
            if fault in ("429", "500"):
                return self.answer(int(fault), **{"Retry-After": "0"})
            data, wanted = file.read_bytes(), self.headers.get("Range", "") if state.ranges else ""
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            status, extra = 200, {"ETag": etag} if state.etags else {}
            if state.etags and self.headers.get("If-Range", etag) != etag:
                wanted = ""
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted):
                first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
                if first >= len(data):
                    return self.answer(416)
                status, extra = 206, extra | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
                data = data[first : last + 1]
            if fault == "wrong":
                data = bytes([*data[:-1], data[-1] ^ 1])
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | extra).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.send(data, fault)
            return None

        def send(self, data: bytes, fault: str) -> None:
            short = data[: len(data) // 2] if fault in ("cut", "stall") else data
            state.seen.append((self.path, self.headers.get("Range", ""), len(short)))
            with contextlib.suppress(OSError):
                for at in range(0, len(short), 1 << 16):
                    self.wfile.write(short[at : at + (1 << 16)])
                    time.sleep(state.pause)
                self.wfile.flush()
            if fault == "stall":
                state.stop.wait(state.patience)
            if fault in ("cut", "stall"):
                self.close_connection = True

        def answer(self, status: int, **headers: str) -> None:
            state.seen.append((self.path, "", 0))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
