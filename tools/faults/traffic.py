"""Mixed traffic: each kind uses some routes as a client would, checks what it gets, and deletes what it has stored."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from uuid import uuid4

import orjson

from tools.faults.traffic_client import Body, Client, Wrong

TOKENS = 24
BATCH_LINES = 8
POLL_S = 0.1

Kind = Callable[[Client], Awaitable[None]]

_numbers = count()


def marked(text: str = "Say something about the sea.") -> str:
    return f"{text} {next(_numbers)} {uuid4().hex}"


def _messages() -> list[Body]:
    return [{"role": "user", "content": marked()}]


def chat(**more: Any) -> Body:
    return {"messages": _messages(), "max_tokens": TOKENS, **more}


def _check(is_well: object, what: str, seen: object) -> None:
    if not is_well:
        raise Wrong(f"{what}: {str(seen)[:200]}")


async def stored_chat(client: Client) -> None:
    answer = await client.post("/v1/chat/completions", chat(store=True))
    path = f"/v1/chat/completions/{answer['id']}"
    stored = await client.get(path)
    _check(stored["choices"][0]["message"]["content"] == answer["choices"][0]["message"]["content"], path, stored)
    await client.delete(path)


async def streamed_chat(client: Client) -> None:
    events = await client.events("/v1/chat/completions", chat(stream=True))
    _check(events[-1] == "[DONE]", "the stream of a chat completion ends with", events[-1])


async def legacy_completion(client: Client) -> None:
    await client.post("/v1/completions", {"prompt": marked(), "max_tokens": TOKENS})


async def structured_chat(client: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    shape = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    await client.post("/v1/chat/completions", chat(response_format=shape))


async def left_chat(client: Client) -> None:
    """The client leaves in the middle."""
    async for line in client.lines("POST", "/v1/chat/completions", chat(stream=True, max_tokens=200)):
        if line.startswith(b"data: "):
            return


async def responses(client: Client) -> None:
    events = await client.events("/v1/responses", {"input": marked(), "stream": True, "max_output_tokens": TOKENS})
    _check(events[-1]["type"] in ("response.completed", "response.incomplete"), "/v1/responses ends with", events[-1])
    first = events[-1]["response"]["id"]
    body = {"input": marked("And then?"), "previous_response_id": first, "max_output_tokens": TOKENS}
    second = await client.post("/v1/responses", body)
    await client.get(f"/v1/responses/{first}/input_items")
    for id in (second["id"], first):
        await client.delete(f"/v1/responses/{id}")


async def background_response(client: Client) -> None:
    body = {"input": marked(), "background": True, "max_output_tokens": TOKENS}
    id = (await client.post("/v1/responses", body))["id"]
    events = await client.events(f"/v1/responses/{id}?stream=true")
    numbers = [event["sequence_number"] for event in events]
    _check(numbers == [*range(len(numbers))], "events of a background response", numbers)
    _check((await client.get(f"/v1/responses/{id}"))["status"] != "in_progress", "a background response", id)
    await client.delete(f"/v1/responses/{id}")


async def cancelled_response(client: Client) -> None:
    body = {"input": marked(), "background": True, "max_output_tokens": 400}
    id = (await client.post("/v1/responses", body))["id"]
    await client.post(f"/v1/responses/{id}/cancel", {})
    await client.delete(f"/v1/responses/{id}")


async def conversation(client: Client) -> None:
    id = (await client.post("/v1/conversations", {"metadata": {"kind": "soak"}}))["id"]
    path = f"/v1/conversations/{id}"
    text = marked("Remember this.")
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    added = (await client.post(f"{path}/items", {"items": [item]}))["data"][0]["id"]
    await client.events("/v1/chat/completions", chat(conversation=id, stream=True))
    listed = await client.get(f"{path}/items?limit=100&order=asc")
    _check(len(listed["data"]) == 3, "items of a conversation", listed)
    found = await client.get(f"/v1/conversations/search?query={text.split()[-1]}")
    _check(found["data"], "search", text)
    await client.get("/v1/conversations?limit=20")
    await client.delete(f"{path}/items/{added}")
    await client.delete(path)


async def simple_routes(client: Client) -> None:
    message = await client.post("/chat/new/message/", {"prompt": marked(), "max_tokens": TOKENS})
    await client.get(f"/chat/get/messages/?conversation_id={message['conversation_id']}")
    await client.delete(f"/v1/conversations/{message['conversation_id']}")
    await client.post("/predict", {"prompt": marked(), "max_tokens": TOKENS})


async def event_source(client: Client) -> None:
    events = [each async for each in client.lines("GET", f"/chat/stream?prompt=sea+{uuid4().hex}&max_tokens={TOKENS}")]
    _check(b"event: done" in events, "/chat/stream ends with", events[-3:])


async def vectors(client: Client) -> None:
    answer = await client.post("/v1/embeddings", {"input": [marked(), marked()]})
    _check(len(answer["data"]) == 2, "embeddings", answer)
    await client.post("/v1/rerank", {"query": "sea", "documents": [marked(), marked()]})
    await client.post("/v1/score", {"text_1": "sea", "text_2": [marked()]})


async def tokens(client: Client) -> None:
    ids = (await client.post("/tokenize", {"prompt": marked()}))["tokens"]
    await client.post("/detokenize", {"tokens": ids})
    await client.post("/v1/chat/completions/input_tokens", {"messages": _messages()})
    await client.post("/v1/responses/input_tokens", {"input": marked()})


async def files(client: Client) -> None:
    content = marked().encode() * 500
    id = await client.upload("notes.txt", content, "user_data")
    found = await client.get(f"/v1/files/{id}/content")
    _check(found["text"].encode() == content, "the content of a file", len(found["text"]))
    await client.get("/v1/files")
    await client.delete(f"/v1/files/{id}")


async def anthropic(client: Client) -> None:
    body = {"model": "default", "max_tokens": TOKENS, "messages": _messages()}
    await client.post("/v1/messages", body)
    events = await client.events("/v1/messages", {**body, "stream": True})
    _check(events[-1]["type"] == "message_stop", "/v1/messages ends with", events[-1])
    await client.post("/v1/messages/count_tokens", {"model": "default", "messages": _messages()})


async def ollama(client: Client) -> None:
    options = {"num_predict": TOKENS}
    body = {"model": "default", "messages": _messages(), "options": options}
    lines = [orjson.loads(line) async for line in client.lines("POST", "/api/chat", body) if line]
    _check(lines[-1].get("done"), "/api/chat ends with", lines[-1])
    await client.post("/api/generate", {"model": "default", "prompt": marked(), "stream": False, "options": options})
    await client.get("/api/tags")


async def refused(client: Client) -> None:
    await client.call("POST", "/v1/chat/completions", {"messages": []}, status=400)
    await client.call("GET", f"/v1/responses/resp_{uuid4().hex}", status=404)
    await client.call("POST", "/v1/chat/completions", chat(temperature=9), status=400)


async def overview(client: Client) -> None:
    for path in ("/health", "/health/ready", "/metrics", "/v1/models", "/chat", "/v1/conversations"):
        await client.get(path)


async def batch(client: Client) -> None:
    lines = [
        orjson.dumps({"custom_id": str(each), "method": "POST", "url": "/v1/chat/completions", "body": chat()})
        for each in range(BATCH_LINES)
    ]
    source = await client.upload("batch.jsonl", b"\n".join(lines), "batch")
    body = {"input_file_id": source, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = await client.post("/v1/batches", body)
    while made["status"] not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(POLL_S)
        made = await client.get(f"/v1/batches/{made['id']}")
    _check(made["request_counts"]["completed"] == BATCH_LINES, "a batch", made)
    output = await client.get(f"/v1/files/{made['output_file_id']}/content")
    _check(len(output["text"].splitlines()) == BATCH_LINES, "the output of a batch", output)
    for id in (made["output_file_id"], source):
        await client.delete(f"/v1/files/{id}")


KINDS: tuple[Kind, ...] = (
    stored_chat,
    streamed_chat,
    legacy_completion,
    structured_chat,
    left_chat,
    responses,
    background_response,
    cancelled_response,
    conversation,
    simple_routes,
    event_source,
    vectors,
    tokens,
    files,
    anthropic,
    ollama,
    refused,
    overview,
)
