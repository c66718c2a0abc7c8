"""Clients that write in loops, each in its own way, and record acknowledged writes in the ledger."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import ClientError, ClientResponse, ClientSession

from tools.faults.ledger import Body, Ledger, RepeatedRequest

Writer = Callable[[ClientSession, Ledger], Awaitable[None]]

TOKENS = 24
ITEMS = "/v1/conversations/{}/items?limit=100&order=asc"


class Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


async def stored_completions(client: ClientSession, ledger: Ledger) -> None:
    body = _chat(store=True)
    answer = await _post(client, "/v1/chat/completions", body)
    text = answer["choices"][0]["message"]["content"]
    ledger.promise(
        "stored completion",
        f"/v1/chat/completions/{answer['id']}",
        lambda found: bool(found["choices"][0]["message"]["content"] == text),
    )


async def streamed_turns(client: ClientSession, ledger: Ledger) -> None:
    """The input is durable before the first chunk, the answer before the last one."""
    conversation = (await _post(client, "/v1/conversations", {}))["id"]
    path = ITEMS.format(conversation)
    for number in range(3):
        body = _chat(conversation=conversation, stream=True)
        question, text = body["messages"][0]["content"], ""
        async for chunk in _events(client, "/v1/chat/completions", body):
            ledger.promise("question", path, _says(question))
            text += chunk["choices"][0]["delta"].get("content") or ""
        ledger.promise(f"turn {number}", path, _says(question, text))


async def responses(client: ClientSession, ledger: Ledger) -> None:
    body = {"input": _marked("Say it."), "stream": True, "max_output_tokens": TOKENS}
    async for event in _events(client, "/v1/responses", body):
        match event:
            case {"type": "response.created", "response": {"id": id}}:
                ledger.promise("response", f"/v1/responses/{id}", _is_over)
            case {"type": "response.completed" | "response.incomplete", "response": {"id": id, "output": output}}:
                ledger.promise("response", f"/v1/responses/{id}", _has_output(output))


async def background_responses(client: ClientSession, ledger: Ledger) -> None:
    body = {"input": _marked("Say it later."), "background": True, "max_output_tokens": TOKENS}
    answer = await _post(client, "/v1/responses", body)
    path = f"/v1/responses/{answer['id']}"
    ledger.promise("background response", path, _is_over)
    while not _is_over(answer):
        await asyncio.sleep(0.1)
        async with client.get(path) as response:
            answer = await _whole(response)
    ledger.promise("background response", path, _has_output(answer["output"]))


async def items(client: ClientSession, ledger: Ledger) -> None:
    conversation = (await _post(client, "/v1/conversations", {}))["id"]
    for _ in range(5):
        text = _marked("An item.")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        answer = await _post(client, f"/v1/conversations/{conversation}/items", {"items": [item]})
        path = f"/v1/conversations/{conversation}/items/{answer['data'][0]['id']}"
        ledger.promise("item", path, _has_text(text))


async def changes(client: ClientSession, ledger: Ledger) -> None:
    """Increments metadata, and deletes the completion at the end."""
    conversation = (await _post(client, "/v1/conversations", {"metadata": {"count": "0"}}))["id"]
    path = f"/v1/conversations/{conversation}"
    for count in range(1, 5):
        await _post(client, path, {"metadata": {"count": str(count)}})
        # a later change may have been stored without being acknowledged
        ledger.promise("change", path, _counts_to(count))
    ledger.promises.pop(path, None)  # from here on both outcomes are correct
    async with client.delete(path) as response:
        await _whole(response)
    ledger.promise("deletion", path, None)


async def repeats(client: ClientSession, ledger: Ledger) -> None:
    """Each request has an idempotency key; the one that a crash leaves unanswered is repeated afterwards."""
    repeat = RepeatedRequest("/v1/chat/completions", _chat(store=True, metadata={"once": uuid4().hex}), uuid4().hex)
    ledger.repeats.append(repeat)
    await _post(client, repeat.path, repeat.body, repeat.key)


async def unstored(client: ClientSession, ledger: Ledger) -> None:
    """Unstored requests, which must work without the database."""
    await _post(client, "/v1/chat/completions", _chat())
    ledger.num_acknowledged += 1


STORING: tuple[Writer, ...] = (
    stored_completions,
    streamed_turns,
    responses,
    background_responses,
    items,
    changes,
    repeats,
)


async def without_end(writer: Writer, client: ClientSession, ledger: Ledger) -> None:
    """Runs until the connection breaks."""
    while True:
        try:
            await writer(client, ledger)
        except Refused as refused:
            ledger.refused(refused.status)
        except (ClientError, OSError, ValueError):  # interrupted in the middle of an answer
            return


async def resend(repeat: RepeatedRequest, client: ClientSession) -> int:
    """Repeats the request; returns how often it is stored."""
    await _post(client, repeat.path, repeat.body, repeat.key)
    once = repeat.body["metadata"]["once"]
    async with client.get(f"/v1/chat/completions?metadata[once]={once}") as response:
        return len((await _whole(response))["data"])


async def _post(client: ClientSession, path: str, body: Body, key: str | None = None) -> Body:
    async with client.post(path, json=body, headers={"Idempotency-Key": key} if key else {}) as response:
        return await _whole(response)


async def _whole(response: ClientResponse) -> Body:
    if response.status != 200:
        raise Refused(response.status)
    found: Body = await response.json()
    return found


async def _events(client: ClientSession, path: str, body: Body) -> AsyncIterator[Body]:
    async with client.post(path, json=body) as response:
        if response.status != 200:
            raise Refused(response.status)
        async for line in response.content:
            if line.startswith(b"data: {"):
                event: Body = orjson.loads(line.removeprefix(b"data: "))
                if "error" in event and "choices" not in event and "type" not in event:
                    raise Refused(503)
                yield event


_numbers = itertools.count()


def _marked(text: str) -> str:
    return f"{text} {next(_numbers)} {uuid4().hex}"


def _chat(**more: Any) -> Body:
    return {"messages": [{"role": "user", "content": _marked("Say something.")}], "max_tokens": TOKENS, **more}


def _says(*texts: str) -> Callable[[Body], bool]:
    def kept(found: Body) -> bool:
        there = ["".join(part.get("text", "") for part in item["content"]) for item in found["data"]]
        return all(text in there for text in texts)

    return kept


def _has_text(text: str) -> Callable[[Body], bool]:
    return lambda found: bool(found["content"][0]["text"] == text)


def _counts_to(count: int) -> Callable[[Body], bool]:
    return lambda found: int(found["metadata"]["count"]) >= count


def _is_over(found: Body) -> bool:
    return found["status"] not in ("queued", "in_progress")


def _has_output(output: object) -> Callable[[Body], bool]:
    return lambda found: bool(found["output"] == output)
