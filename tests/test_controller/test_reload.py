"""POST /admin/reload and `parley admin reload`."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from app.common.settings import Settings
from database.session import Database
from services.history.store import Store
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine, Pause
from tools import admin

ADMIN, USER, NEW = "admin-key-of-this-test", "user-key-of-this-test", "new-key-of-this-test"
KEYS: dict[str, Any] = {"api_keys": [USER], "admin_key": ADMIN}
HI = {"messages": [{"content": "hi"}], "model": MODEL}


def changed(**settings: Any) -> Callable[[dict[str, Any]], Settings]:
    return lambda before: Settings(_env_file=None, **{**before, **settings})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def reload(site: Site) -> Any:
    answer = await site.client.post("/admin/reload", headers=bearer(ADMIN))
    return answer.json()


async def status(site: Site, key: str) -> int:
    return (await site.client.get("/v1/models", headers=bearer(key))).status_code


async def test_keys_come_and_go(new_site: NewSite) -> None:
    site = await new_site(**KEYS, read_settings=changed(api_keys=[NEW]))
    assert (await status(site, USER), await status(site, NEW)) == (200, 401)
    found = await reload(site)
    assert found == {
        "object": "reload",
        "models": {"added": [], "changed": [], "removed": []},
        "keys": {"added": 1, "removed": 1},
        "needs_restart": [],
    }
    assert (await status(site, USER), await status(site, NEW), await status(site, ADMIN)) == (401, 200, 200)


async def test_models_and_aliases(new_site: NewSite) -> None:
    model = {"name": MODEL, "preload": False, "aliases": {"gpt-4o": "more"}}
    settings = changed(model=model, models=[{"name": "more"}], embedding={"name": "others", "kind": "embedding"})
    site = await new_site(**KEYS, read_settings=settings)
    found = await reload(site)
    assert found["models"] == {"added": ["more", "others"], "changed": [], "removed": ["fake-embedding"]}
    listed = (await site.client.get("/v1/models", headers=bearer(USER))).json()["data"]
    assert [each["id"] for each in listed] == [MODEL, "more", "others"]
    answer = await site.client.post("/v1/chat/completions", json={**HI, "model": "gpt-4o"}, headers=bearer(USER))
    assert answer.status_code == 200


async def test_a_running_answer_is_made_to_its_end(new_server: NewSite, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hello", pause, " again")
    site = await new_server(**KEYS, read_settings=changed(engine={"max_model_len": 512}))
    answer = asyncio.create_task(site.client.post("/v1/chat/completions", json=HI, headers=bearer(USER)))
    await pause.reached.wait()
    assert (await reload(site))["models"]["changed"] == [MODEL]
    pause.go.set()
    assert (await answer).json()["choices"][0]["message"]["content"] == "Hello again"


async def test_what_needs_a_restart_is_named(new_site: NewSite) -> None:
    settings = changed(strict=True, server={"keepalive_s": 3, "drain_s": 7})
    site = await new_site(**KEYS, read_settings=settings)
    assert (await reload(site))["needs_restart"] == [
        "PARLEY_SERVER__KEEPALIVE_S",
        "PARLEY_SERVER__DRAIN_S",
        "PARLEY_STRICT",
    ]


def wrong(before: dict[str, Any]) -> Settings:
    raise ValueError("PARLEY_STRICT: 100 % wrong")


@pytest.mark.parametrize(
    ("read_settings", "message"),
    [
        (wrong, "The settings were not reloaded: PARLEY_STRICT: 100 % wrong"),
        (changed(models=[{"name": MODEL}]), f"The settings were not reloaded: two models are called '{MODEL}': "),
        (changed(api_keys=[], admin_key=None), "The settings have no keys any more: "),
        (None, "This server is one of several processes"),
    ],
)
async def test_wrong_settings_change_nothing(new_site: NewSite, read_settings: Any, message: str) -> None:
    site = await new_site(**KEYS, read_settings=read_settings)
    answer = await site.client.post("/admin/reload", headers=bearer(ADMIN))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert await status(site, USER) == 200


async def test_only_an_administrator_may(new_site: NewSite) -> None:
    site = await new_site(**KEYS, read_settings=changed(api_keys=[NEW]))
    assert (await site.client.post("/admin/reload", headers=bearer(USER))).status_code == 404
    assert await status(site, USER) == 200


async def test_it_is_in_the_audit_log(new_site: NewSite, store: Database) -> None:
    site = await new_site(**KEYS, read_settings=changed())
    await reload(site)
    async with Store(store).reading() as repositories:
        (event,) = await repositories.audit.events()
    assert (event.action, event.target) == ("settings.reloaded", "settings")


async def test_the_command(new_server: NewSite) -> None:
    settings = changed(api_keys=[USER, NEW], models=[{"name": "more"}], strict=True)
    site = await new_server(**KEYS, read_settings=settings)

    async def parley(*arguments: str) -> tuple[int, str]:
        options = ["reload", "--url", str(site.client.base_url), *arguments]
        result = await asyncio.to_thread(CliRunner().invoke, admin.app, options)
        return result.exit_code, result.output

    assert await parley("--api-key", ADMIN) == (
        0,
        "model more: added\nkeys of the settings: 1 added\n"
        "PARLEY_STRICT has changed, too: it holds from the next start on\n",
    )
    code, output = await parley("--api-key", USER)
    assert (code, "administration needs an admin key" in output) == (2, True)
