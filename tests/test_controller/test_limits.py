"""Limits of keys and projects over HTTP, on both databases."""

import asyncio
import time
from typing import Any

import httpx2
import pytest
from openai import RateLimitError

from database.session import Database
from database.usage_repository import UsageCounts
from services import limit_service
from services.callers import Caller, KeyLimits, acting_as
from services.errors import Overloaded, RequestsLimited
from services.history.store import Store
from services.history.usage import usage_of
from services.key_service import NewKey
from services.limit_service import LimitService
from services.limits.states import DatabaseStates
from services.turn_service import TurnService
from tests.apps import MODEL, NewSite, Site, official
from tests.fakes import FakeEngine, Pause

pytestmark = pytest.mark.both_databases

ROOT = "root-key-of-the-settings"
HI: Any = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": HI}


@pytest.fixture
async def site(new_site: NewSite, database_url: str) -> Site:
    return await new_site(database={"url": database_url, "migrate": False}, admin_key=ROOT)


async def new_key(site: Site, **limits: int) -> dict[str, str]:
    created, _ = await site.services.stored_keys.create_in(
        None, NewKey(name="k", project_id="", limits=KeyLimits(**limits))
    )
    return {"Authorization": f"Bearer {created.value}"}


async def ask(site: Site, headers: dict[str, str], path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
    return await site.client.post(path, json=body or CHAT, headers=headers)


def error(answer: httpx2.Response) -> tuple[int, str, str]:
    found = answer.json()["error"]
    return answer.status_code, found["type"], found["code"]


async def test_requests_a_minute(site: Site) -> None:
    key = await new_key(site, rpm=2)
    first, second, third = [await ask(site, key) for _ in range(3)]
    assert [each.status_code for each in (first, second)] == [200, 200]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second, third)] == ["1", "0", "0"]
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert error(third) == (429, "requests", "rate_limit_exceeded")
    assert "requests per min (RPM): Limit 2" in third.json()["error"]["message"]
    assert 0 < float(third.headers["Retry-After"]) <= 30
    assert (await ask(site, await new_key(site, rpm=2))).status_code == 200  # another key has its own


async def test_streams_and_background_answers_count(site: Site) -> None:
    key = await new_key(site, rpm=2)
    assert (await ask(site, key, **CHAT, stream=True)).headers["x-ratelimit-remaining-requests"] == "1"
    made = (await ask(site, key, "/v1/responses", model=MODEL, input="hi", background=True)).json()
    while (await site.client.get(f"/v1/responses/{made['id']}", headers=key)).json()["status"] != "completed":
        pass
    assert error(await ask(site, key)) == (429, "requests", "rate_limit_exceeded")


async def test_tokens_a_minute_are_reserved_and_settled(site: Site, engine: FakeEngine) -> None:
    key = await new_key(site, tpm=1000)
    prompt = (await ask(site, key)).json()["usage"]["prompt_tokens"]
    used = prompt + 3
    answer = await ask(site, key, **CHAT, max_tokens=500)
    reserved = 1000 - int(answer.headers["x-ratelimit-remaining-tokens"])
    assert used + prompt + 490 < reserved <= used + prompt + 500  # what is used drains meanwhile
    last = await ask(site, key)
    assert 1000 - int(last.headers["x-ratelimit-remaining-tokens"]) <= 3 * used  # most of the 500 were given back
    refused = await ask(site, await new_key(site, tpm=3))
    assert error(refused) == (429, "tokens", "rate_limit_exceeded")
    assert "too large" in refused.json()["error"]["message"]


async def test_refused_requests_are_not_counted(site: Site, engine: FakeEngine) -> None:
    key = await new_key(site, rpm=1)
    engine.refusal = Overloaded("full")
    assert error(await ask(site, key)) == (429, "rate_limit_error", "overloaded")
    engine.refusal = None
    assert (await ask(site, key)).status_code == 200


async def test_requests_at_once(site: Site, engine: FakeEngine) -> None:
    key, pause = await new_key(site, parallel=1), Pause()
    engine.script = ("a", pause)
    first = asyncio.create_task(ask(site, key))
    await pause.reached.wait()
    refused = await ask(site, key)
    assert error(refused) == (429, "requests", "rate_limit_exceeded")
    assert "parallel" in refused.json()["error"]["message"]
    pause.go.set()
    assert (await first).status_code == 200
    assert (await ask(site, key)).status_code == 200


async def test_a_background_answer_waits_for_a_limit(
    site: Site, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.limit_service.PARALLEL_RETRY_S", 0.01)
    key, pause = await new_key(site, parallel=1), Pause()
    engine.script = ("a", pause)
    first = asyncio.create_task(ask(site, key))
    await pause.reached.wait()
    made = (await ask(site, key, "/v1/responses", model=MODEL, input="hi", background=True)).json()
    assert (await site.client.get(f"/v1/responses/{made['id']}", headers=key)).json()["status"] == "queued"
    pause.go.set()
    assert (await first).status_code == 200
    while (await site.client.get(f"/v1/responses/{made['id']}", headers=key)).json()["status"] != "completed":
        pass


async def test_budget_of_a_month_has_what_was_used_before(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await new_key(site, budget=200)
    assert (await ask(site, key)).status_code == 200
    ((row, _),) = await site.services.stored_keys.keys()
    known = site.services.stored_keys.by_id(row.id)
    assert known is not None
    usage = usage_of(known.caller, MODEL, "completions", UsageCounts(requests=1, prompt_tokens=200))
    await TurnService(database, writer="other:1").usage.record(usage)
    monkeypatch.setattr(limit_service, "BUDGET_S", 0.0)  # as after some seconds
    refused = await ask(site, key)
    assert error(refused) == (429, "insufficient_quota", "insufficient_quota")
    assert int(refused.headers["Retry-After"]) <= 31 * 86_400


async def test_a_projects_limit_is_of_all_its_keys(new_server: NewSite, database_url: str) -> None:
    site = await new_server(database={"url": database_url, "migrate": False}, admin_key=ROOT)
    async with official(site, ROOT, admin_api_key=ROOT) as root:
        projects = root.admin.organization.projects
        project = (await projects.create(name="team")).id
        await projects.rate_limits.update_rate_limit(f"rl-{MODEL}", project_id=project, max_requests_per_1_minute=1)
        keys = [(await projects.service_accounts.create(project, name=name)).api_key for name in "ab"]
        clients = [root.with_options(api_key=key.value) for key in keys if key]
        await clients[0].chat.completions.create(**CHAT)  # type: ignore[call-overload]
        with pytest.raises(RateLimitError) as refused:
            await clients[1].chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert refused.value.code == "rate_limit_exceeded"


async def test_anthropics_words(site: Site) -> None:
    key, body = await new_key(site, rpm=1, tpm=5000), {"model": MODEL, "messages": HI, "max_tokens": 5}
    answers = [await ask(site, key, "/v1/messages", **body) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 429]
    assert answers[1].json()["error"]["type"] == "rate_limit_error"
    limits = {name.removeprefix("anthropic-ratelimit-"): value for name, value in answers[1].headers.items()}
    assert (limits["requests-limit"], limits["requests-remaining"], limits["tokens-limit"]) == ("1", "0", "5000")
    assert limits["requests-reset"].endswith("Z")
    assert "retry-after" in limits


async def test_keys_without_limits_have_no_headers(site: Site) -> None:
    answer = await ask(site, await new_key(site))
    assert not [name for name in answer.headers if "ratelimit" in name]


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_replicas_share_limits(new_site: NewSite, database_url: str, engine: FakeEngine) -> None:
    replicas = [await new_site(database={"url": database_url, "migrate": False}) for _ in range(2)]
    replicas[1].services.limits.process = "another-host:1"
    key = await new_key(replicas[0], rpm=3, parallel=1)
    await replicas[1].services.stored_keys.refresh()
    pause = Pause()
    engine.script = ("a", pause)
    first = asyncio.create_task(ask(replicas[0], key))
    await pause.reached.wait()
    assert "parallel" in (await ask(replicas[1], key)).text
    await replicas[0].services.limits.beat()
    pause.go.set()
    await first
    statuses = [(await ask(replicas[number % 2], key)).status_code for number in range(3)]
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_requests_of_a_dead_process_do_not_count_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = KeyLimits(parallel=1)
    with acting_as(Caller("p", "k", limits=limits)):
        dying = LimitService(database, "alive:2")
        async with dying.reserved("m", 1):
            pass
        dead = LimitService(database, "dead:1").reserved("m", 1)
        await dead.__aenter__()
        alive = LimitService(database, "alive:1")
        with pytest.raises(RequestsLimited):
            async with alive.reserved("m", 1):
                pass
        # cancelled while it is admitted: the process itself knows better what runs
        async with DatabaseStates(Store(database)).locked(["key:k"]) as states:
            states["key:k"].take("alive:2", 5)
        await dying.beat()
        async with DatabaseStates(Store(database)).locked(["key:k"]) as states:
            assert (states["key:k"].num_running, states["key:k"].reserved) == (1, 1)
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + 200)
        async with alive.reserved("m", 1):
            pass
        await dead.__aexit__(None, None, None)
