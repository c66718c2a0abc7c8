"""Unknown query keys are reported as ignored on every GET route."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.apps import MODEL, NewSite, Site, post

MESSAGES = [{"role": "user", "content": "hi"}]
NEEDED = {"/v1/conversations/search": "query=hi&", "/chat/stream": "prompt=hi&"} | {
    f"/v1/organization/usage/{kind}": "start_time=1&" for kind in ("completions", "embeddings")
}
ADMIN = "admin-key-of-this-test"


async def administered(new_site: NewSite, **settings: object) -> Site:
    """A site whose client may do everything."""
    site = await new_site(admin_key=ADMIN, **settings)
    site.client.headers["X-API-Key"] = ADMIN
    return site


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await administered(new_site)


def documented(site: Site) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in site.app.openapi()["paths"].items():
        if "get" in methods and not path.startswith(("/health", "/metrics")):
            yield path, methods["get"]


async def ids(site: Site) -> dict[str, str]:
    conversation = (await post(site, "/v1/conversations", items=MESSAGES))["id"]
    items = (await site.client.get(f"/v1/conversations/{conversation}/items")).json()["data"]
    upload = {"file": ("a.txt", b"text")}
    file = await site.client.post("/v1/files", files=upload, data={"purpose": "user_data"})
    request = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi"}}'
    input = await site.client.post("/v1/files", files={"file": ("a", request)}, data={"purpose": "batch"})
    window = {"endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await post(site, "/v1/batches", input_file_id=input.json()["id"], **window)
    projects = "/v1/organization/projects"
    project = (await post(site, projects, name="a project"))["id"]
    account = await post(site, f"{projects}/{project}/service_accounts", name="an account")
    return {
        "project_id": project,
        "account_id": account["id"],
        "key_id": account["api_key"]["id"],
        "conversation_id": conversation,
        "item_id": items[0]["id"],
        "completion_id": (await post(site, "/v1/chat/completions", messages=MESSAGES, store=True))["id"],
        "response_id": (await post(site, "/v1/responses", input="hi"))["id"],
        "file_id": file.json()["id"],
        "batch_id": batch["id"],
        "model": MODEL,
    }


def ignored(answer: httpx2.Response) -> str | None:
    header: str | None = answer.headers.get("x-parley-ignored")
    return header


async def test_every_get_route_reports_unknown_keys(site: Site) -> None:
    known = await ids(site)
    seen = set()
    for path, _ in documented(site):
        url = f"{path.format(**known)}?{NEEDED.get(path, '')}"
        for each in {url, url.removeprefix("/v1")}:
            answer = await site.client.get(f"{each}zebra=1&apple[x]=2&zebra=3&limits=5")
            assert (answer.status_code, ignored(answer)) == (200, "apple[x], limits, zebra"), each
            assert ignored(await site.client.get(each)) is None
        seen.add(path)
    assert {"/v1/conversations", "/v1/chat/completions", "/chat/get/messages/", "/v1/models", "/api/tags"} < seen


async def test_documented_keys_are_not_reported(site: Site) -> None:
    known = await ids(site)
    for path, operation in documented(site):
        url = f"{path.format(**known)}?{NEEDED.get(path, '')}"
        for parameter in operation.get("parameters", ()):
            name = f"{parameter['name']}[a]" if parameter.get("style") == "deepObject" else parameter["name"]
            if parameter["in"] == "query":
                value = "false" if name == "include_obfuscation" else "1"  # `true` is ignored by its value
                assert ignored(await site.client.get(f"{url}{name}={value}")) is None, (path, name)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/chat/completions?metadata[a]=b&metadata=x&metadat[a]=b", "metadat[a], metadata"),
        ("/chat/stream?prompt=hi&token=x&tokens=x", "tokens"),
        ("/chat/get/messages/?token=x", "token"),
        ("/v1/conversations?%0d%0aSet-Cookie:x=1", None),  # not a valid header value
    ],
)
async def test_keys_read_elsewhere_are_not_reported(site: Site, path: str, names: str | None) -> None:
    answer = await site.client.get(path)
    assert (answer.status_code, ignored(answer)) == (200, names)


async def test_unknown_keys_of_query_and_body_are_both_reported(site: Site) -> None:
    path = f"/v1/conversations/{(await ids(site))['conversation_id']}/items"
    answer = await site.client.post(f"{path}?include[]=x&zebra=1", json={"items": MESSAGES, "apple": 1})
    assert answer.status_code == 400  # the value of include[], a known key
    answer = await site.client.post(f"{path}?zebra=1", json={"items": MESSAGES, "apple": 1})
    assert (answer.status_code, ignored(answer)) == (200, "apple, zebra")
    assert ignored(await site.client.post("/v1/chat/completions?api-version=1", json={"messages": MESSAGES})) is None


async def test_strict_server_rejects_unknown_keys(new_site: NewSite) -> None:
    site = await administered(new_site, strict=True)
    known = await ids(site)
    for path, _ in documented(site):
        url = f"{path.format(**known)}?{NEEDED.get(path, '')}"
        assert (await site.client.get(url)).status_code == 200
        answer = await site.client.get(f"{url}zebra=1")
        assert answer.status_code == 400, path
        assert "Unknown parameter: 'zebra'" in answer.text
    messages = (await site.client.get("/chat/get/messages/")).json()["data"]
    assert len([each for each in messages if each["role"] == "user"]) == 1
