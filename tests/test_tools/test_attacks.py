"""The attacks find holes, and nothing on a correct server."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from app.common import auth
from tests.apps import NewSite, Site
from tests.databases import free_port
from tools.attacks import sites
from tools.attacks.registry import ATTACKS, attack
from tools.attacks.routes import is_open, routes_of
from tools.attacks.target import Finding, Target
from tools.faults import command as reliability

KEYS = ("alpha-key", "beta-key")
QUICK = ("authorisation", "isolation", "ssrf")


def target(site: Site, keys: tuple[str, ...] = KEYS, every: int = 1) -> Target:
    return replace(sites.named(str(site.client.base_url), keys), every=every)


async def command(site: Site, folder: Path, *options: str, keys: tuple[str, ...] = KEYS) -> Result:
    named = ["--address", str(site.client.base_url), "--output", str(folder / "attack.json")]
    given = ["attack", *named, *options, *(f"--key={key}" for key in keys)]
    return await asyncio.to_thread(CliRunner().invoke, reliability.app, given)


@pytest.fixture
async def guarded(new_server: NewSite) -> Site:
    return await new_server(api_keys=list(KEYS), log={"level": "ERROR"})


async def test_correct_server_has_no_findings(guarded: Site, tmp_path: Path) -> None:
    result = await command(guarded, tmp_path, "--every=61", *(f"--only={name}" for name in QUICK))
    figures = json.loads((tmp_path / "attack.json").read_text())

    assert [(name, each["through"]) for name, each in figures.items()] == [
        (name, []) for name in ATTACKS if name in QUICK
    ]
    assert result.exit_code == 0
    assert all(each["tries"] > 20 for each in figures.values())


async def test_an_open_route_is_reported(guarded: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "is_open", lambda path: path == "/v1/models" or is_open(path))
    result = await command(guarded, tmp_path, "--every=31", "--only=authorisation")
    figures = json.loads((tmp_path / "attack.json").read_text())

    assert result.exit_code == 1
    assert "GET /v1/models" in result.stdout
    assert all("/v1/models" in each for each in figures["authorisation"]["through"])


async def test_two_keys_of_one_owner_are_reported(guarded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def everybody(*_: object) -> auth.Caller:
        return auth.Caller("everybody")

    monkeypatch.setattr(auth.AuthMiddleware, "caller_of", everybody)
    through = (await attack("isolation", target(guarded, every=11))).through

    for what in ("GET /v1/conversations?", "what alpha has stored was changed", "Idempotency-Key", "/search?query"):
        assert any(what in each for each in through), what


@pytest.mark.parametrize(("hosts", "is_whole"), [([], True), (["*"], False)])
async def test_rebound_pages_are_reported(new_server: NewSite, hosts: list[str], is_whole: bool) -> None:
    site = await new_server(server={"allowed_hosts": hosts}, log={"level": "ERROR"})
    finding = await attack("pages", target(site, (), every=61))

    assert (not finding.through) is is_whole
    assert finding.tries > 20


@pytest.mark.parametrize("is_whole", [True, False])
async def test_connections_that_stay_open_are_reported(new_server: NewSite, is_whole: bool) -> None:
    seconds = 0.2 if is_whole else 60
    times = {"headers_timeout_s": seconds, "body_timeout_s": seconds, "body_rate": 1_000_000}
    site = await new_server(server=times, log={"level": "ERROR"})
    patient = replace(target(site, (), every=20), listens_for_s=60 if is_whole else 0.2)

    assert len((await attack("silent", patient)).through) == (0 if is_whole else 15)


async def test_probe_is_measured(guarded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(target: Target, finding: Finding) -> None:
        """An attack that does nothing."""

    monkeypatch.setitem(ATTACKS, "nothing", replace(ATTACKS["bombs"], run=nothing))
    assert (await attack("nothing", target(guarded))).worst_heartbeat_ms is not None


async def test_stopped_server_is_reported() -> None:
    gone = Target("127.0.0.1", free_port(), KEYS)
    assert ["does not answer" in each for each in (await attack("isolation", gone)).through] == [True]


def test_all_routes_are_attacked(new_app: Callable[..., FastAPI]) -> None:
    app = new_app(specs=["anthropic", "ollama"])
    known = {route.path for route in routes_of(app.openapi())}
    served = {each.path.replace(":path}", "}") for each in app.state.routes}
    assert {path for path in served if path not in known and not is_open(path)} == {"/static"}


@pytest.mark.parametrize(
    "options",
    [
        ["--only=nothing"],
        ["--address=localhost"],
        ["--address=http://localhost:1", "--key=one"],
        ["--address=http://localhost:1", "--key=one", "--key=two", "--only=pages"],
    ],
)
def test_invalid_target_is_reported(options: list[str]) -> None:
    result: Any = CliRunner().invoke(reliability.app, ["attack", *options])
    assert (result.exit_code, "Invalid value" in result.stderr) == (2, True)
