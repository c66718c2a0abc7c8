"""Without keys, foreign and rebound web pages cannot reach any route through a browser."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx2
import pytest

from app.common.auth import HEALTH, PAGES
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

CHAT, NEW, GET, STREAM = "/v1/chat/completions", "/chat/new/message/", "/chat/get/messages/", "/chat/stream"
EVIL = "https://evil.example"
Headers = dict[str, str]

REBOUND: list[Headers] = [
    {"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000", "Sec-Fetch-Site": "same-origin"},
    {"Host": "rebound.example:8000", "Sec-Fetch-Site": "same-origin"},
    {"Host": "rebound.example:8000"},
    {"Host": "localhost.rebound.example"},
    {"Host": "192.168.1.5"},
]
STRANGE: list[Headers] = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://[localhost"},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Origin": "http://localhost:81", "Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},  # after a redirect
    {"Sec-Fetch-Site": "whatever"},
]
PROGRAMS: list[Headers] = [
    {},
    {"User-Agent": "okhttp/4.12.0", "Accept": "text/event-stream"},
    {"User-Agent": "node", "Sec-Fetch-Mode": "cors"},
    {"Host": "127.0.0.1:8000"},
]
OWN_PAGES: list[Headers] = [
    {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "https://localhost", "Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
]


def routes(site: Site) -> Iterator[tuple[str, str]]:
    """All routes, documented or not, and unknown ones."""
    for entry in site.app.state.routes:
        path = (
            "/static/chat.js"
            if entry.path == "/static"
            else entry.path.replace("{model:path}", "a/b").replace("{", "").replace("}", "")
        )
        for method in entry.methods or ("GET",):
            yield method, path
    yield from (("GET", "/no/such/route"), ("POST", "/no/such/route"), ("OPTIONS", CHAT))


async def ask(site: Site, path: str = CHAT, headers: Headers | None = None, **fields: Any) -> httpx2.Response:
    body = {"messages": [{"content": "hi"}], "prompt": "hi", **fields}
    return await site.client.post(path, json=body, headers=headers)


class TestEveryRoute:
    async def statuses(self, site: Site, table: list[Headers]) -> dict[tuple[str, str], set[int]]:
        """Status codes of each method and path with each of the headers."""
        found: dict[tuple[str, str], set[int]] = {}
        for method, path in sorted(set(routes(site))):
            answers = [await site.client.request(method, path, headers=headers) for headers in table]
            found[method, path] = {answer.status_code for answer in answers}
        paths = {path for _, path in found}
        assert {"/", "/static/chat.js", CHAT, NEW, GET, STREAM, "/metrics", "/api/chat", "/openapi.json"} < paths
        return found

    async def test_rejects_unknown_hosts_except_on_probes(self, site: Site) -> None:
        for (_, path), statuses in (await self.statuses(site, REBOUND)).items():
            assert statuses == ({200} if path in HEALTH else {403}), path

    async def test_rejects_foreign_pages_except_on_page_and_probes(self, site: Site) -> None:
        for (_, path), statuses in (await self.statuses(site, STRANGE)).items():
            assert statuses == ({200} if path in (*PAGES, "/static/chat.js", *HEALTH) else {403}), path

    async def test_accepts_programs_and_our_page(self, site: Site) -> None:
        for (_, path), statuses in (await self.statuses(site, [*PROGRAMS, *OWN_PAGES])).items():
            assert not statuses & {401, 403}, path


async def test_rejected_request_stores_nothing(site: Site, engine: FakeEngine) -> None:
    await ask(site, NEW)
    for headers in [*REBOUND, *STRANGE]:
        for path in (CHAT, NEW, "/v1/responses", "/predict", "/api/generate"):
            assert (await ask(site, path, headers)).status_code == 403
        for path in (f"{STREAM}?prompt=hi", GET):
            refused = await site.client.get(path, headers=headers)
            assert refused.status_code == 403
            assert "Hello" not in refused.text
    assert len(engine.jobs) == 1
    assert len((await site.client.get(GET)).json()["data"]) == 2


@pytest.mark.parametrize(
    ("path", "names"),
    [(CHAT, {"message", "type", "param", "code"}), ("/v1/messages", {"type", "message"}), ("/api/chat", None)],
)
async def test_error_has_the_protocols_body_and_names_the_setting(
    site: Site, path: str, names: set[str] | None
) -> None:
    answer = await ask(site, path, REBOUND[0])
    error = answer.json()["error"]
    assert "PARLEY_SERVER__ALLOWED_HOSTS" in str(error)
    assert "rebound" not in answer.text
    assert (set(error) if isinstance(error, dict) else None) == names


async def test_code_of_a_rejected_host(site: Site) -> None:
    assert (await ask(site, headers=REBOUND[0])).json()["error"]["code"] == "host_not_allowed"


class TestSettings:
    async def test_hosts(self, new_site: NewSite) -> None:
        site = await new_site(server={"allowed_hosts": ["chat.example"]})
        headers = {"Host": "chat.example", "Origin": "https://chat.example", "Sec-Fetch-Site": "same-origin"}
        assert (await ask(site, headers=headers)).status_code == 200
        assert (await ask(site, headers=REBOUND[0])).status_code == 403

    async def test_bound_to_all_addresses(self, new_site: NewSite) -> None:
        site = await new_site(server={"host": "0.0.0.0"})
        assert (await ask(site, headers={"Host": "192.168.1.5:8000"})).status_code == 200
        assert (await ask(site, headers=REBOUND[0])).status_code == 403

    async def test_origins(self, new_site: NewSite) -> None:
        site = await new_site(cors={"origins": ["https://chat.example"]})
        for more in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
            answer = await ask(site, headers={"Origin": "https://chat.example", **more})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        for headers in STRANGE:
            assert (await ask(site, headers=headers)).status_code == 403

    async def test_every_origin(self, new_site: NewSite) -> None:
        site = await new_site(cors={"origins": ["*"]})
        for headers in STRANGE:
            assert (await ask(site, headers=headers)).status_code == 200
        assert (await ask(site, headers=REBOUND[0])).status_code == 403

    async def test_guard_is_off_with_keys(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="secret")
        for headers in [*REBOUND, *STRANGE]:
            assert (await ask(site, headers=headers)).status_code == 401
            assert (await ask(site, headers={**headers, "X-API-Key": "secret"})).status_code == 200


UNTYPED = (NEW, "/predict", "/api/chat", "/api/generate")
BODY = b'{"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "stream": false}'


class TestBodiesWithoutAType:
    """Pages may send text to another origin without a preflight, but not JSON."""

    async def test_programs_may_omit_the_content_type(self, site: Site) -> None:
        for path, type in product(UNTYPED, ("text/plain", "application/x-www-form-urlencoded", None)):
            for headers in [*PROGRAMS, *OWN_PAGES]:
                sent = headers | ({"Content-Type": type} if type else {})
                assert (await site.client.post(path, content=BODY, headers=sent)).status_code == 200, (path, sent)

    @pytest.mark.parametrize("keys", [[], ["secret"]])
    async def test_foreign_pages_may_not_omit_the_content_type(self, new_site: NewSite, keys: list[str]) -> None:
        site = await new_site(cors={"origins": ["*"]}, api_keys=keys)
        for path, headers in product(UNTYPED, STRANGE):
            for type in ("text/plain", "text/plain;application/json", "application/x-www-form-urlencoded", ""):
                sent = headers | {"X-API-Key": "secret"} | ({"Content-Type": type} if type else {})
                answer = await site.client.post(path, content=BODY, headers=sent)
                assert answer.status_code == 400, (path, sent)
                assert "application/json" in answer.text
            typed = headers | {"X-API-Key": "secret", "Content-Type": "application/json; charset=utf-8"}
            assert (await site.client.post(path, content=BODY, headers=typed)).status_code == 200

    async def test_routes_without_body_need_no_content_type(self, new_site: NewSite) -> None:
        site = await new_site(cors={"origins": ["*"]})
        assert (await site.client.post("/chat/token", headers={"Origin": EVIL})).status_code == 200


@pytest.mark.parametrize("keys", [[], ["secret"]])
async def test_every_answer_has_security_headers(new_site: NewSite, keys: list[str]) -> None:
    site = await new_site(api_keys=keys)
    for headers in ({}, {"X-API-Key": "secret"}, REBOUND[0], STRANGE[0]):
        for method, path in {*routes(site), ("POST", "/v1/models"), ("GET", f"{STREAM}?prompt=hi")}:
            answer = await site.client.request(method, path, headers=headers)
            assert answer.headers["x-content-type-options"] == "nosniff", (method, path)
            *of_page, policy = answer.headers.get_list("content-security-policy")
            assert policy == "frame-ancestors 'none'", (method, path)
            assert bool(of_page) == (path in PAGES and answer.status_code == 200), (method, path)
            is_file = path.startswith("/static/")
            expected = "no-cache" if is_file else "no-store"
            assert answer.headers.get("cache-control") == expected, (method, path)


async def test_streams_and_errors_have_security_headers(new_server: NewSite, engine: FakeEngine) -> None:
    site = await new_server()
    streamed = await ask(site, stream=True)
    engine.refusal = RuntimeError("it broke")  # type: ignore[assignment]
    failed = await ask(site)
    assert (streamed.status_code, failed.status_code) == (200, 500)
    for answer in (streamed, failed):
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
