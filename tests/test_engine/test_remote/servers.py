"""Servers that speak as vLLM, SGLang and llama.cpp do, from scripts, with the faults of networks."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.test_engine.fakes import END

DONE = b"data: [DONE]\n\n"


class Cut:
    """The connection breaks here."""


class Hold:
    """Nothing comes until `go` is set."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()


Step = bytes | Cut | Hold


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    body: Any
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the client has closed the connection


@dataclass
class WireServer:
    """Answers every POST with `steps`, in one body of chunks; `status` other than 200: with `error` alone."""

    pages: Mapping[str, Any]
    steps: Sequence[Step] = ()
    status: int = 200
    error: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    health: int = 200
    requests: list[Request] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def body(self) -> Any:
        """Of the newest request."""
        return self.requests[-1].body

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["WireServer"]:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            await self._page(path, writer)
            return True
        request = Request(path, headers, json.loads(body))
        self.requests.append(request)
        self.arrived.set()
        return await self._answer(request, reader, writer)

    async def _page(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path in self.pages:
            await whole(writer, 200, self.pages[path])
        else:
            await whole(writer, self.health if path.startswith("/health") else 404, {})

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.status != 200:
            await whole(writer, self.status, self.error, self.headers)
            return True
        write_head(writer)
        async with watched(reader, request) as left:
            for step in self.steps:
                if not await self._step(step, writer, left):
                    return False
            await write(writer, b"")
        return True

    async def _step(self, step: Step, writer: asyncio.StreamWriter, watching: "asyncio.Future[None]") -> bool:
        match step:
            case bytes():
                await write(writer, step)
            case Hold():
                step.reached.set()
                going = asyncio.ensure_future(step.go.wait())
                await asyncio.wait([going, watching], return_when=asyncio.FIRST_COMPLETED)
                going.cancel()
                return not watching.done()
            case Cut():
                writer.transport.abort()
                return False
        return True


def write_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """A chunk of the body; an empty one ends it."""
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()


@asynccontextmanager
async def watched(reader: asyncio.StreamReader, request: Request) -> AsyncIterator["asyncio.Future[None]"]:
    """Yields what is done once the client has left."""
    left = asyncio.ensure_future(_left(reader, request))
    try:
        yield left
    finally:
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)


async def _left(reader: asyncio.StreamReader, request: Request) -> None:
    """A client that waits for an answer sends nothing."""
    with suppress(ConnectionError):
        await reader.read(1)
    request.left.set()


async def whole(
    writer: asyncio.StreamWriter, status: int, value: object, headers: Mapping[str, str] | None = None
) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


# --- how each kind introduces itself, and how it says tokens ---


def models(owner: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "the-model", "object": "model", "owned_by": owner, **more}]}


VLLM_PAGES = {"/v1/models": models("vllm", max_model_len=48)}
PARLEY_PAGES = {"/v1/models": models("parley", max_model_len=48)}
SGLANG_PAGES = {"/v1/models": models("sglang", max_model_len=48), "/get_server_info": {"context_length": 99}}
LLAMA_PAGES = {"/v1/models": models("llamacpp"), "/props": {"default_generation_settings": {"n_ctx": 48}}}

Weighed = tuple[int, float, dict[int, float]]  # a token, its logprob, and those of the likeliest


def completions(
    *pieces: Sequence[int | Weighed],
    finish: str = "stop",
    cached: int | None = None,
    prompt: Sequence[Weighed | int] = (),
) -> list[bytes]:
    """vLLM's chunks: one for each piece, the finish with the last."""
    usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": sum(map(len, pieces)), "total_tokens": 3}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    chunks = []
    for place, piece in enumerate(pieces):
        weighed = [*(prompt if place == 0 else ()), *piece]
        choice = {
            "index": 0,
            "text": "text is not read",
            "token_ids": [_id(token) for token in piece],
            "logprobs": _openai_logprobs(weighed) if any(isinstance(token, tuple) for token in weighed) else None,
            "finish_reason": finish if place == len(pieces) - 1 else None,
        }
        chunks.append(event({"id": "cmpl-1", "object": "text_completion", "choices": [choice]}))
    return [*chunks, event({"id": "cmpl-1", "choices": [], "usage": usage}), DONE]


def _id(token: int | Weighed) -> int:
    return token if isinstance(token, int) else token[0]


def _openai_logprobs(tokens: Iterable[int | Weighed]) -> dict[str, Any]:
    """vLLM puts the token itself before the likeliest."""
    listed = list(tokens)
    return {
        "tokens": [f"token_id:{_id(token)}" for token in listed],
        "token_logprobs": [None if isinstance(token, int) else token[1] for token in listed],
        "top_logprobs": [
            None
            if isinstance(token, int)
            else {f"token_id:{i}": value for i, value in {token[0]: token[1], **token[2]}.items()}
            for token in listed
        ],
        "text_offset": [0] * len(listed),
    }


def sglang(
    *pieces: Sequence[int | Weighed],
    finish: str = "stop",
    cached: int = 0,
    incremental: bool = False,
    prompt: Sequence[Weighed | int] = (),
) -> list[bytes]:
    events, said = [], list[int | Weighed]()
    for place, piece in enumerate(pieces):
        said += piece
        shown = list(piece) if incremental else said
        meta: dict[str, Any] = {
            "id": "1",
            "finish_reason": {"type": finish} if place == len(pieces) - 1 else None,
            "prompt_tokens": 3,
            "completion_tokens": len(said),
            "cached_tokens": cached,
        }
        if any(isinstance(token, tuple) for token in said):
            meta |= _sglang_logprobs("output", shown)
        if prompt:
            meta |= _sglang_logprobs("input", prompt)
        events.append(event({"text": "not read", "output_ids": [_id(token) for token in shown], "meta_info": meta}))
    return [*events, DONE]


def _sglang_logprobs(part: str, tokens: Iterable[int | Weighed]) -> dict[str, Any]:
    listed = list(tokens)
    return {
        f"{part}_token_logprobs": [[None if isinstance(t, int) else t[1], _id(t), None] for t in listed],
        f"{part}_top_logprobs": [
            None if isinstance(t, int) else [[value, i, None] for i, value in t[2].items()] for t in listed
        ],
    }


def llama_cpp(*pieces: tuple[str, Sequence[int | Weighed], int], finish: str = "eos", cached: int = 0) -> list[bytes]:
    """Each piece: its text, the ids that are told, and how many tokens were sampled until then."""
    events = []
    for text, tokens, predicted in pieces:
        told: dict[str, Any] = {
            "index": 0,
            "content": text,
            "tokens": [_id(token) for token in tokens],
            "stop": False,
            "id_slot": 0,
            "tokens_predicted": predicted,
            "tokens_evaluated": 3,
        }
        if weighed := [token for token in tokens if isinstance(token, tuple)]:
            told["completion_probabilities"] = [
                {
                    "id": i,
                    "token": "",
                    "bytes": [],
                    "logprob": logprob,
                    "top_logprobs": [{"id": each, "token": "", "bytes": [], "logprob": v} for each, v in top.items()],
                }
                for i, logprob, top in weighed
            ]
        events.append(event(told))
    last = {"content": "", "tokens": [], "stop": True, "tokens_predicted": pieces[-1][2] if pieces else 0}
    return [*events, event({**last, "stop_type": finish, "timings": {"cache_n": cached}})]


def llama_tokens(*pieces: Sequence[int | Weighed], finish: str = "stop", cached: int = 0) -> list[bytes]:
    """Tokens that are each a text of their own."""
    tokens = [token for piece in pieces for token in piece]
    texts = ["" if token == END else "x" for token in tokens]
    parts = [(text, [token], place) for place, (text, token) in enumerate(zip(texts, tokens, strict=True), 1)]
    return llama_cpp(*parts, finish={"stop": "eos", "length": "limit"}[finish], cached=cached)


Speak = Callable[..., list[bytes]]
WIRES: dict[str, tuple[Mapping[str, Any], Speak]] = {
    "vllm": (VLLM_PAGES, completions),
    "parley": (PARLEY_PAGES, completions),
    "sglang": (SGLANG_PAGES, sglang),
    "llama.cpp": (LLAMA_PAGES, llama_tokens),
}
