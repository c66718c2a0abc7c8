"""One line an event, with the request's id on it, and nobody else's line breaks in it."""

import io
import json
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr

import pytest

from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

HI = {"messages": [{"content": "hi"}]}
ID = {"X-Request-Id": "the-id"}


class Log:
    """A site, and what it says on the standard error."""

    def __init__(self, site: Site, written: io.StringIO) -> None:
        self.client = site.client
        self._written = written

    def lines(self, containing: str) -> list[str]:
        lines = self._written.getvalue().split("\n")
        return [line for line in lines if containing in line and "HTTP Request" not in line]


NewLog = Callable[..., Awaitable[Log]]


@pytest.fixture
def new_log(new_site: NewSite) -> NewLog:
    async def new_log(**settings: object) -> Log:
        with redirect_stderr(io.StringIO()) as written:
            return Log(await new_site(**settings), written)

    return new_log


@pytest.fixture(params=["text", "json"])
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def log(new_log: NewLog, format: str) -> Log:
    return await new_log(log={"format": format})


async def test_access_line(log: Log, format: str) -> None:
    await log.client.get("/health?token=secret", headers=ID)
    (line,) = log.lines("/health")
    assert "secret" not in line
    if format == "text":
        assert "INFO" in line
        assert "the-id GET /health 200" in line
        return
    found = json.loads(line)
    assert {"time", "message", "seconds"} < set(found)
    assert found["level"] == "INFO"
    assert (found["request_id"], found["method"], found["path"], found["status"]) == ("the-id", "GET", "/health", 200)


@pytest.mark.parametrize("forged", ["%0A", "%0D%0A", "%E2%80%A8", "%C2%85", "%0B", "%1B%5B2K"], ids=str)
async def test_path_cannot_forge_a_line(log: Log, format: str, forged: str) -> None:
    await log.client.get(f"/no/such{forged}2026-01-01 00:00:00 CRITICAL - forged")
    (line,) = log.lines("forged")
    assert "/no/such" in line
    assert line.isprintable() or format == "json"


async def test_lines_from_deeper_down_carry_the_id_too(log: Log, format: str, engine: FakeEngine) -> None:
    engine.refusal = RuntimeError("it broke")  # type: ignore[assignment]
    await log.client.post("/v1/chat/completions", json=HI, headers=ID)
    loaded, failed, accessed = log.lines("the-id")
    assert "loaded in" in loaded
    assert "unexpected error" in failed
    assert "POST /v1/chat/completions 500" in accessed
    if format == "json":
        assert "RuntimeError: it broke" in json.loads(failed)["exception"]


async def test_answer_that_outlives_its_request_keeps_its_id(log: Log, format: str, engine: FakeEngine) -> None:
    engine.script = ("Hel", RuntimeError("it broke"))
    await log.client.get("/chat/stream", params={"prompt": "hi"}, headers=ID)
    assert any("an answer broke off" in line for line in log.lines("the-id"))


async def test_level_is_a_setting(new_log: NewLog) -> None:
    log = await new_log(log={"level": "warning"})
    await log.client.get("/health")
    assert log.lines("/health") == []


async def test_open_server_says_so(new_log: NewLog) -> None:
    assert (await new_log()).lines("everybody")
    assert not (await new_log(api_keys="secret")).lines("everybody")
