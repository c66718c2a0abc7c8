"""With two keys: alpha stores one object of each kind, and beta tries to reach them by id, on every route and list."""

import re
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from aiohttp import ClientResponse, ClientSession, FormData

from tools.attacks.routes import Route, routes
from tools.attacks.target import Finding, Target

SECRET = "xylophonist"
PIN = "802651"
KNOWN = "These are the minutes of a meeting on the locks of the building. The number of the safe in the cellar is:"
LISTS = (
    *(
        "/v1/files",
        "/v1/batches",
        "/v1/conversations?limit=100",
        "/v1/chat/completions?limit=100",
        "/chat/get/messages/?limit=1000",
        "/metrics",
    ),
    *(f"/v1/conversations/search?query={SECRET}", "/v1/conversations/search?query=x*", "/v1/models", "/chat"),
    *(f"/v1/chat/completions?metadata[about]={SECRET}", "/v1/conversations?limit=100&after=", "/v1/responses"),
)
BODIES: dict[str, dict[str, Any]] = {
    "metadata": {"metadata": {"taken": "over"}},
    "items": {"items": [{"role": "user", "content": "taken over"}]},
}


@dataclass(slots=True)
class Stored:
    """Objects stored by alpha: ids by path parameter, and the paths where alpha reads them."""

    ids: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)

    def reveals(self, text: str) -> bool:
        return SECRET in text or PIN in text


async def isolation(target: Target, finding: Finding) -> None:
    async with target.client(target.alpha) as alpha, target.client(target.beta) as beta:
        stored = await _store(alpha)
        before = await _snapshot(alpha, stored)
        await _by_every_id(target, beta, stored, finding)
        await _lists(beta, stored, finding)
        await _named(beta, stored, finding)
        await _streams(target, alpha, beta, stored, finding)
        await _repeated(alpha, beta, finding)
        finding.check(await _snapshot(alpha, stored) == before, "what alpha has stored was changed")
        await _pin(alpha, beta, finding)
        for place in stored.places:
            await (await alpha.delete(place)).release()


async def _store(alpha: ClientSession) -> Stored:
    messages = [{"role": "user", "content": f"My secret: {SECRET}"}]
    about = {"about": SECRET}
    conversation = await _post(alpha, "/v1/conversations", items=messages, metadata=about, title=SECRET)
    chat = {"messages": messages, "max_tokens": 4, "metadata": about}
    completion = await _post(alpha, "/v1/chat/completions", **chat, store=True)
    response = await _post(alpha, "/v1/responses", input=SECRET, max_output_tokens=16)
    later = await _post(alpha, "/v1/responses", input=SECRET, max_output_tokens=16, background=True)
    file = await _upload(alpha)
    message = await _post(alpha, "/chat/new/message/", prompt=SECRET, max_tokens=4)
    places = [
        *(f"/v1/responses/{each['id']}" for each in (later, response)),
        *(f"/v1/chat/completions/{completion['id']}", f"/v1/conversations/{conversation['id']}"),
        *(f"/v1/conversations/{message['conversation_id']}", f"/v1/files/{file}"),
    ]
    items = await _json(await alpha.get(f"{places[3]}/items"))
    ids = {
        "conversation": conversation["id"],
        "item": items["data"][0]["id"],
        "completion": completion["id"],
        "response": response["id"],
        "background": later["id"],
        "message": message["message_id"],
        "messages_conversation": message["conversation_id"],
        "file": file,
    }
    return Stored(ids, places)


async def _upload(alpha: ClientSession) -> str:
    form = FormData({"purpose": "user_data"})
    form.add_field("file", SECRET.encode(), filename="secret.txt")
    async with alpha.post("/v1/files", data=form) as answer:
        return str((await _json(answer))["id"])


async def _snapshot(alpha: ClientSession, stored: Stored) -> list[Any]:
    """A running response changes by itself, so only its existence is compared."""
    later, *others = stored.places
    there = (await alpha.get(later)).status, await (await alpha.get(f"{others[-1]}/content")).text()
    paths = [*others, *(f"{place}/items" for place in others if "conversations" in place), f"{others[0]}/input_items"]
    return [there, *[await _json(await alpha.get(path)) for path in paths]]


async def _by_every_id(target: Target, beta: ClientSession, stored: Stored, finding: Finding) -> None:
    """Each id in each path parameter, also where routes do not expect it."""
    taking = [each for each in await routes(target) if "{" in each.path and "{model" not in each.path]
    for route, id in list(product(taking, stored.ids.values()))[:: target.every]:
        there, missing = [await _ask(beta, route, _path(route, stored, each)) for each in (id, _unknown(id))]
        what = f"{route.method} {_path(route, stored, id)}"
        finding.check(there[0] in (400, 404, 405) and not stored.reveals(there[1]), what, there)
        tells = there[0] != missing[0] or there[1].replace(id, "") != missing[1].replace(_unknown(id), "")
        finding.check(not tells, f"{what} tells that it is there", f"{there} / {missing}")


def _path(route: Route, stored: Stored, id: str) -> str:
    """`id` as the first parameter, an object below it as the second."""
    first = re.sub(r"{[^}]*}", id, route.path, count=1)
    return re.sub(r"{[^}]*}", stored.ids["item"], first)


def _unknown(id: str) -> str:
    """An unknown id of the same form."""
    start = max(id.rfind("_"), id.rfind("-")) + 1
    return id[:start] + "0" * len(id[start:])


async def _ask(client: ClientSession, route: Route, path: str) -> tuple[int, str]:
    body = BODIES["items" if path.endswith("/items") else "metadata"] if route.has_body else None
    async with client.request(route.method, path, json=body) as answer:
        return answer.status, await answer.text()


async def _lists(beta: ClientSession, stored: Stored, finding: Finding) -> None:
    afters = [
        f"{path}{mark}after={id}"
        for (path, mark), id in product(
            (
                ("/v1/conversations", "?"),
                ("/v1/chat/completions", "?"),
                ("/chat/get/messages/", "?"),
                ("/v1/files", "?"),
                ("/v1/batches", "?"),
                (f"/v1/conversations/search?query={SECRET}", "&"),
            ),
            (*stored.ids.values(), f"{stored.ids['conversation']}:{stored.ids['item']}"),
        )
    ]
    for path in [*LISTS, *afters]:
        async with beta.get(path) as answer:
            text = await answer.text()
        shown = any(id in text for id in stored.ids.values()) and answer.status < 400
        echoes_the_query = SECRET in path and answer.status >= 400
        finding.check(not shown and (echoes_the_query or not stored.reveals(text)), f"GET {path}", text)


async def _named(beta: ClientSession, stored: Stored, finding: Finding) -> None:
    """Ids in bodies and queries."""
    messages = [{"role": "user", "content": "And?"}]
    for id in stored.ids.values():
        for path, body in (
            ("/v1/chat/completions", {"messages": messages, "conversation": id, "max_tokens": 1}),
            ("/v1/chat/completions/input_tokens", {"messages": messages, "conversation": id}),
            ("/v1/responses", {"input": "And?", "conversation": id, "max_output_tokens": 16}),
            ("/v1/responses", {"input": "And?", "conversation": {"id": id}, "max_output_tokens": 16}),
            ("/v1/responses", {"input": "And?", "previous_response_id": id, "max_output_tokens": 16}),
            ("/v1/responses", {"input": [{"type": "item_reference", "id": id}], "max_output_tokens": 16}),
            ("/v1/responses/input_tokens", {"input": "And?", "previous_response_id": id}),
            ("/v1/responses/input_tokens", {"input": "And?", "conversation": id}),
            ("/chat/new/message/", {"prompt": "And?", "conversation_id": id, "max_tokens": 1}),
        ):
            async with beta.post(path, json=body) as answer:
                text = await answer.text()
            finding.check(answer.status in (400, 404), f"POST {path} {body}", f"{answer.status} {text}")
        for path in ("/chat/get/messages/", "/chat/stream?prompt=x&max_tokens=1"):
            async with beta.get(f"{path}{'&' if '?' in path else '?'}conversation_id={id}") as answer:
                finding.check(answer.status in (400, 404), f"GET {path} of {id}", await answer.text())


async def _streams(target: Target, alpha: ClientSession, beta: ClientSession, stored: Stored, finding: Finding) -> None:
    token = (await _post(beta, "/chat/token"))["token"]
    async with target.client() as nobody:
        for id, seen in product(stored.ids.values(), ("0", "1", "end")):
            there, missing = [await _resumed(nobody, token, f"{each}:{seen}") for each in (id, _unknown(id))]
            what = f"/chat/stream from {id}:{seen} on, by beta's token"
            finding.check(there[0] in (400, 404) or there == missing == (204, ""), what, there)
    for id in stored.ids.values():
        for query in ("stream=true", "stream=true&starting_after=0", "include[]=reasoning.encrypted_content"):
            async with beta.get(f"/v1/responses/{id}?{query}") as answer:
                finding.check(answer.status in (400, 404), f"GET /v1/responses/{id}?{query}", await answer.text())


async def _resumed(client: ClientSession, token: str, event: str) -> tuple[int, str]:
    async with client.get(f"/chat/stream?prompt=-&token={token}", headers={"Last-Event-ID": event}) as answer:
        return answer.status, await answer.text()


async def _repeated(alpha: ClientSession, beta: ClientSession, finding: Finding) -> None:
    """An Idempotency-Key of alpha must have no effect for beta."""
    body = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2, "store": True}
    path, ids = "/v1/chat/completions", []
    for client in (alpha, beta):
        async with client.post(path, json=body, headers={"Idempotency-Key": "a-key-of-alphas"}) as answer:
            ids.append((await _json(answer)).get("id"))
    finding.check(ids[0] != ids[1], "beta was given alpha's answer for its Idempotency-Key")
    for client, id in zip((alpha, beta), ids, strict=True):
        await (await client.delete(f"{path}/{id}")).release()


async def _pin(alpha: ClientSession, beta: ClientSession, finding: Finding) -> None:
    """cached_tokens must not reveal another key's prompts; it shows one's own, which proves that the test works."""
    await _cached(alpha, f"{KNOWN}{PIN}. Keep it well.")
    for length in range(len(PIN)):
        await _cached(beta, f"{KNOWN}{PIN[:length]}x")  # beta's own prompt may be cached
        counts = {digit: await _cached(beta, f"{KNOWN}{PIN[:length]}{digit}x") for digit in "0123456789"}
        finding.check(len({*counts.values()}) == 1, f"cached_tokens tell digit {length} of the PIN", counts)
    finding.notes["cached of alpha's own"] = await _cached(alpha, f"{KNOWN}{PIN}x")


async def _cached(client: ClientSession, prompt: str) -> int:
    usage = (await _post(client, "/v1/completions", prompt=prompt, max_tokens=1))["usage"]
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def _post(client: ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with client.post(path, json=body) as answer:
        answer.raise_for_status()
        return await _json(answer)


async def _json(answer: ClientResponse) -> dict[str, Any]:
    found: dict[str, Any] = await answer.json()
    return found
