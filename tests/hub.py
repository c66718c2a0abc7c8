"""A hub that is not real: the routes that a download uses, with breaks and pauses as a test needs them."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40
CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 512,
}


def weights(size: int) -> bytes:
    """A safetensors file of one tensor."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(256)) * (size // 256) + bytes(size % 256)


FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": weights(1000),
    "pytorch_model.bin": bytes(2000),
    "onnx/model.onnx": bytes(10),
}


@dataclass
class Hub:
    """`owner/name` and its files. Those of weights are known by their SHA-256, as on a real hub."""

    files: dict[str, bytes]
    url: str = ""
    fetched: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)  # of the requests for weights
    status: int = 200
    pause_at: int | None = None  # bytes of a file of weights, after which `resume` is waited for
    resume: threading.Event = field(default_factory=threading.Event)
    served: dict[str, bytes] = field(default_factory=dict)  # in place of what `files` has

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        lfs = {"sha256": digest(data), "oid": digest(data), "size": len(data), "pointerSize": 130}
        about = {"size": len(data), "oid": "b" * 40, "blobId": "b" * 40, "lfs": lfs if is_large(name) else None}
        return {"type": "file", "path": name, "rfilename": name, **about}

    def etag(self, name: str) -> str:
        return digest(self.files[name]) if is_large(name) else f"{len(self.files[name])}-{name.replace('/', '-')}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf", ".onnx"))


class Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Some tests disconnect."""


@contextmanager
def serving(hub: Hub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/owner/name"):
                entries = [hub.entry(name) for name in hub.files]
                found = {"id": "owner/name", "sha": COMMIT, "siblings": entries}
                self.answer(hub.status, json.dumps(entries if "/tree/" in path else found).encode())
            elif path.startswith("/owner/name/resolve/"):
                name = path.removeprefix("/owner/name/resolve/").partition("/")[2]
                if self.command == "GET":
                    hub.fetched.append(name)
                data = hub.served.get(name, hub.files[name])
                self.answer(200, data, {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT}, name)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
            range = self.headers["Range"] if status == 200 and self.command == "GET" else None
            start = int(re.findall(r"\d+", range)[0]) if range else 0
            self.send_response(206 if range else status)
            for key, value in {"Content-Length": str(len(data) - start), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.send(data[start:], is_large(name), range)

        def send(self, data: bytes, is_weights: bool, range: str | None) -> None:
            if is_weights:
                hub.ranges.append(range)
            if is_weights and hub.pause_at is not None:
                self.wfile.write(data[: hub.pause_at])
                self.wfile.flush()
                hub.resume.wait(60)
                data = data[hub.pause_at :]
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield
        finally:
            hub.resume.set()
            server.shutdown()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}


@pytest.fixture
def fake_hub() -> Iterator[Hub]:
    hub = Hub(dict(FILES))
    with serving(hub):
        yield hub


@pytest.fixture
def hub_home(fake_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of this process, which knows it already, and of those that it starts."""
    home = tmp_path / "hub"
    for name, value in environment(fake_hub, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", fake_hub.url)
    template = f"{fake_hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    return home
