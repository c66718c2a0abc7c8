"""Graceful drain: running answers finish, or end with an error and are stored."""

import asyncio
import json
import signal
from collections.abc import Iterator

import httpx2
import pytest

from app.common import drain as drain_module
from app.common.drain import Drain
from services.conversation_service import ConversationService
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine, Pause

CHAT, NEW = "/v1/chat/completions", "/chat/new/message/"
HI = {"messages": [{"content": "hi"}]}


@pytest.fixture
def handed_on(process: None) -> Iterator[asyncio.Event]:
    """Stands for the server: set when the signal is passed on to it."""
    event = asyncio.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    return event


class Interrupt:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def interrupt() -> Interrupt:
    return Interrupt()


class TestSignal:
    async def test_is_passed_on_at_once_when_idle(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        drain = Drain(60, interrupt, is_busy=lambda: False)
        drain.install()
        assert not drain.has_begun
        signal.raise_signal(signal.SIGTERM)
        assert drain.has_begun
        assert not handed_on.is_set()
        await handed_on.wait()
        assert interrupt.calls == 0

    async def test_is_held_back_while_requests_run(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        busy = [True, True, False]
        drain = Drain(60, interrupt, is_busy=lambda: busy.pop(0))
        drain.install()
        signal.raise_signal(signal.SIGTERM)
        await handed_on.wait()
        assert (busy, interrupt.calls) == ([], 0)

    async def test_requests_are_interrupted_at_the_limit(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        drain = Drain(0, interrupt, is_busy=lambda: interrupt.calls == 0)
        drain.install()
        signal.raise_signal(signal.SIGTERM)
        await handed_on.wait()
        assert interrupt.calls == 1

    async def test_requests_that_ignore_the_interrupt_are_abandoned(
        self, handed_on: asyncio.Event, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(drain_module, "ERROR_EVENTS_S", 0)
        drain = Drain(0, interrupt, is_busy=lambda: False)
        drain.install()
        with drain.running():
            signal.raise_signal(signal.SIGTERM)
            await handed_on.wait()
        assert interrupt.calls == 1

    async def test_failing_interrupt_does_not_block_the_signal(self, handed_on: asyncio.Event) -> None:
        async def fail() -> None:
            raise RuntimeError("cannot be stopped")

        drain = Drain(0, fail, is_busy=lambda: True)
        drain.install()
        signal.raise_signal(signal.SIGTERM)
        await handed_on.wait()

    async def test_second_signal_is_passed_on_at_once(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        drain = Drain(60, interrupt, is_busy=lambda: True)
        drain.install()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert handed_on.is_set()

    async def test_sighup_drains_too(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        busy = [True, False]
        drain = Drain(60, interrupt, is_busy=lambda: busy.pop(0))
        drain.install()
        signal.raise_signal(signal.SIGHUP)
        assert drain.has_begun
        await handed_on.wait()
        assert busy == []

    async def test_ignored_sighup_stays_ignored(self, handed_on: asyncio.Event, interrupt: Interrupt) -> None:
        """Under `nohup`."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        drain = Drain(60, interrupt, is_busy=lambda: False)
        drain.install()
        signal.raise_signal(signal.SIGHUP)
        assert not drain.has_begun

    async def test_handlers_are_not_replaced_outside_the_main_thread(
        self, handed_on: asyncio.Event, interrupt: Interrupt
    ) -> None:
        before = signal.getsignal(signal.SIGTERM)
        await asyncio.to_thread(Drain(60, interrupt, is_busy=lambda: False).install)
        assert signal.getsignal(signal.SIGTERM) is before


class TestServer:
    """On a real port."""

    async def begin(self, site: Site, engine: FakeEngine) -> tuple["asyncio.Task[httpx2.Response]", Pause]:
        """A paused stream on a server that got the stop signal."""
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        conversation = (await self.silently(site, engine)).json()["conversation_id"]
        body = {**HI, "stream": True, "conversation": conversation}
        streaming = asyncio.create_task(site.client.post(CHAT, json=body))
        await pause.reached.wait()
        signal.raise_signal(signal.SIGTERM)
        return streaming, pause

    async def silently(self, site: Site, engine: FakeEngine) -> httpx2.Response:
        script, engine.script = engine.script, ()
        answer = await site.client.post(NEW, json={"prompt": "first"})
        engine.script = script
        return answer

    async def last(self, conversations: ConversationService) -> tuple[object, str]:
        found = (await conversations.messages("local", None, limit=10)).data[-1]
        return found.content, found.status

    async def test_running_stream_finishes_and_new_requests_are_rejected(
        self, handed_on: asyncio.Event, new_server: NewSite, engine: FakeEngine, conversations: ConversationService
    ) -> None:
        site = await new_server()
        streaming, pause = await self.begin(site, engine)
        assert (await site.client.get("/health/ready")).json() == {"status": "draining"}
        refused = await site.client.post(CHAT, json=HI)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        pause.go.set()
        answer = await streaming
        assert '"content":"lo"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        await handed_on.wait()
        assert await self.last(conversations) == ("Hello", "completed")

    async def test_stream_ends_with_an_error_at_the_limit_and_is_stored(
        self, handed_on: asyncio.Event, new_server: NewSite, engine: FakeEngine, conversations: ConversationService
    ) -> None:
        site = await new_server(server={"drain_s": 0})
        streaming, _ = await self.begin(site, engine)
        *_, failure, done, nothing = (await streaming).text.split("\n\n")
        error = json.loads(failure.removeprefix("data: "))["error"]
        assert error["type"] == "service_unavailable_error"
        assert (done, nothing) == ("data: [DONE]", "")
        await handed_on.wait()
        assert await self.last(conversations) == ("Hel", "incomplete")

    async def test_answer_without_a_reader_delays_the_drain(
        self, handed_on: asyncio.Event, new_server: NewSite, engine: FakeEngine, conversations: ConversationService
    ) -> None:
        site = await new_server()
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        async with site.client.stream("GET", "/chat/stream", params={"prompt": "hi"}):
            await pause.reached.wait()
        signal.raise_signal(signal.SIGTERM)
        assert (await site.client.get("/health/ready")).json() == {"status": "draining"}
        pause.go.set()
        await handed_on.wait()
        assert await self.last(conversations) == ("Hello", "completed")
