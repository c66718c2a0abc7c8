"""Log lines have the request id, and callers cannot inject line breaks."""

import io
import json
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr

import pytest

from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

HI = {"messages": [{"content": "hi"}]}
ID = {"X-Request-Id": "the-id"}


class Log:
    """A site and its standard error."""

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
async def test_path_cannot_inject_a_line(log: Log, format: str, forged: str) -> None:
    await log.client.get(f"/no/such{forged}2026-01-01 00:00:00 CRITICAL - forged")
    (line,) = log.lines("forged")
    assert "/no/such" in line
    assert line.isprintable() or format == "json"


async def test_lines_of_services_have_the_id(log: Log, format: str, engine: FakeEngine) -> None:
    engine.refusal = RuntimeError("it broke")  # type: ignore[assignment]
    await log.client.post("/v1/chat/completions", json=HI, headers=ID)
    loaded, failed, accessed = log.lines("the-id")
    assert "loaded in" in loaded
    assert "unexpected error" in failed
    assert "POST /v1/chat/completions 500" in accessed
    if format == "json":
        assert "RuntimeError: it broke" in json.loads(failed)["exception"]


async def test_background_answer_keeps_the_request_id(log: Log, format: str, engine: FakeEngine) -> None:
    engine.script = ("Hel", RuntimeError("it broke"))
    await log.client.get("/chat/stream", params={"prompt": "hi"}, headers=ID)
    assert any("A background stream failed" in line for line in log.lines("the-id"))


async def test_level_is_a_setting(new_log: NewLog) -> None:
    log = await new_log(log={"level": "warning"})
    await log.client.get("/health")
    assert log.lines("/health") == []


async def test_server_without_keys_logs_a_warning(new_log: NewLog) -> None:
    assert (await new_log()).lines("anybody")
    assert not (await new_log(api_keys="secret")).lines("anybody")


class TestDebug:
    """At debug level: prompts and answers of all routes are not logged."""

    PROMPT, ANSWER = "xylophone", "Zanzibar"

    async def request_everything(self, site: Site) -> None:
        client, prompt = site.client, self.PROMPT
        messages = [{"role": "user", "content": prompt}]
        for stream in (False, True):
            for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
                body = {"messages": messages, "max_tokens": 9, "stream": stream, "model": "default", "store": True}
                assert (await client.post(path, json=body)).status_code == 200
            for path in ("/v1/responses", "/predict"):
                assert (await client.post(path, json={"input": prompt, "stream": stream})).status_code == 200
            for path in ("/v1/completions", "/chat/new/message/", "/api/generate"):
                assert (await client.post(path, json={"prompt": prompt, "stream": stream})).status_code == 200
        assert (await client.get("/chat/stream", params={"prompt": prompt})).status_code == 200
        kept = await client.post("/v1/conversations", json={"items": messages, "metadata": {prompt: prompt}})
        assert kept.status_code == 200
        for path in (f"/v1/conversations/search?query={prompt}", "/chat/get/messages/", "/v1/chat/completions"):
            assert {prompt, self.ANSWER} & set(re.findall(r"\w+", (await client.get(path)).text))
        for wrong in ({"messages": prompt}, {"messages": messages, "temperature": prompt}, {prompt: prompt}):
            assert (await client.post("/v1/chat/completions", json=wrong)).status_code == 400

    async def test_prompts_and_answers_are_not_logged(
        self, new_server: NewSite, engine: FakeEngine, database_url: str
    ) -> None:
        engine.script = (self.ANSWER, " ", self.ANSWER)
        with redirect_stderr(io.StringIO()) as written:
            site = await new_server(log={"level": "debug"}, database={"url": database_url, "migrate": True})
            await self.request_everything(site)
            engine.script = (self.ANSWER, RuntimeError("it broke"))
            await site.client.post("/chat/new/message/", json={"prompt": self.PROMPT})
        log = written.getvalue()
        assert "POST /chat/new/message/ 500" in log
        for word in (self.PROMPT, self.ANSWER):
            assert [line for line in log.split("\n") if word in line] == []

    async def test_own_debug_lines_are_logged(self, new_log: NewLog) -> None:
        log = await new_log(log={"level": "debug"})
        for name in ("services.x", "app.x", "database.x", "sse_starlette.x", "anybody"):
            logging.getLogger(name).debug("a detail of %s", name)
        lines = log.lines("a detail of")
        assert [line.split()[-1] for line in lines] == ["services.x", "app.x", "database.x"]
