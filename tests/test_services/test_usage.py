"""Usage is counted once for each answer, whatever happens to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from database.repositories import Repositories
from database.session import Database
from database.usage_repository import UsageCounts, UsageRepository
from services.callers import Caller, acting_as
from services.chat.events import Finish, Head, Reasoning, Text
from services.errors import EngineFailed, Unavailable
from services.history import usage_ledger
from services.history.checkpoint_task import KeptRecords
from services.history.store import Store
from services.history.turn import Turn
from services.history.usage import UsageMeter, input_usage, usage_of
from services.history.usage_ledger import UsageLedger
from services.turn_service import TurnService
from services.usage_service import UsageService
from tests.test_services.test_turn_service import begin, make_older, of_process

KEY = Caller("proj_1", "key_1")
HEAD = Head("id", 0, "m", "fp", None, prompt_tokens=9)


async def counted(database: Database) -> UsageCounts:
    """The sums of KEY, without seconds."""
    found = dict(await UsageService(database).by("key_id", 0))
    counts = found.get("key_1", UsageCounts())
    return UsageCounts(
        *(getattr(counts, name) for name in ("requests", "errors", "prompt_tokens", "cached_tokens")),
        counts.completion_tokens,
        counts.reasoning_tokens,
    )


def metered(*events: Any, model: str = "m") -> UsageMeter:
    with acting_as(KEY):
        meter = UsageMeter(model)
    for event in events:
        meter.add(event)
    return meter


async def end(turn: Turn, *, failed: bool = False) -> None:
    await turn.finish(EngineFailed("broken") if failed else None, metered(HEAD, Text("a", (1, 2))).usage(failed=failed))


async def started(service: TurnService, **fields: Any) -> Turn:
    with acting_as(KEY):
        return await begin(service, "Hello", owner=KEY.owner, create=False, stored=True, **fields)


class TestMeter:
    def test_counts_what_an_answer_has_when_it_ends(self) -> None:
        finish = Finish("stop", 9, 5, cached_tokens=4, reasoning_tokens=2)
        usage = metered(HEAD, Reasoning("a", (1, 2)), Text("b", (3, 4, 5)), finish).usage(failed=False)
        assert usage.counts == UsageCounts(1, 0, 9, 4, 5, 2, usage.counts.seconds)
        assert (usage.bucket.owner, usage.bucket.key_id, usage.bucket.model) == ("proj_1", "key_1", "m")

    def test_counts_the_tokens_of_an_answer_that_is_cut_short(self) -> None:
        usage = metered(HEAD, Text("b", (3, 4, 5))).usage(failed=True)
        assert usage.counts == UsageCounts(1, 1, 9, 0, 3, 0, usage.counts.seconds)

    def test_counts_a_shared_prompt_once(self) -> None:
        head = Head("id", 0, "m", "fp", None, prompt_tokens=9, n=2)
        ends = [Finish("stop", 9, 5, cached_tokens=4, index=index) for index in (0, 1)]
        counts = metered(head, *ends).usage(failed=False).counts
        assert (counts.requests, counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens) == (1, 9, 4, 10)


class Unconfirmed(Database):
    """The connection can be lost between a commit and its confirmation."""

    confirms = True

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        async with super().write() as session:
            yield session
        if not self.confirms:
            raise Unavailable("The commit was not confirmed")


class TestStoredAnswers:
    async def test_are_counted_with_their_end(self, turns: TurnService, store: Database) -> None:
        await end(await started(turns))
        await end(await started(turns), failed=True)
        assert await counted(store) == UsageCounts(2, 1, 18, 0, 4)

    async def test_are_counted_once_if_their_end_is_written_twice(self, sqlite_url: str, store: Database) -> None:
        turns = TurnService(unconfirmed := Unconfirmed(sqlite_url), writer="a-host:1")
        turn = await started(turns)
        unconfirmed.confirms = False
        with pytest.raises(Unavailable):
            await end(turn)
        unconfirmed.confirms = True
        await turns.checkpoints.checkpoint()
        await unconfirmed.close()
        assert await counted(store) == UsageCounts(1, 0, 9, 0, 2)

    async def test_are_counted_once_after_a_crash(self, store: Database) -> None:
        """The process is gone: a request with an error, whose tokens are not known."""
        await started(TurnService(store, writer=of_process(999_999_999)))
        for _ in range(2):
            await TurnService(store, writer=of_process(1)).checkpoints.settle_abandoned()
        assert await counted(store) == UsageCounts(1, 1)

    async def test_are_counted_once_if_their_process_was_only_slow(self, turns: TurnService, store: Database) -> None:
        turn = await started(turns)
        await make_older(store, turn, 1000)
        await TurnService(store, writer="another-host:1").checkpoints.settle_abandoned()
        assert await counted(store) == UsageCounts(1, 1)
        await end(turn)
        assert await counted(store) == UsageCounts(1, 0, 9, 0, 2)

    async def test_are_counted_if_they_are_cancelled_or_deleted_meanwhile(
        self, turns: TurnService, store: Database
    ) -> None:
        for act in (turns.cancel, turns.delete):
            turn = await started(turns, kind="response", background=True)
            if act == turns.delete:
                await turns.cancel(turn.id, KEY.owner, "response")
            await act(turn.id, KEY.owner, "response")
            await end(turn)
        assert await counted(store) == UsageCounts(2, 0, 18, 0, 4)


class Lossy(Store):
    """Its next commits are made or not, and reported as failed either way."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.losses: list[str] = []

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Repositories]:
        loss = self.losses.pop(0) if self.losses else ""
        if loss == "before":
            raise Unavailable("away")
        async with super().writing() as repositories:
            yield repositories
        if loss == "after":
            raise Unavailable("not confirmed")


@pytest.mark.both_databases
class TestLedger:
    @pytest.mark.parametrize("losses", [["before"], ["after"], ["after", "before", "after"]], ids=str)
    async def test_usage_is_written_once_through_outages(
        self, database: Database, losses: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(usage_ledger, "WAIT_S", 0)
        store = Lossy(database)
        store.losses = list(losses)
        ledger = UsageLedger(store, "host:1")
        with acting_as(KEY):
            for tokens in (3, 4):
                await ledger.record(input_usage("m", "embeddings", tokens, 0.0))
        for _ in range(len(losses) + 1):
            await ledger.flush()
        assert await counted(database) == UsageCounts(2, 0, 7)

    async def test_what_was_written_is_looked_up_after_a_loss_only(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_up: list[str] = []

        async def last_batch(self: UsageRepository, writer: str) -> int:
            looked_up.append(writer)
            return await original(self, writer)

        original = UsageRepository.last_batch
        monkeypatch.setattr(UsageRepository, "last_batch", last_batch)
        monkeypatch.setattr(usage_ledger, "WAIT_S", 0)
        store, looks = Lossy(database), []
        ledger = UsageLedger(store, "host:1")
        for loss in ("", "", "after", ""):
            store.losses = [loss]
            with acting_as(KEY):
                await ledger.record(input_usage("m", "embeddings", 1, 0.0))
            await ledger.flush()
            looks.append(len(looked_up))
        assert looks == [0, 0, 0, 1]
        assert await counted(database) == UsageCounts(4, 0, 4)

    async def test_processes_do_not_share_their_marks(self, database: Database) -> None:
        for writer in ("host:1", "host:2"):
            await UsageLedger(Store(database), writer).record(usage_of(KEY, "m", "rerank", UsageCounts(requests=1)))
        assert await counted(database) == UsageCounts(2)

    async def test_a_client_that_leaves_is_no_error(self, store: Database) -> None:
        ledger = UsageLedger(Store(store), "host:1")
        for error in (GeneratorExit(), EngineFailed("broken")):
            with pytest.raises(type(error)):
                async with ledger.measured(metered(HEAD)):
                    raise error
        assert await counted(store) == UsageCounts(2, 1, 18)


async def test_old_usage_is_deleted(store: Database) -> None:
    for kept, requests in ((KeptRecords(usage_s=7200), 1), (KeptRecords(usage_s=-7200), 0)):
        turns = TurnService(store, writer=f"a-host:{requests}", kept=kept)
        await turns.usage.record(usage_of(KEY, "m", "rerank", UsageCounts(requests=1)))
        await turns.checkpoints.delete_expired()
        assert (await counted(store)).requests == requests
