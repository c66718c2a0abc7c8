"""Authentication, owners, stream tokens and CORS."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends

from app.common.auth import OPEN, Keys, require_admin
from app.common.settings import ApiKey, Settings
from services.callers import Caller
from tests.apps import NewSite, Site, is_administration

ONE, TWO = "sk-one", "sk-two"
CHAT, NEW, GET, STREAM = "/v1/chat/completions", "/chat/new/message/", "/chat/get/messages/", "/chat/stream"
HI = {"messages": [{"content": "hi"}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def closed(new_site: NewSite) -> Site:
    return await new_site(api_keys=[ONE, TWO])


async def ask(site: Site, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    return await site.client.post(path, json={**HI, "prompt": "hi", **fields}, headers=headers)


def routes(site: Site) -> Iterator[tuple[str, str]]:
    """All routes, documented or not, and unknown ones."""
    from app.main import CONTROLLERS

    documented = site.app.openapi()["paths"]
    yield from ((method.upper(), path) for path, methods in documented.items() for method in methods)
    for controller in CONTROLLERS:
        for route in controller.router.routes:
            yield from ((method, route.path) for method in route.methods)
    for path in ("/docs", "/redoc", "/openapi.json", "/no/such/route", "/static", "/health/"):
        yield "GET", path
    yield "POST", "/no/such/route"
    yield "OPTIONS", "/no/such/route"


class TestEveryRoute:
    async def test_needs_a_key_except_a_short_list(self, closed: Site) -> None:
        seen = set()
        for method, path in set(routes(closed)):
            answer = await closed.client.request(method, path.replace("{model:path}", "a/b").replace("{model}", "a"))
            assert (answer.status_code == 401) == (path not in OPEN), (method, path)
            seen.add(path)
        assert {CHAT, "/chat/completions", "/v1/embeddings", "/models", "/metrics", STREAM, GET, "/chat"} < seen

    async def test_accepts_a_known_key(self, closed: Site) -> None:
        for method, path in set(routes(closed)):
            answer = await closed.client.request(method, path, headers=bearer(ONE))
            if is_closed := is_administration(method, path):
                assert answer.status_code == 404, (method, path)
            assert ("needs an admin key" in answer.text) == (is_closed and method != "HEAD"), (method, path)
            assert answer.status_code != 401, (method, path)

    async def test_only_page_files_are_open(self, closed: Site) -> None:
        assert (await closed.client.get("/static/nothing.js")).status_code == 404
        for path in ("/static/../v1/models", "/static/%2e%2e/v1/models", "/static/..%2f..%2fcommon/settings.py"):
            assert (await closed.client.get(path)).status_code in (401, 404), path


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            bearer(ONE),
            {"Authorization": f"bearer  {ONE} "},
            {"X-API-Key": ONE},
            {"X-API-Key": ONE, "Authorization": "Basic abc"},
            {"X-API-Key": "wrong", "Authorization": f"Bearer {ONE}"},
        ],
        ids=str,
    )
    async def test_known_key_is_accepted(self, closed: Site, headers: dict[str, str]) -> None:
        assert (await ask(closed, headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            bearer("wrong"),
            bearer(""),
            bearer(ONE[:-1]),
            bearer(hashlib.sha256(ONE.encode()).hexdigest()),
            {"Authorization": ONE},
            {"Authorization": f"Basic {ONE}"},
            {"X-API-Key": "wrong"},
            {"X-API-Key": ""},
        ],
        ids=str,
    )
    async def test_unknown_key_is_rejected(self, closed: Site, headers: dict[str, str]) -> None:
        refused = await ask(closed, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert ONE not in refused.text

    async def test_key_may_be_configured_as_a_hash(self, new_site: NewSite) -> None:
        site = await new_site(api_keys="sha256:" + hashlib.sha256(ONE.encode()).hexdigest())
        assert (await ask(site, headers=bearer(ONE))).status_code == 200
        assert (await ask(site, headers=bearer(TWO))).status_code == 401

    def test_missing_key_never_matches_the_hash_of_an_empty_key(self) -> None:
        keys = Keys([ApiKey(digest=hashlib.sha256(b"").digest())], token_ttl=60)
        assert (keys.caller(None), keys.caller("")) == (None, None)

    def test_key_and_its_hash_have_the_same_owner(self) -> None:
        digest = hashlib.sha256(ONE.encode()).hexdigest()
        by_key, by_hash = (Settings(_env_file=None, api_keys=each).api_keys[0] for each in (ONE, f"sha256:{digest}"))
        assert by_key.owner == by_hash.owner
        assert ONE not in repr(by_key)


class TestAdmins:
    @pytest.fixture
    async def administered(self, new_site: NewSite) -> Site:
        site = await new_site(api_keys=[ONE], admin_key=TWO)

        @site.app.get("/v1/administration/{id}")
        async def administer(caller: Annotated[Caller, Depends(require_admin)]) -> str:
            return caller.role

        return site

    async def test_only_an_admin_key_is_let_in(self, administered: Site) -> None:
        answers = {
            key: [await administered.client.get(f"/v1/administration/{id}", headers=bearer(key)) for id in "ab"]
            for key in (ONE, TWO, "wrong")
        }
        assert {key: {each.status_code for each in found} for key, found in answers.items()} == {
            ONE: {404},
            TWO: {200},
            "wrong": {401},
        }
        assert answers[ONE][0].text == answers[ONE][1].text
        assert (await ask(administered, headers=bearer(TWO))).status_code == 200  # it is a key like any other

    async def test_an_admin_key_alone_closes_the_server(self, new_site: NewSite) -> None:
        site = await new_site(admin_key=TWO)
        assert [(await ask(site, headers=headers)).status_code for headers in (None, bearer(TWO))] == [401, 200]

    async def test_without_keys_nobody_is_an_admin(self, administered: Site, new_site: NewSite) -> None:
        site = await new_site()
        site.app.router.routes.append(administered.app.router.routes[-1])
        assert (await site.client.get("/v1/administration/a")).status_code == 404


class TestOwners:
    async def test_each_key_sees_only_its_own_messages(self, closed: Site) -> None:
        mine = (await ask(closed, NEW, bearer(ONE))).json()
        conversation, message = mine["conversation_id"], mine["message_id"]
        for headers, status in ((bearer(ONE), 200), (bearer(TWO), 404)):
            query = {"conversation_id": conversation}
            assert (await closed.client.get(GET, params=query, headers=headers)).status_code == status
            assert (await ask(closed, CHAT, headers, conversation=conversation)).status_code == status
            assert (await ask(closed, CHAT, headers, conversation=conversation, stream=True)).status_code == status
            assert (await ask(closed, NEW, headers, conversation_id=conversation)).status_code == status
            resume = {**headers, "Last-Event-ID": f"{message}:0"}
            assert (await closed.client.get(STREAM, params={"prompt": "hi"}, headers=resume)).status_code == status
            ours = {"prompt": "hi", "conversation_id": conversation}
            assert (await closed.client.get(STREAM, params=ours, headers=headers)).status_code == status

    async def test_latest_conversation_is_the_callers(self, closed: Site) -> None:
        await ask(closed, NEW, bearer(ONE), prompt="mine")
        await ask(closed, NEW, bearer(TWO), prompt="yours")
        listed = (await closed.client.get(GET, headers=bearer(ONE))).json()["data"]
        assert [each["content"] for each in listed] == ["mine", "Hello, world!"]


class TestStreamToken:
    async def token(self, site: Site, key: str = ONE) -> str:
        answer = await site.client.post("/chat/token", headers=bearer(key))
        assert set(answer.json()) == {"token", "expires_in"}
        return str(answer.json()["token"])

    async def listen(self, site: Site, token: str, path: str = STREAM) -> int:
        return (await site.client.get(path, params={"prompt": "hi", "token": token})).status_code

    async def test_token_opens_the_stream_of_its_owner(self, closed: Site) -> None:
        assert await self.listen(closed, await self.token(closed)) == 200
        listed = (await closed.client.get(GET, headers=bearer(ONE))).json()["data"]
        assert [each["content"] for each in listed] == ["hi", "Hello, world!"]
        assert (await closed.client.get(GET, headers=bearer(TWO))).json()["data"] == []

    @pytest.mark.parametrize("path", [GET, "/chat", "/v1/models", "/chat/token", "/chat/stream/"])
    async def test_token_opens_no_other_route(self, closed: Site, path: str) -> None:
        token = await self.token(closed)
        assert await self.listen(closed, token, path) == 401
        assert (await closed.client.get(GET, headers=bearer(token))).status_code == 401

    async def test_token_is_not_issued_without_a_key(self, closed: Site) -> None:
        assert (await closed.client.post("/chat/token")).status_code == 401

    async def test_forged_token_is_rejected(self, closed: Site) -> None:
        owner, time, signature = (await self.token(closed)).split(".")
        other = (await self.token(closed, TWO)).split(".")
        for forged in (
            f"{other[0]}.{time}.{signature}",
            f"{owner}.{time[:-1]}{'Q' if time.endswith('A') else 'A'}.{signature}",
            f"{owner}.{time}.{other[2]}",
            f"{owner}.{time}.{signature[:-1]}",
            f"{owner}.{time}.",
            f"{owner}.{time}",
            owner,
            f"{owner}.x.{signature}",
            f"{owner}.{'9' * 5000}.{signature}",
            f"{owner}.²{time}.{signature}",
            "..",
            "",
            "\u20ac",
        ):
            assert await self.listen(closed, forged) == 401, forged

    def test_token_expires(self) -> None:
        keys = [ApiKey(digest=b"0" * 32)]
        caller = Caller(keys[0].owner)
        assert Keys(keys, token_ttl=60).token_caller(Keys(keys, token_ttl=60).token(caller)) == caller
        assert Keys(keys, token_ttl=-60).token_caller(Keys(keys, token_ttl=60).token(caller)) is None

    def test_token_signed_with_another_key_is_rejected(self) -> None:
        ours, theirs = (Keys([ApiKey(digest=digest * 32)], token_ttl=60) for digest in (b"0", b"1"))
        assert ours.token_caller(theirs.token(Caller(ApiKey(digest=b"0" * 32).owner))) is None

    async def test_token_is_not_needed_without_keys(self, site: Site) -> None:
        token = (await site.client.post("/chat/token")).json()["token"]
        assert await self.listen(site, token) == 200


class TestCors:
    @pytest.fixture
    async def open_to_one(self, new_site: NewSite) -> Site:
        return await new_site(api_keys=[ONE], cors={"origins": ["https://chat.example"]})

    async def preflight(self, site: Site, origin: str) -> httpx2.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        return await site.client.options(CHAT, headers=headers)

    async def test_preflight_needs_no_key(self, open_to_one: Site) -> None:
        answer = await self.preflight(open_to_one, "https://chat.example")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert "POST" in answer.headers["access-control-allow-methods"]

    async def test_preflight_of_an_unknown_origin_is_rejected(self, open_to_one: Site) -> None:
        answer = await self.preflight(open_to_one, "https://evil.example")
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers

    async def test_errors_have_cors_headers(self, open_to_one: Site) -> None:
        refused = await ask(open_to_one, headers={"Origin": "https://chat.example"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://chat.example")
        assert refused.headers["access-control-expose-headers"]
