"""Downloads: whole and verified or not at all, continued after cuts and kills, never two versions in one."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from medloom.data.errors import StoreError
from medloom.data.fetch import download as downloading
from medloom.data.fetch.download import Digests, Expected, download
from medloom.data.remote.stores import Patience

from ..loopback import serve

QUICK = Patience(attempts=3, timeout=5.0, wait=0.01, longest_wait=0.02)
DATA = os.urandom(3_000_000)
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA)
    with serve(folder) as running:
        running.etags = True
        yield running


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    return folder / "a.tar"


def get(server, target: Path, **keys) -> Digests:
    keys.setdefault("patience", QUICK)
    return download(f"{server.url}/a.tar", target, keys.pop("expected", Expected(md5=MD5)), **keys)


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_arrives_with_its_digests_and_nothing_else(server, target):
    assert get(server, target) == Digests(len(DATA), MD5, SHA256)
    assert target.read_bytes() == DATA
    assert left(target) == ["a.tar"]


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut", "500", "cut"], ["429", "500"], ["stall"]])
def test_faults_on_the_way_are_continued_where_they_happened(server, target, faults):
    server.faults = list(faults)
    get(server, target, patience=Patience(attempts=3, timeout=0.3, wait=0.01, longest_wait=0.02))
    assert target.read_bytes() == DATA
    assert server.sent("a.tar") == len(DATA)  # no byte came twice
    assert server.gets("a.tar") == len(faults) + 1


def test_without_ranges_a_cut_starts_again_from_the_beginning(server, target):
    server.ranges, server.faults = False, ["cut"]
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent("a.tar") == len(DATA) + len(DATA) // 2


def test_a_server_that_always_begins_again_and_is_cut_is_given_up(server, target):
    server.ranges, server.faults = False, ["cut"] * 50
    with pytest.raises(StoreError, match="times in a row"):
        get(server, target)
    assert server.gets("a.tar") < 10


def test_without_a_version_nothing_is_continued(server, target):
    server.etags, server.faults = False, ["cut"]
    get(server, target)
    assert target.read_bytes() == DATA
    assert all(not wanted for _, wanted, _ in server.seen)


def test_a_file_that_changes_between_two_parts_is_not_joined(server, target):
    server.faults = ["cut"] + ["500"] * 3
    with pytest.raises(StoreError, match="500, 3 times"):
        get(server, target)
    assert left(target) == ["a.tar.part", "a.tar.part.json"]
    other = os.urandom(2_000_000)
    (server.folder / "a.tar").write_bytes(other)
    server.faults = []
    get(server, target, expected=Expected())
    assert target.read_bytes() == other


@pytest.mark.parametrize("size", [1_000_000, 1_500_000])  # shorter than, and exactly what came already
def test_a_file_that_became_shorter_is_not_joined(server, target, size):
    server.faults = ["cut"] + ["500"] * 3
    with pytest.raises(StoreError):
        get(server, target)
    other = os.urandom(size)
    (server.folder / "a.tar").write_bytes(other)
    get(server, target, expected=Expected())
    assert target.read_bytes() == other


def test_what_came_from_another_address_is_not_used(server, target):
    server.faults = ["cut"] + ["500"] * 3
    with pytest.raises(StoreError):
        get(server, target)
    (server.folder / "b.tar").write_bytes(b"other" * 600_000)
    found = download(f"{server.url}/b.tar", target, patience=QUICK)
    assert target.read_bytes() == b"other" * 600_000
    assert found.bytes == 3_000_000


def test_a_part_whose_note_is_lost_is_not_used(server, target):
    target.with_name("a.tar.part").write_bytes(b"x" * 1000)
    get(server, target)
    assert target.read_bytes() == DATA


def test_a_wrong_file_is_fetched_once_more_and_then_refused(server, target):
    server.faults = ["wrong"]
    get(server, target)
    assert target.read_bytes() == DATA
    target.unlink()
    with pytest.raises(StoreError, match=rf"MD5 {MD5}, the catalogue says {'0' * 32}, twice"):
        get(server, target, expected=Expected(md5="0" * 32))
    assert left(target) == []


def test_a_bad_beginning_of_a_continued_file_is_found(server, target):
    server.faults = ["cut"] + ["500"] * 3
    with pytest.raises(StoreError):
        get(server, target)
    part = target.with_name("a.tar.part")
    part.write_bytes(b"\0" * part.stat().st_size)  # as a disk that lost power may leave it
    get(server, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    ("fault", "words"), [("missing", "not there any more"), ("refused", "by hand.*--from")]
)
def test_what_cannot_get_better_is_said_at_once(server, target, fault, words):
    server.missing, server.refused = ({"a.tar"} if fault == "missing" else set()), fault == "refused"
    with pytest.raises(StoreError, match=words):
        get(server, target)
    assert server.gets("a.tar") == 1


def test_nobody_there_is_said_after_some_attempts(target):
    with pytest.raises(StoreError, match=r"3 times in a row.*what was fetched is kept"):
        download("http://127.0.0.1:9/a.tar", target, patience=QUICK)


def test_a_web_page_is_not_taken_for_data(server, target):
    (server.folder / "a.tar").write_bytes(b"\n<!DOCTYPE html><title>log in</title>")
    with pytest.raises(StoreError, match="a web page instead of a file"):
        get(server, target, expected=Expected())
    assert left(target) == []


def test_redirects_are_followed_but_not_to_other_kinds_of_address(server, target):
    server.redirects = {"zenodo.tar": f"{server.url}/a.tar"}
    server.faults = ["cut"]
    download(f"{server.url}/zenodo.tar", target, Expected(md5=MD5), patience=QUICK)
    assert target.read_bytes() == DATA
    target.unlink()
    server.redirects = {"zenodo.tar": "ftp://127.0.0.1/a.tar"}
    with pytest.raises(StoreError, match="redirects to ftp://, which is not safe"):
        download(f"{server.url}/zenodo.tar", target, patience=QUICK)
    with pytest.raises(StoreError, match="not an http"):
        download("file:///etc/passwd", target, patience=QUICK)


def test_redirects_out_of_https_are_refused():
    handler = downloading._Redirects()
    request = downloading.urllib.request.Request("https://host/a?token=secret")
    with pytest.raises(StoreError, match="https://host/a: redirects to http://") as caught:
        handler.redirect_request(request, None, 302, "Found", {}, "http://host/a")
    assert "secret" not in str(caught.value)


def test_messages_hold_no_credentials(server, target, caplog):
    server.missing = {"a.tar"}
    with pytest.raises(StoreError) as caught:
        download(f"{server.url}/a.tar?signature=secret", target, patience=QUICK)
    server.missing, server.faults = set(), ["500"] * 3
    with pytest.raises(StoreError) as again:
        download(f"{server.url}/a.tar?signature=secret", target, patience=QUICK)
    assert "secret" not in f"{caught.value} {again.value} {caplog.text}"
    assert not [path for path in target.parent.iterdir() if b"secret" in path.read_bytes()]


def test_the_disk_is_looked_at_before_the_first_byte(server, target, monkeypatch):
    free = downloading.SPARE + len(DATA) + 10
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda path: type("U", (), {"free": free}))
    get(server, target)
    target.unlink()
    with pytest.raises(StoreError, match=r"no room: a.tar and what is in it takes about 0\.0 GB.*--to"):
        get(server, target, room=2.0)
    assert target.with_name("a.tar.part").stat().st_size == 0


def test_a_disk_that_fills_up_is_said_and_what_came_is_continued(server, target):
    # The kernel itself refuses to grow the file, as it does when a disk or a quota is full.
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from medloom.data.fetch.download import download\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "download(sys.argv[1], Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{server.url}/a.tar", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no room for a.tar.part (File too large) after 1 MB; free space and run the same" in done.stderr
    assert target.with_name("a.tar.part").stat().st_size == 1_000_000
    before = server.sent("a.tar")
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent("a.tar") - before == len(DATA) - 1_000_000


def test_a_killed_download_is_continued(server, target):
    server.pause = 0.02
    code = "import sys; from pathlib import Path; from medloom.data.fetch.download import download\n"
    code += "download(sys.argv[1], Path(sys.argv[2]))"
    child = subprocess.Popen([sys.executable, "-c", code, f"{server.url}/a.tar", str(target)])
    part = target.with_name("a.tar.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 500_000):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert left(target) == ["a.tar.part", "a.tar.part.json"]
    server.pause, had = 0.0, part.stat().st_size
    server.seen.clear()
    get(server, target)
    assert target.read_bytes() == DATA
    assert [wanted for _, wanted, _ in server.seen] == [f"bytes={had}-"]


def test_a_finished_part_that_was_not_renamed_is_not_fetched_again(server, target):
    part = target.with_name("a.tar.part")
    get(server, target)
    with downloading.Partial(part, f"{server.url}/a.tar") as partial:
        partial.restart(downloading.Version(total=len(DATA), validator='"v"'))
        partial.append(DATA)
    target.unlink()
    server.seen.clear()
    get(server, target)
    assert target.read_bytes() == DATA and server.seen == []


def test_proxies_of_the_environment_are_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)  # answers for any host: the path is the whole address
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(StoreError, match=r"http://data.example/a.tar: the host answers 404"):
        download("http://data.example/a.tar", target, patience=QUICK)
    assert server.seen[0][0] == "http://data.example/a.tar"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    get(server, target)
    assert target.read_bytes() == DATA


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificates_are_verified(server, target, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(server.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, args=(0.01,), daemon=True).start()
        url = f"https://localhost:{secure.server_port}/a.tar"
        with pytest.raises(StoreError, match=r"certificate cannot be verified.*SSL_CERT_FILE"):
            download(url, target, patience=QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert download(url, target, Expected(sha256=SHA256), patience=QUICK).sha256 == SHA256
        secure.shutdown()
