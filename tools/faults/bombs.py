"""Requests within the body limit that cause much work; each may delay its sender only.

Plain values: tests send them to the app, `parley reliability` to a server. Bodies are built lazily.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

LIMIT = 16 * 1024 * 1024 - 1024  # of the content, with room for the JSON around it
CHATS = ("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/tokenize", "/v1/messages", "/api/chat")
JSON_ROUTES = (
    *CHATS,
    *("/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"),
    *("/v1/conversations", "/v1/embeddings", "/v1/batches", "/v1/uploads"),
    *("/v1/rerank", "/v1/score", "/detokenize", "/v1/messages/count_tokens", "/chat/new/message/", "/predict"),
    *("/api/generate", "/api/embed", "/api/embeddings", "/api/show"),
)


@dataclass(frozen=True, slots=True)
class Bomb:
    name: str
    path: str
    body: Callable[[], bytes]
    method: str = "POST"

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


def bombs(anywhere: Iterable[str] = JSON_ROUTES) -> Iterator[Bomb]:
    """`anywhere`: routes for bodies that are not made for a certain route."""
    for name, body in ANYWHERE.items():
        yield from (Bomb(name, path, body) for path in anywhere)  # lazily: only one body is in memory
    for path in CHATS:
        yield from _of_chats(path)
    yield from _of_texts()
    yield from _of_lists()


ANYWHERE: dict[str, Callable[[], bytes]] = {
    name: lru_cache(1)(body)
    for name, body in {
        "empty lists": lambda: _filled(b"[", b"[],", b"0]"),
        "unknown keys": lambda: _keys(1_000_000),
        "1,001 unknown keys": lambda: b'{"x":"%b",%b' % (b"a" * 100_000, _keys(1_001)[1:]),
        "numbers": lambda: _filled(b'{"input":[', b"1,", b"1]}"),
        "numbers for messages": lambda: b'{"messages":[%b1]}' % (b"1," * 500_000),
        "one long text": lambda: _filled(b'{"x":"', b"a, [b] {c}: ", b'"}'),
        "escapes": lambda: _filled(b'{"x":"', b'\\"\\\\', b'"}'),
        "fewer escapes": lambda: b'{"x":"%b"}' % (b"\\u00e9" * 2_700_000),
        "nested": lambda: b"[" * (LIMIT // 2) + b"]" * (LIMIT // 2),
    }.items()
}


def _of_chats(path: str) -> Iterator[Bomb]:
    message = b'{"role":"user","content":"a"},'
    yield Bomb("49,000 messages", path, lambda: _chat(message * 49_000))
    yield Bomb("5,000 messages", path, lambda: _chat(message * 5_000))
    yield Bomb("40,000 parts", path, lambda: _chat(_parts(40_000)))
    yield Bomb("5,000 parts", path, lambda: _chat(_parts(5_000)))
    yield Bomb(
        "one long message", path, lambda: _chat(b'{"role":"user","content":"%b"},' % _filled(b"", b"word, ", b""))
    )
    yield Bomb("schemas of tools", path, lambda: _chat(message, _tools(128, 150)))
    yield Bomb("one wide schema", path, lambda: _chat(message, _tools(1, 20_000)))


def _of_texts() -> Iterator[Bomb]:
    hi = b'"messages":[{"role":"user","content":"a"}]'
    chat = "/v1/chat/completions"
    yield Bomb("logit_bias", chat, lambda: b"{%b,%b}" % (hi, b'"logit_bias":' + _map(1_000_000, b"1")))
    yield Bomb("metadata", chat, lambda: b"{%b,%b}" % (hi, b'"metadata":' + _map(1_000_000, b'"a"')))
    yield Bomb("a schema as text", chat, lambda: b'{%b,"guided_json":"%b"}' % (hi, _filled(b"[", b"[],", b"0]")))
    yield Bomb("choices", chat, lambda: b'{%b,"guided_choice":[%b"a"]}' % (hi, b'"a",' * 1_000_000))
    yield Bomb("arguments of a call", chat, lambda: _chat(_called(_filled(b"[", b"[],", b"0]"))))
    yield Bomb("stop", chat, lambda: b'{%b,"stop":[%b"a"]}' % (hi, b'"a",' * 1_000_000))
    yield Bomb("token_strs", "/tokenize", lambda: _filled(b'{"return_token_strs":true,"prompt":"', b"a ", b'"}'))
    yield Bomb("tokens", "/tokenize", lambda: _filled(b'{"prompt":"', b"a ", b'"}'))


def _of_lists() -> Iterator[Bomb]:
    yield Bomb("token ids", "/detokenize", lambda: b'{"tokens":[%b1]}' % (b"11," * 1_000_000))
    yield Bomb("token ids", "/v1/completions", lambda: b'{"prompt":[%b1]}' % (b"11," * 1_000_000))
    yield Bomb("token ids", "/v1/embeddings", lambda: b'{"input":[%b[1]]}' % (b"[%b1]," % (b"11," * 500) * 2_000))
    yield Bomb("2,048 inputs", "/v1/embeddings", lambda: b'{"input":[%b"a"]}' % (b'"%b",' % (b"word " * 60) * 2_047))
    yield Bomb("many inputs", "/api/embed", lambda: b'{"input":[%b"a"]}' % (b'"a",' * 200_000))
    yield Bomb(
        "documents", "/v1/rerank", lambda: b'{"query":"a","documents":[%b"a"]}' % (b'"%b",' % (b"a " * 5000) * 999)
    )
    yield Bomb(
        "many documents", "/v1/rerank", lambda: b'{"query":"a","documents":[%b"a"]}' % (b'{"text":"a"},' * 40_000)
    )
    yield Bomb("pairs", "/v1/score", lambda: b'{"text_1":"a","text_2":[%b"a"]}' % (b'"a",' * 500_000))
    item = b'{"role":"user","content":"a"},'
    yield Bomb("9,000 items", "/v1/responses", lambda: b'{"input":[%b]}' % (item * 9_000).rstrip(b","))
    yield Bomb("49,000 items", "/v1/responses", lambda: b'{"input":[%b]}' % (item * 49_000).rstrip(b","))
    yield Bomb("long items", "/v1/conversations", lambda: b'{"items":[%b]}' % _items(20, 800_000))
    yield Bomb("annotations", "/v1/conversations", lambda: b'{"items":[%b]}' % _annotated(40_000))


def _filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    return start + piece * ((LIMIT - len(start) - len(end)) // len(piece)) + end


def _keys(count: int) -> bytes:
    return b"{%b}" % b",".join(b'"k%07d":1' % index for index in range(count))


def _map(count: int, value: bytes) -> bytes:
    return b"{%b}" % b",".join(b'"%d":%b' % (index, value) for index in range(count))


def _chat(messages: bytes, more: bytes = b"") -> bytes:
    return b'{"max_tokens":1,"messages":[%b]%b}' % (messages.rstrip(b","), more)


def _parts(count: int) -> bytes:
    return b'{"role":"user","content":[%b]}' % b",".join([b'{"type":"text","text":"a"}'] * count)


def _tools(count: int, properties: int) -> bytes:
    inside = b",".join(b'"p%d":{"type":"string"}' % index for index in range(properties))
    schema = b'{"type":"object","properties":{%b}}' % inside
    tool = b'{"type":"function","function":{"name":"f%d","parameters":%b}}'
    return b',"tools":[%b]' % b",".join(tool % (index, schema) for index in range(count))


def _called(arguments: bytes) -> bytes:
    call = b'{"id":"a","type":"function","function":{"name":"f","arguments":"%b"}}' % arguments
    return b'{"role":"assistant","tool_calls":[%b]}' % call


def _items(count: int, length: int) -> bytes:
    return b",".join([b'{"role":"user","content":"%b"}' % (b"word " * (length // 5))] * count)


def _annotated(count: int) -> bytes:
    part = b'{"type":"output_text","text":"a","annotations":[%b]}' % b",".join([b'{"a":1}'] * count)
    return b'{"role":"assistant","content":[%b]}' % part
