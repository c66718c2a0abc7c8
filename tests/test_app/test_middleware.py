"""The request's id, and the gate of a server that is going down."""

import re

import pytest

from app.common.middleware import BodyLimit
from tests.apps import NewSite, Site

CHAT = "/v1/chat/completions"
HI = {"messages": [{"content": "hi"}]}
MADE = r"req_[0-9a-f]{32}"


class TestRequestId:
    @pytest.mark.parametrize("given", ["abc", "A-b_c.d:9", "x" * 128])
    async def test_good_one_is_taken(self, site: Site, given: str) -> None:
        answer = await site.client.get("/health", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "é", "a\tb", 'a"b', "a\x0bb"])
    async def test_bad_one_is_replaced(self, site: Site, given: str) -> None:
        answer = await site.client.get("/health", headers=[(b"x-request-id", given.encode())])
        assert re.fullmatch(MADE, answer.headers["x-request-id"])

    async def test_it_is_on_every_answer(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="secret")
        key = {"X-API-Key": "secret"}
        answers = [
            await site.client.get("/health"),
            await site.client.get("/"),
            await site.client.get("/static/nothing"),
            await site.client.get("/no/such/route", headers=key),
            await site.client.put(CHAT, headers=key),
            await site.client.post(CHAT, headers=key),
            await site.client.post(CHAT),
            await site.client.post(CHAT, json=HI, headers=key),
            await site.client.post(CHAT, json={**HI, "stream": True}, headers=key),
            await site.client.get("/chat/stream", params={"prompt": "hi"}, headers=key),
            await site.client.options(CHAT, headers={"Origin": "https://x", "Access-Control-Request-Method": "POST"}),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 405, 400, 401, 200, 200, 200, 400]
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(MADE, id_) for id_ in ids)


class TestDrainGate:
    async def test_new_work_is_refused_and_probes_are_answered(self, site: Site) -> None:
        site.services.drain.begun = True
        for answer in (
            await site.client.post(CHAT, json=HI),
            await site.client.post(CHAT, json={**HI, "stream": True}),
            await site.client.get("/chat/stream", params={"prompt": "hi"}),
            await site.client.get("/v1/models"),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.headers["connection"] == "close"
            assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert (await site.client.get("/health/live")).status_code == 200
        assert (await site.client.get("/health/ready")).status_code == 503
        assert (await site.client.get("/metrics")).status_code == 200


async def test_what_is_no_request_passes_the_body_limit() -> None:
    scopes = []

    async def inner(scope, receive, send) -> None:
        scopes.append(scope)

    await BodyLimit(inner, max_bytes=1)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert scopes == [{"type": "lifespan"}]


class TestOptions:
    @pytest.mark.parametrize(
        ("path", "allow"),
        [
            (CHAT, "GET, POST, OPTIONS"),
            ("/chat/completions", "GET, POST, OPTIONS"),
            ("/v1/embeddings", "POST, OPTIONS"),
            ("/v1/models", "GET, OPTIONS"),
            ("/v1/models/owner/name", "GET, OPTIONS"),
            ("/predict", "POST, OPTIONS"),
        ],
    )
    async def test_says_what_a_path_takes_without_a_key(self, new_site: NewSite, path: str, allow: str) -> None:
        site = await new_site(api_keys="secret")
        answer = await site.client.options(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")

    async def test_unknown_path_stays_closed(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="secret")
        assert (await site.client.options("/no/such/route")).status_code == 401
        assert (await site.client.options("/no/such/route", headers={"x-api-key": "secret"})).status_code == 404

    async def test_foreign_pages_learn_nothing_by_it(self, site: Site) -> None:
        answer = await site.client.options(CHAT, headers={"Origin": "https://x"})
        assert answer.status_code == 204
        assert "access-control-allow-origin" not in answer.headers
