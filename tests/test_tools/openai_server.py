"""A fake OpenAI server for benchmarks; each path before /v1 is a target."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


def text(content: str) -> Json:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
ANSWER = [ROLE, text("one"), text(" two three"), text(" four"), FINISH, USAGE]


def sse(*chunks: Json) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    target: str
    body: Json
    key: str | None


@dataclass
class Peer:
    """The server's behaviour, and the requests it got."""

    url: str = ""
    chunks: list[Json] = field(default_factory=lambda: ANSWER)
    status: Callable[[Json], int] = lambda body: 200
    arrived: Callable[[], object] = lambda: None  # may wait
    rest: threading.Event = field(default_factory=threading.Event)  # later chunks wait for it
    held_back: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list)

    def at(self, target: str) -> str:
        return f"{self.url}/{target}/v1"


@contextmanager
def answering(peer: Peer) -> Iterator[Peer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b'{"object": "list", "data": []}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, target, _, resource = self.path.split("/", 3)
            peer.requests.append(ReceivedRequest(target, body, self.headers["Authorization"]))
            peer.arrived()
            status = peer.status(body)
            if status != 200:
                self._answer(status, b'{"error": {"message": "no"}}')
            elif resource == "embeddings":
                self._answer(200, json.dumps({"data": [{"embedding": "AAAA"} for _ in body["input"]]}).encode())
            else:
                self._stream()

        def _stream(self) -> None:
            now = len(peer.chunks) - peer.held_back
            self._answer(200, sse(*peer.chunks[:now]))
            if peer.held_back:
                peer.rest.wait(60)
            self.wfile.write(sse(*peer.chunks[now:]) + b"data: [DONE]\n\n")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    peer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield peer
    finally:
        peer.rest.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    block_on_close = True

    def handle_error(self, *args: object) -> None:
        """Some tests disconnect."""
