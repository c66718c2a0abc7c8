import asyncio
import time
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from services import key_service
from services.callers import Caller, KeyLimits
from services.key_service import PREFIX, KeyService
from tests.apps import NewSite, Site
from tools.keys import app

LIMITS = ["--models", "fake-chat, other", "--rpm", "5", "--tpm", "70", "--parallel", "2", "--budget", "900"]


def run(*arguments: str, url: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--database-url", url])
    assert result.exit_code == code, result.output
    return result


async def run_in_thread(*arguments: str, url: str, code: int = 0) -> Result:
    return await asyncio.to_thread(run, *arguments, url=url, code=code)


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


async def listed(url: str) -> list[dict[str, str]]:
    head, *rows = (await run_in_thread("list", url=url)).stdout.splitlines()
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


async def status(site: Site, key: str) -> int:
    """After the replica has looked for changes, as it does every two seconds."""
    await site.services.stored_keys.refresh()
    return (await site.client.get("/v1/models", **bearer(key))).status_code


async def test_keys_work_on_all_replicas_without_a_restart(new_site: NewSite, database_url: str) -> None:
    replicas = [await new_site(database={"url": database_url, "migrate": False}) for _ in range(2)]
    assert [await status(each, "none yet") for each in replicas] == [200, 200]
    created = await run_in_thread("create", "--name", "laptop", *LIMITS, url=database_url)
    key = created.stdout.strip()
    assert key.startswith(PREFIX)
    assert [await status(each, key) for each in replicas] == [200, 200]
    assert [await status(each, "another") for each in replicas] == [401, 401]
    rotated = (await run_in_thread("rotate", "laptop", url=database_url)).stdout.strip()
    assert [await status(each, key) for each in replicas] == [401, 401]
    assert [await status(each, rotated) for each in replicas] == [200, 200]
    (row,) = await listed(database_url)
    limits = {"rpm": "5", "tpm": "70", "parallel": "2", "budget": "900"}
    assert row | limits == row
    assert (row["state"], row["models"], row["key"]) == ("active", "fake-chat,other", f"…{rotated[-4:]}")
    assert not {key, rotated} & set("\n".join(row.values()).split())
    await run_in_thread("revoke", row["id"], url=database_url)
    # the last key is gone: nobody gets in, and not everybody
    assert [await status(each, rotated) for each in replicas] == [401, 401]
    assert [each["state"] for each in await listed(database_url)] == ["revoked"]


async def test_a_running_server_looks_for_changes(
    new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.key_service.POLL_S", 0)
    site = await new_site(database={"url": database_url, "migrate": False})
    assert not site.services.keys
    await run_in_thread("create", "--name", "first", url=database_url)
    while not site.services.keys:  # noqa: ASYNC110  the service has no event for its changes
        await asyncio.sleep(0)
    assert (await site.client.get("/v1/models")).status_code == 401


async def test_a_new_key_is_known_at_its_first_use(
    new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.key_service.POLL_S", 3600)
    site = await new_site(database={"url": database_url, "migrate": False}, api_keys="from-settings")
    made = (await run_in_thread("create", "--name", "new", url=database_url)).stdout.strip()
    assert (await site.client.get("/v1/models", **bearer(made))).status_code == 200


async def test_the_first_key_owns_what_is_stored_from_its_first_use(
    new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not everybody, as before there were keys: its next request would not find that."""
    monkeypatch.setattr("services.key_service.POLL_S", 3600)
    site = await new_site(database={"url": database_url, "migrate": False})
    for _ in range(3):  # not a key, and no reason to refuse anybody before there are any
        assert (await site.client.get("/v1/models", **bearer("sk-parley-of-another-server"))).status_code == 200
    key = (await run_in_thread("create", "--name", "first", url=database_url)).stdout.strip()
    made = await site.client.post("/v1/conversations", json={}, **bearer(key))
    path = f"/v1/conversations/{made.json()['id']}"
    assert (await site.client.get(path, **bearer(key))).status_code == 200
    assert (await site.client.get(path, **bearer("sk-parley-of-another-server"))).status_code == 401


async def test_guesses_do_not_become_statements(
    new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.key_service.POLL_S", 3600)
    site = await new_site(database={"url": database_url, "migrate": False}, api_keys="from-settings")
    looks = []
    refresh = site.services.stored_keys.refresh
    monkeypatch.setattr(site.services.stored_keys, "refresh", lambda: looks.append(1) or refresh())
    guesses = [f"sk-parley-{guess}" for guess in range(20)]
    for _ in range(2):  # the second time all of them are known to be no keys
        began = time.monotonic()
        answers = await asyncio.gather(*(site.client.get("/v1/models", **bearer(guess)) for guess in guesses))
        assert {each.status_code for each in answers} == {401}
        assert len(looks) <= 2 + (time.monotonic() - began) / key_service.LOOK_S
    assert len(looks) < len(guesses)
    before = len(looks)
    await site.client.get("/v1/models", **bearer(guesses[0]))
    assert len(looks) == before


async def test_keys_of_a_project_share_what_they_store(new_site: NewSite, database_url: str) -> None:
    site = await new_site(database={"url": database_url, "migrate": False}, api_keys="from-settings")
    create = ["create", "--name"]
    ours = [(await run_in_thread(*create, name, "--project", "team", url=database_url)).stdout.strip() for name in "ab"]
    others = [(await run_in_thread(*create, "c", url=database_url)).stdout.strip(), "from-settings"]
    await site.services.stored_keys.refresh()
    made = await site.client.post("/v1/conversations", json={}, **bearer(ours[0]))
    path = f"/v1/conversations/{made.json()['id']}"
    assert [(await site.client.get(path, **bearer(key))).status_code for key in (*ours, *others)] == [
        200,
        200,
        404,
        404,
    ]
    token = (await site.client.post("/chat/token", **bearer(ours[1]))).json()["token"]
    streamed = await site.client.get("/chat/stream", params={"prompt": "hi", "token": token})
    assert streamed.status_code == 200
    stored = await site.client.get("/chat/get/messages/", **bearer(ours[0]))
    assert [each["content"] for each in stored.json()["data"]] == ["hi", "Hello, world!"]
    await run_in_thread("revoke", "b", url=database_url)
    await site.services.stored_keys.refresh()
    assert (await site.client.get("/chat/stream", params={"prompt": "hi", "token": token})).status_code == 401


async def test_an_expired_key_is_refused(new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = await new_site(database={"url": database_url, "migrate": False})
    key = (await run_in_thread("create", "--name", "x", "--expires", "5m", url=database_url)).stdout.strip()
    assert await status(site, key) == 200
    monkeypatch.setattr("time.time", lambda: 1e11)
    assert await status(site, key) == 401
    (row,) = await listed(database_url)
    assert row["state"].startswith("expired")


async def test_a_key_sees_its_models_only(new_site: NewSite, sqlite_url: str) -> None:
    site = await new_site()
    keys = {
        model: (await run_in_thread("create", "--name", model, "--models", model, url=sqlite_url)).stdout.strip()
        for model in ("fake-chat", "fake-embedding")
    }
    await site.services.stored_keys.refresh()
    for model, key in keys.items():
        listed = (await site.client.get("/v1/models", **bearer(key))).json()["data"]
        assert [each["id"] for each in listed] == [model]
        ask = {"messages": [{"role": "user", "content": "hi"}]}
        for name in ("fake-chat", "default"):
            answer = await site.client.post("/v1/chat/completions", json=ask | {"model": name}, **bearer(key))
            assert answer.status_code == (200 if model == "fake-chat" else 404)
    assert (await site.client.get("/v1/models/fake-embedding", **bearer(keys["fake-chat"]))).status_code == 404


async def test_create_stores_no_key_and_all_of_its_limits(new_site: NewSite, sqlite_url: str) -> None:
    site = await new_site()
    await run_in_thread("create", "--name", "root", "--role", "admin", "--project", "ops", *LIMITS, url=sqlite_url)
    service: KeyService = site.services.stored_keys
    ((row, project),) = await service.keys()
    await service.refresh()
    known = service.by_id(row.id)
    assert known is not None
    allowed = frozenset({"fake-chat", "other"})
    assert known.caller == Caller(project.id, row.id, "admin", allowed, KeyLimits(5, 70, 2, 900))
    assert project.name == "ops"


async def test_update_changes_what_it_names(new_site: NewSite, sqlite_url: str) -> None:
    site = await new_site()
    await run_in_thread("create", "--name", "a", "--expires", "5m", *LIMITS, url=sqlite_url)
    await run_in_thread("update", "a", "--name", "b", "--rpm", "6", "--budget", "none", url=sqlite_url)
    (row,) = await listed(sqlite_url)
    assert [row[each] for each in ("name", "rpm", "tpm", "parallel", "budget")] == ["b", "6", "70", "2", "-"]
    await run_in_thread("update", "b", "--expires", "never", "--models", "all", url=sqlite_url)
    (row,) = await listed(sqlite_url)
    assert (row["state"], row["models"]) == ("active", "-")
    await site.services.stored_keys.refresh()
    assert site.services.stored_keys.by_id(row["id"]).caller.limits == KeyLimits(6, 70, 2, None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["create", "--name", "x", "--role", "root"], "--role"),
        (["create", "--name", "x", "--expires", "soon"], "soon"),
        (["create", "--name", "x", "--expires", "2001-01-01"], "over already"),
        (["create", "--name", "x", "--models", " , "], "--models"),
        (["create", "--name", "x", "--project", "proj_none"], "No project"),
        (["update", "nobody", "--rpm", "5"], "No key"),
        (["update", "x"], "name an option"),
        (["update", "x", "--rpm", "0"], "--rpm"),
        (["update", "x", "--models", ","], "--models"),
        (["rotate", "nobody"], "No key"),
        (["revoke", "key_nobody"], "No key"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named_in_one_line(sqlite_url: str, arguments: list[str], error: str) -> None:
    stderr = run(*arguments, url=sqlite_url, code=2).stderr
    assert error in stderr
    assert len(stderr.splitlines()) == 1


def test_a_name_that_two_keys_have_is_not_enough(sqlite_url: str) -> None:
    for _ in range(2):
        run("create", "--name", "twin", url=sqlite_url)
    assert "Several keys" in run("revoke", "twin", url=sqlite_url, code=2).stderr
