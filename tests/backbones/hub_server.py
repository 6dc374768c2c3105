"""A hub on 127.0.0.1 that answers the real client as the true one does, and fails as it is told to."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

COMMIT = "c" * 40
CHUNK = 1 << 20


@dataclass
class FakeHub:
    """Hold what the hub serves, how it fails, and what it was asked."""

    endpoint: str
    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None
    """Status and error code of every answer."""
    silent: bool = False
    """Take connections, and answer none."""
    cuts: list[int] = field(default_factory=list)
    """How many bytes the next downloads send before they break off."""
    corrupt: bool = False
    """Send one wrong byte, late in the file."""
    plain: bool = False
    """Ignore Range, and send everything."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def store(self) -> str:
        """Where large files lie: for the client another host, which is not asked in its HEAD."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def ranges(self) -> list[str | None]:
        """The ranges of the downloads."""
        return [ranged for method, path, ranged in self.asked if method == "GET" and path.startswith("/cdn")]


class Handler(BaseHTTPRequestHandler):
    """Answer ``/REPO/resolve/REVISION/FILE`` with a redirect to ``/cdn/FILE``, as the hub does for large files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        hub = self.server.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if hub.silent:
            hub.over.wait(20)
            self.close_connection = True
        elif hub.refuse:
            self.head(hub.refuse[0], {"X-Error-Code": hub.refuse[1], "X-Error-Message": "as told"})
        elif self.path.startswith("/cdn/"):
            self.send_bytes(hub, Path(self.path.removeprefix("/cdn")))
        else:
            self.redirect(hub)

    def redirect(self, hub: FakeHub) -> None:
        repo, _, rest = self.path[1:].partition("/resolve/")
        name = rest.partition("/")[2]
        path = hub.files.get((repo, name))
        if all(repo != known for known, _ in hub.files):
            self.head(401, {"X-Error-Code": "RepoNotFound"})
        elif path is None:
            self.head(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            linked = {"X-Linked-Etag": f'"{sha256(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            self.head(302, {"X-Repo-Commit": COMMIT, "Location": f"{hub.store}/cdn{path}", **linked})

    def head(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()

    def send_bytes(self, hub: FakeHub, path: Path) -> None:
        size, start = path.stat().st_size, 0
        ranged = self.headers.get("Range")
        if ranged and not hub.plain:
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
            self.head(206, {"Content-Range": f"bytes {start}-{size - 1}/{size}", "ETag": '"x"'}, size - start)
        else:
            self.head(200, {"Accept-Ranges": "bytes", "ETag": '"x"'}, size)
        left = hub.cuts.pop(0) if hub.cuts else size - start
        self.close_connection = left < size - start
        with path.open("rb") as file, suppress(ConnectionError):
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                if hub.corrupt and file.tell() == size:
                    chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
                self.wfile.write(chunk)


SUMS: dict[Path, str] = {}


def sha256(path: Path) -> str:
    """The digest of a served file, computed once."""
    if path not in SUMS:
        with path.open("rb") as file:
            SUMS[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return SUMS[path]


@contextmanager
def serving(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a hub, and point the client at it and at a cache of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = server.hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            for module in (constants, file_download):  # old clients keep copies, and have no xet
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        try:
            yield hub
        finally:
            hub.over.set()
            server.shutdown()
