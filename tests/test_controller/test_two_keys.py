"""Two keys at one server: neither learns what the other asks, and neither stands in the other's way."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from services.engine.base import Job, Piece
from services.engine.execution.local_executor import LocalExecutor
from services.engine.local import LocalEngine
from tests.apps import NewSite, Site
from tests.test_engine.fakes import LETTERS, Alphabet, Counting, Gate, loaded

ALPHA, BETA = "alpha-key", "beta-key"
PROMPT = "abcdefghijklmnopqrstuvwxyzabcd"


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def send(site: Site, key: str, prompt: str = PROMPT, **fields: Any) -> httpx2.Response:
    body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True, **fields}
    return await site.client.post("/v1/completions", json=body, headers=of(key))


async def cached(site: Site, key: str, prompt: str = PROMPT, **fields: Any) -> int:
    usage = (await send(site, key, prompt, **fields)).json()["usage"]
    found: int = usage["prompt_tokens_details"]["cached_tokens"]
    return found


async def cached_chat(site: Site, key: str, text: str, **fields: Any) -> int:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, **fields}
    answer = await site.client.post("/v1/chat/completions", json=body, headers=of(key))
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


async def cached_response(site: Site, key: str, text: str, **fields: Any) -> int:
    body = {"input": text, "max_output_tokens": 1, "store": False, **fields}
    answer = await site.client.post("/v1/responses", json=body, headers=of(key))
    found: int = answer.json()["usage"]["input_tokens_details"]["cached_tokens"]
    return found


class AnyText(Alphabet):
    """Letters for all characters."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % LETTERS for letter in text]


def engine(kind: str, /, *, settings: dict[str, Any], **options: Any) -> LocalEngine:
    runner = Counting(num_slots=4, length=512)
    shares = {"share_prefixes": settings["share_prefixes"]}
    return LocalEngine(
        loaded(tokenizer=AnyText()), LocalExecutor(runner), max_num_batched_tokens=64, max_queue=8, **shares
    )


# --- nobody reads another's words ---


@pytest.mark.parametrize("shares", [False, True])
async def test_a_secret_is_not_found_letter_by_letter(new_site: NewSite, shares: bool) -> None:
    """By what was cached of each guess; where keys share what they have, it is."""
    site = await new_site(build=engine, api_keys=[ALPHA, BETA], engine={"share_prefixes": shares})
    known, secret = "thepinofmycardisverysecretis", "sesame"
    await send(site, ALPHA, f"{known}{secret}andmore")
    found = ""
    for _ in secret:
        guesses = {letter: await cached(site, BETA, f"{known}{found}{letter}q") for letter in "aemstz"}
        found += max(guesses, key=lambda letter: guesses[letter])
    assert (found == secret) is shares
    assert await cached(site, ALPHA, f"{known}{secret}q") > len(known)


async def test_the_servers_system_prompt_is_found_by_everybody_and_nothing_behind_it(new_site: NewSite) -> None:
    system = "youareaveryhelpfulassistant"
    site = await new_site(build=engine, api_keys=[ALPHA, BETA], chat={"system_prompt": system})
    public = len(f"System: {system}\nUser: ")

    assert await cached_chat(site, ALPHA, "thisisasecret") == 0
    assert await cached_chat(site, BETA, "thisisasecret") == public
    assert await cached_chat(site, ALPHA, "thisisasecret") > public + len("thisisasecret")


@pytest.mark.parametrize("cached", [cached, cached_chat, cached_response])
async def test_a_salt_keeps_a_prompt_apart(new_site: NewSite, cached: Callable[..., Awaitable[int]]) -> None:
    site = await new_site(build=engine, api_keys=[ALPHA])

    assert await cached(site, ALPHA, PROMPT, cache_salt="one") == 0
    assert await cached(site, ALPHA, PROMPT, cache_salt="one") > 20
    assert await cached(site, ALPHA, PROMPT, cache_salt="two") == 0
    assert await cached(site, ALPHA, PROMPT) == 0


async def test_an_empty_salt_is_refused(new_site: NewSite) -> None:
    site = await new_site(build=engine)
    answer = await send(site, "", cache_salt="")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")


# --- nobody stops the service for the others ---


class Filling(LocalEngine):
    """Tells when its queue is full. Each of its steps waits for the gate."""

    def __init__(self) -> None:
        self.gate, self.is_full, self.num_submitted = Gate(), asyncio.Event(), 0
        runner = Counting(num_slots=4, length=512, before=self.gate)
        super().__init__(loaded(), LocalExecutor(runner), max_num_batched_tokens=64, max_queue=8)

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        pieces = await super().submit(job)
        self.num_submitted += 1
        if self.num_submitted == 12:
            self.is_full.set()
        return pieces


async def test_a_flood_of_one_key_leaves_room_for_another(new_site: NewSite) -> None:
    """Long answers in every slot, more of them than the queue takes, and all of them urgent."""
    engine = Filling()
    site = await new_site(build=lambda kind, /, **options: engine, api_keys=[ALPHA, BETA])
    long = {"max_tokens": 400, "priority": -(2**31)}
    flood = [asyncio.create_task(send(site, ALPHA, "a", **long)) for _ in range(12)]
    await engine.is_full.wait()
    greedy = await send(site, ALPHA, n=16)
    single = asyncio.create_task(send(site, BETA, max_tokens=3))
    engine.gate.open(60)  # steps
    answer = await single
    refused = await send(site, ALPHA)
    engine.gate.open(10_000)
    answered = [(await each).json()["usage"]["completion_tokens"] for each in flood]

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    for each in (greedy, refused):
        assert each.status_code == 429
        assert each.headers["retry-after"]
    assert answered == [400] * 12
