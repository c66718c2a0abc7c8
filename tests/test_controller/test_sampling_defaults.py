"""What holds where a request names nothing: the model's own values, on every route."""

from typing import Any

import pytest

from services.engine.base import SamplingParams
from tests.apps import MODEL, NewSite, Site, post
from tests.fakes import FakeEngine

OWN = {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
OPENAIS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/api/chat": {**CHAT, "stream": False},
    "/api/generate": {"prompt": "Hi", "stream": False},
    "/predict": {"input": "Hi"},
    "/chat/new/message/": {"prompt": "Hi"},
}
every_route = pytest.mark.parametrize(("path", "body"), ROUTES.items(), ids=list(ROUTES))


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site(model={"name": MODEL, "preload": False, "sampling": OWN})


def sampled(engine: FakeEngine) -> dict[str, Any]:
    params: SamplingParams = engine.jobs[-1].sampling
    return {name: getattr(params, name) or 0 for name in OWN}


@every_route
async def test_the_models_values_hold_where_nothing_is_named(
    site: Site, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    await post(site, path, **body)
    assert sampled(engine) == OWN


@every_route
async def test_an_explicit_value_is_kept_also_one_that_is_openais_default(
    site: Site, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    named = {"temperature": 1.0, "top_p": 1.0}
    await post(site, path, **body, **({"options": named} if path.startswith("/api/") else named))
    assert sampled(engine) == OWN | named


@every_route
async def test_null_names_nothing(site: Site, engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
    named = {"temperature": None, "top_p": None}
    await post(site, path, **body, **({"options": named} if path.startswith("/api/") else named))
    assert sampled(engine) == OWN


@every_route
async def test_switched_off_it_is_as_openais_api_says(
    new_site: NewSite, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    site = await new_site(model={"name": MODEL, "preload": False, "sampling": {}})
    await post(site, path, **body)
    assert sampled(engine) == OPENAIS


async def test_an_event_source_gets_them_too(site: Site, engine: FakeEngine) -> None:
    assert (await site.client.get("/chat/stream", params={"prompt": "Hi"})).status_code == 200
    assert sampled(engine) == OWN
    assert (await site.client.get("/chat/stream", params={"prompt": "Hi", "temperature": "1"})).status_code == 200
    assert sampled(engine) == OWN | {"temperature": 1}


@pytest.mark.parametrize("named", [{"top_k": 0}, {"top_k": -1}, {"min_p": 0}, {"repetition_penalty": 1}], ids=str)
async def test_each_can_be_switched_off_by_the_request(site: Site, engine: FakeEngine, named: dict[str, float]) -> None:
    await post(site, "/v1/chat/completions", **CHAT, **named)
    assert sampled(engine) == OWN | {name: max(0, value) for name, value in named.items()}


async def test_each_model_has_its_own(new_site: NewSite, engine: FakeEngine) -> None:
    other = {"name": "other", "sampling": {"temperature": 0.7}}
    site = await new_site(model={"name": MODEL, "preload": False, "sampling": {"top_k": 3}}, models=[other])
    await post(site, "/v1/chat/completions", **CHAT, model="other")
    assert sampled(engine) == OPENAIS | {"temperature": 0.7}
    await post(site, "/v1/chat/completions", **CHAT)
    assert sampled(engine) == OPENAIS | {"top_k": 3}
    listed = (await site.client.get("/v1/models")).json()["data"]
    assert [each.get("sampling") for each in listed] == [
        OPENAIS | {"top_k": 3},
        OPENAIS | {"temperature": 0.7},
        None,  # it makes vectors
    ]
    assert (await site.client.get("/v1/models/other")).json()["sampling"]["temperature"] == 0.7


async def test_the_status_page_shows_them(site: Site, new_site: NewSite) -> None:
    status = (await site.client.get("/chat")).json()
    assert (status["sampling"], status["do_sample"]) == (OWN, True)
    greedy = await new_site(model={"name": MODEL, "preload": False, "sampling": {"temperature": 0}})
    status = (await greedy.client.get("/chat")).json()
    assert (status["sampling"], status["do_sample"]) == (OPENAIS | {"temperature": 0}, False)


@pytest.mark.parametrize("named", [{}, {"temperature": 1.0}, {"top_p": 0.5}], ids=str)
async def test_a_response_shows_what_held(site: Site, named: dict[str, float]) -> None:
    expected = {"temperature": 0.2, "top_p": 0.9} | named
    made = await post(site, "/v1/responses", input="Hi", **named)
    found = (await site.client.get(f"/v1/responses/{made['id']}")).json()
    for each in (made, found):
        assert {name: each[name] for name in expected} == expected


async def test_a_background_response_shows_it_while_it_waits(site: Site) -> None:
    made = await post(site, "/v1/responses", input="Hi", background=True)
    assert (made["temperature"], made["top_p"]) == (0.2, 0.9)


@pytest.mark.parametrize("named", [{}, {"temperature": 1.0}], ids=str)
async def test_a_stored_completion_shows_what_held(site: Site, named: dict[str, float]) -> None:
    made = await post(site, "/v1/chat/completions", **CHAT, store=True, **named)
    found = (await site.client.get(f"/v1/chat/completions/{made['id']}")).json()
    assert (found["temperature"], found["top_p"]) == (named.get("temperature", 0.2), 0.9)


async def test_a_repeated_response_is_shown_as_it_was(site: Site) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = [(await site.client.post("/v1/responses", json={"input": "Hi"}, headers=key)).json() for _ in "ab"]
    assert (again["id"], again["temperature"]) == (first["id"], 0.2)
