"""Every error has the right status and body, wherever it is raised."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from app.common.errors import STATUS, problem
from services import errors
from services.errors import PromptTooLong, ServiceError, TryLater, UnsupportedParameter
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

CHAT, NEW, STREAM = "/v1/chat/completions", "/chat/new/message/", "/chat/stream"
HI = {"messages": [{"content": "hi"}]}
WAYS: dict[str, Callable[[httpx2.AsyncClient], Any]] = {
    "plain": lambda client: client.post(CHAT, json=HI),
    "streamed": lambda client: client.post(CHAT, json={**HI, "stream": True}),
    "simple": lambda client: client.post(NEW, json={"prompt": "hi"}),
    "simple streamed": lambda client: client.post(NEW, json={"prompt": "hi", "stream": True}),
    "simple whole": lambda client: client.post(NEW, json={"prompt": "hi"}, headers={"Accept": "text/event-stream"}),
    "browser": lambda client: client.get(STREAM, params={"prompt": "hi"}),
}


def check(answer: httpx2.Response, status: int, type_: str, param: str | None = None, code: str | None = None) -> str:
    """Checks that there are exactly four fields; returns the message."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    (error,) = answer.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"], error["code"]) == (type_, param, code)
    message: str = error["message"]
    assert message
    return message


def instance(kind: type[ServiceError]) -> ServiceError:
    if issubclass(kind, TryLater):
        return kind("a reason", retry_after=2.5)
    if kind is PromptTooLong:
        return kind(9, 8, param="a_param")
    if kind is UnsupportedParameter:
        return kind("a_param")
    return kind("a reason", param="a_param")


@pytest.mark.parametrize("way", WAYS)
async def test_status_and_body_of_each_error(site: Site, engine: FakeEngine, way: str) -> None:
    for kind, (status, type_, code) in STATUS.items():
        engine.refusal = error = instance(kind)
        answer = await WAYS[way](site.client)
        assert check(answer, status, type_, error.param, code) == error.message
        assert answer.headers.get("retry-after") == ("2.5" if isinstance(error, TryLater) else None)


def test_every_error_class_has_a_status() -> None:
    ours = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ServiceError)}
    assert ours - set(STATUS) == {TryLater}
    assert problem(TryLater("wait")).status == 500


@pytest.mark.parametrize("way", WAYS)
async def test_unexpected_error_is_not_described(site: Site, engine: FakeEngine, way: str) -> None:
    engine.refusal = ValueError("secret")  # type: ignore[assignment]
    assert "secret" not in check(await WAYS[way](site.client), 500, "server_error")


async def test_unknown_route(site: Site) -> None:
    check(await site.client.get("/no/such/route"), 404, "invalid_request_error")


async def test_wrong_method_names_the_allowed_ones(site: Site) -> None:
    answer = await site.client.put(CHAT)
    check(answer, 405, "invalid_request_error")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_wrong_content_type(site: Site, content_type: str | None) -> None:
    """Types that foreign pages can send without a preflight."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await site.client.post(CHAT, content=b'{"messages": [{"content": "hi"}]}', headers=headers)
    assert "application/json" in check(answer, 400, "invalid_request_error", code="invalid_json")


@pytest.mark.parametrize("body", [b"[]", b'"hi"', b"5", b"null"])
async def test_json_that_is_not_an_object(site: Site, body: bytes) -> None:
    answer = await site.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check(answer, 400, "invalid_request_error", code="invalid_json")


class TestTooLarge:
    @pytest.fixture
    async def small(self, new_site: NewSite) -> Site:
        return await new_site(server={"max_body_bytes": 2000})

    @pytest.mark.parametrize("path", [CHAT, NEW])
    async def test_by_its_declared_length(self, small: Site, path: str) -> None:
        check(await small.client.post(path, json={"x": "y" * 2000}), 413, "invalid_request_error")

    async def test_by_its_counted_length(self, small: Site) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * 1000

        answer = await small.client.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"})
        check(answer, 413, "invalid_request_error")

    async def test_body_at_the_limit_is_accepted(self, small: Site) -> None:
        empty = len(b'{"messages":[{"content":""}]}')
        body = {"messages": [{"content": "x" * (2000 - empty)}]}
        assert (await small.client.post(CHAT, json=body)).status_code == 200


async def test_missing_key(new_site: NewSite) -> None:
    site = await new_site(api_keys="secret")
    check(await site.client.post(CHAT, json=HI), 401, "authentication_error", code="invalid_api_key")


async def test_unknown_origin(site: Site) -> None:
    answer = await site.client.post(CHAT, json=HI, headers={"Origin": "https://evil.example"})
    check(answer, 403, "permission_error")
