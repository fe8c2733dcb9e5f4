"""A headless Chromium, driven through the DevTools protocol over a pipe: the eyes of the tests of the pages.

Messages are JSON, each ended by a zero byte, on file descriptors 3 (to the browser) and 4 (from it); no port
is opened. Everything that the page writes to its console, throws or requests is kept.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

PATIENCE = 60.0  # seconds for one answer; a hang, not a speed, is what it catches
_KEYS = {
    "Escape": 27, "Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9,
    "Home": 36, "End": 35, "PageDown": 34, " ": 32,
}  # fmt: skip


# Become the browser with the two ends of the pipes on descriptors 3 and 4, wherever they were.
_LAUNCH = (
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]; "
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find_chromium() -> str | None:
    """The first Chromium or Chrome on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page. Use as a context."""

    def __init__(self, binary: str) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        self._profile = tempfile.TemporaryDirectory(prefix="medloom-browser-", ignore_cleanup_errors=True)
        command = [
            sys.executable, "-c", _LAUNCH, str(to_child), str(from_child), binary, "--headless=new",
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 16)
            assert data, "the browser has gone"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = values["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning"):
                self.complaints.append(str([argument.get("value") for argument in values["args"]]))
            case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
                self.complaints.append(values["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, as a double click would, and wait until its script has run."""
        self.send("Page.navigate", url="about:blank")
        self.requests.clear()
        self.complaints.clear()
        self.send("Page.navigate", url=path.as_uri() + fragment)
        self.wait("document.documentElement?.dataset.ready === '1'")

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript (a promise is waited for) and give its JSON value."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        details = result.get("exceptionDetails")
        assert not details, details.get("exception", {}).get("description", details)
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true and give its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"never true: {expression}\n" + "\n".join(self.complaints)
            time.sleep(0.02)
        return value

    def settle(self) -> None:
        """Wait until the next two frames are drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def size(self, width: int, height: int, *, scale: float = 1) -> None:
        """Set the size of the window in CSS pixels."""
        values = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **values)
        self.settle()

    def prefer(self, scheme: str) -> None:
        """Ask for "light" or "dark" colours, as the system would."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.settle()

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release one key, by its DOM name."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 and key.isalnum() else 0)
        values: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **values)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)
        self.settle()

    def type(self, text: str) -> None:
        """Type into what has the focus, key by key."""
        for letter in text:
            self.press(letter)

    def click(self, selector: str, *, shift: bool = False) -> None:
        """Click the middle of the first element that matches, after scrolling to it."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        assert found, f"nothing matches {selector}"
        values = {
            "x": found[0],
            "y": found[1],
            "button": "left",
            "clickCount": 1,
            "modifiers": 8 if shift else 0,
        }
        self.send("Input.dispatchMouseEvent", type="mousePressed", **values)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **values)
        self.settle()

    def text(self, selector: str) -> str:
        """Rendered text of the first element that matches."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def screenshot(self, box: dict[str, float]) -> Image.Image:
        """What the window shows in a box {x, y, width, height, scale} of CSS pixels, as RGB."""
        data = self.send("Page.captureScreenshot", format="png", clip=box)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a screenshot (PNG) of the window, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
