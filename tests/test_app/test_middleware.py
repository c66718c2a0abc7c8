"""Middleware: request id, drain, body limit, OPTIONS and HEAD."""

import re

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from app.common.middleware import BodyLimit
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

CHAT = "/v1/chat/completions"
HI = {"messages": [{"content": "hi"}]}
MADE = r"req_[0-9a-f]{32}"


class TestRequestId:
    @pytest.mark.parametrize("given", ["abc", "A-b_c.d:9", "x" * 128])
    async def test_valid_id_is_kept(self, site: Site, given: str) -> None:
        answer = await site.client.get("/health", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "é", "a\tb", 'a"b', "a\x0bb"])
    async def test_invalid_id_is_replaced(self, site: Site, given: str) -> None:
        answer = await site.client.get("/health", headers=[(b"x-request-id", given.encode())])
        assert re.fullmatch(MADE, answer.headers["x-request-id"])

    async def test_every_answer_has_an_id(self, new_site: NewSite) -> None:
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
    async def test_new_requests_are_rejected_and_probes_answered(self, site: Site) -> None:
        site.services.drain.has_begun = True
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


async def test_body_limit_ignores_other_scopes() -> None:
    scopes = []

    async def inner(scope, receive, send) -> None:
        scopes.append(scope)

    await BodyLimit(inner, max_bytes=lambda path: 1)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert scopes == [{"type": "lifespan"}]


async def test_declared_length_is_rejected_before_reading() -> None:
    async def reads(scope, receive, send) -> None:
        await receive()

    async def receive() -> Message:
        raise AssertionError("nobody sends anything")

    scope = {"type": "http", "path": "/", "headers": [(b"content-length", b"2")]}
    with pytest.raises(HTTPException, match="413"):
        await BodyLimit(reads, max_bytes=lambda path: 1)(scope, receive, None)  # type: ignore[arg-type]


class TestOptions:
    @pytest.mark.parametrize(
        ("path", "allow"),
        [
            (CHAT, "GET, HEAD, POST, OPTIONS"),
            ("/chat/completions", "GET, HEAD, POST, OPTIONS"),
            ("/v1/embeddings", "POST, OPTIONS"),
            ("/v1/models", "GET, HEAD, OPTIONS"),
            ("/v1/models/owner/name", "DELETE, GET, HEAD, OPTIONS"),
            ("/predict", "POST, OPTIONS"),
        ],
    )
    async def test_lists_the_methods_without_a_key(self, new_site: NewSite, path: str, allow: str) -> None:
        site = await new_site(api_keys="secret")
        answer = await site.client.options(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")

    async def test_unknown_path_stays_closed(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="secret")
        assert (await site.client.options("/no/such/route")).status_code == 401
        assert (await site.client.options("/no/such/route", headers={"x-api-key": "secret"})).status_code == 404

    async def test_foreign_pages_get_no_methods(self, site: Site) -> None:
        answer = await site.client.options(CHAT, headers={"Origin": "https://x"})
        assert (answer.status_code, "allow" in answer.headers) == (403, False)
        assert "access-control-allow-origin" not in answer.headers


class TestHead:
    @pytest.mark.parametrize(
        "path",
        [
            *("/", "/health", "/health/live", "/health/ready", "/metrics", "/chat", "/openapi.json", "/docs"),
            *("/v1/models", "/v1/models/none", f"/v1/models/{MODEL}", "/static/chat.js", "/v1/conversations"),
            *("/chat/completions", "/chat/get/messages/", "/chat/get/messages/?limit=0", "/api/tags", "/none"),
        ],
    )
    async def test_is_get_without_its_body(self, server: Site, path: str) -> None:
        """On a real port: an unexpected body would corrupt the next answer."""
        get, head = await server.client.get(path), await server.client.head(path)
        assert head.status_code == get.status_code
        assert head.content == b""
        own = {"x-request-id", "date", "content-length"}  # /metrics changes between the requests
        assert {*head.headers.items()} ^ {*get.headers.items()} <= {
            (name, value) for each in (get, head) for name, value in each.headers.items() if name in own
        }
        assert ("content-length" in head.headers) == ("content-length" in get.headers)

    @pytest.mark.parametrize(
        ("path", "allow"),
        [("/chat/stream?prompt=hi", "GET"), ("/v1/responses/none?stream=true", "DELETE, GET"), ("/predict", "POST")],
    )
    async def test_head_starts_no_answer(self, site: Site, engine: FakeEngine, path: str, allow: str) -> None:
        answer = await site.client.head(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert engine.jobs == []

    async def test_needs_the_key_that_get_needs(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="secret")
        assert (await site.client.head("/v1/models")).status_code == 401
        assert (await site.client.head("/v1/models", headers={"x-api-key": "secret"})).status_code == 200

    async def test_head_is_counted_as_head(self, site: Site) -> None:
        await site.client.head("/v1/models")
        metrics = (await site.client.get("/metrics")).text
        (line,) = (line for line in metrics.splitlines() if 'method="HEAD"' in line and "_total{" in line)
        assert '/v1/models"' in line

    async def test_head_is_not_in_the_document(self, site: Site) -> None:
        assert not any("head" in item for item in site.app.openapi()["paths"].values())
