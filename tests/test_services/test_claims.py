"""Background answers that go on in another process."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from database.session import Database
from database.turn_repository import Unclaimed
from schemas.response_answer_schema import StreamEvent
from services import claim_service, stream_service
from services.history import checkpoint_task
from services.history.checkpoint_task import MAX_ATTEMPTS
from services.history.lease import Lease
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.key_service import NewKey
from services.turn_service import TurnService, in_turn
from tests.apps import NewSite, Site
from tests.databases import NewDatabase
from tests.fakes import FakeEngine, Pause

# Processes that are judged to be gone break off what they were doing: seldom a connection to PostgreSQL is left to the
# garbage collector. Where is not known yet.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.both_databases]

OWNER = "local"
PATH = "/v1/responses"
SILENT = "UPDATE processes SET seen_at = seen_at - 100"


class GoingOn(FakeEngine):
    """Its tokens are the places of its script: it goes on behind those that were sampled."""

    resumes = True

    async def submit(self, job: Any) -> Any:
        whole, self.script = self.script, self.script[len(job.sampled) :]
        try:
            return await super().submit(job)
        finally:
            self.script = whole


@pytest.fixture(autouse=True)
def claimed_by_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No site settles or claims by itself: a row that it has locked at that moment is passed over by a claim."""
    monkeypatch.setattr(claim_service, "POLL_S", 3600.0)
    monkeypatch.setattr(checkpoint_task, "STOP_POLL_S", 3600.0)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What is left of a test is not found in a later one."""
    yield
    gc.collect()


@pytest.fixture
async def new_site(new_site: NewSite) -> NewSite:
    async def unhurried(**settings: Any) -> Site:
        return await new_site(chat={"checkpoint_s": 3600.0}, **settings)

    return unhurried


@pytest.fixture
def pause() -> Pause:
    return Pause()


@pytest.fixture
async def dying(new_site: NewSite, pause: Pause, database_url: str) -> Site:
    """It will be judged to be gone in the middle of an answer."""
    engine = GoingOn("One ", "two ", pause, "never")
    return await new_site(build=engine.builder(), database={"url": database_url, "migrate": False})


@pytest.fixture
async def other(new_site: NewSite, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("app.main.this_writer", lambda: "another-host:1:b")
    engine = GoingOn("One ", "two ", "three ", "four")
    return await new_site(build=engine.builder(), database={"url": database_url, "migrate": False})


async def asked(site: Site, **fields: Any) -> str:
    body = {"input": "Count", "background": True, "include": ["message.output_text.logprobs"], **fields}
    answer = await site.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    id: str = answer.json()["id"]
    return id


async def events(site: Site, id: str, after: int = -1) -> list[StreamEvent]:
    reader, found = site.services.streams.reader(id, after), []
    while batch := await reader.read():
        found += batch
    return found


async def settled(database: Database) -> None:
    """A process finds that the writer of all turns was silent for too long."""
    await silence(database)
    await TurnService(database, writer="third-host:1:c").checkpoints.settle_abandoned()


async def silence(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text("UPDATE turns SET updated_at = updated_at - 100, writer = 'gone:1:a'"))


async def test_it_goes_on_at_the_exact_event(dying: Site, other: Site, pause: Pause, database: Database) -> None:
    id = await asked(dying)
    await pause.reached.wait()
    await dying.services.streams.flush()
    reader = dying.services.streams.reader(id, -1)
    seen = await reader.read()
    assert seen[-1].type == "response.output_text.delta"
    await settled(database)
    assert await other.services.claims.claim()
    rest = await events(other, id, after=seen[-1].number)
    assert [each.number for each in seen + rest] == [*range(len(seen) + len(rest))]
    assert [each.type for each in rest[:3]] == ["response.output_text.delta"] * 2 + ["response.output_text.done"]
    await other.services.streams.flush()
    assert await events(other, id) == seen + rest
    answer = (await other.client.get(f"{PATH}/{id}")).json()
    assert answer["status"] == "completed"
    assert answer["output"][0]["content"][0]["text"] == "One two three four"
    # the first writer comes back too late
    pause.go.set()
    await dying.services.streams.flush()
    assert [each.number for each in await events(dying, id, after=seen[-1].number)] == [each.number for each in rest]
    assert (await dying.client.get(f"{PATH}/{id}")).json() == answer


async def test_its_usage_is_counted_once_and_for_the_key_that_asked(
    dying: Site, other: Site, pause: Pause, database: Database
) -> None:
    created, _ = await dying.services.stored_keys.create_in("team", NewKey(name="laptop", project_id=""))
    await other.services.stored_keys.refresh()
    headers = {"X-API-Key": created.value}
    answer = await dying.client.post(PATH, json={"input": "Count", "background": True}, headers=headers)
    await pause.reached.wait()
    await dying.services.streams.flush()
    await settled(database)
    assert await other.services.claims.claim()
    await events(other, answer.json()["id"])
    await other.services.streams.flush()
    usage = await other.services.usage.by("key_id", 0)
    pause.go.set()  # the first writer comes back too late
    await dying.services.streams.flush()
    ((key, counts),) = usage
    assert (key, counts.requests, counts.errors, counts.completion_tokens) == (created.row.id, 1, 0, 4)
    assert await other.services.usage.by("key_id", 0) == usage


async def test_one_that_no_engine_can_go_on_with_ends_with_all_that_was_sent(
    dying: Site,
    new_site: NewSite,
    pause: Pause,
    new_database: NewDatabase,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.main.this_writer", lambda: "another-host:1:b")
    plain = await new_site(
        build=FakeEngine("Something else").builder(), database={"url": database_url, "migrate": False}
    )
    id = await asked(dying)
    await pause.reached.wait()
    await dying.services.streams.flush()
    seen = await dying.services.streams.reader(id, -1).read()
    await settled(new_database())
    assert await plain.services.claims.claim()
    rest = await events(plain, id, after=seen[-1].number)
    assert [each.number for each in seen + rest] == [*range(len(seen) + len(rest))]
    assert rest[-1].type == "response.incomplete"
    answer = (await plain.client.get(f"{PATH}/{id}")).json()
    assert (answer["status"], answer["output"][0]["content"][0]["text"]) == ("incomplete", "One two ")
    pause.go.set()


async def test_readers_are_sent_what_is_stored(dying: Site, pause: Pause, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_service, "FLUSH_S", 3600.0)
    id = await asked(dying, stream=False)
    streams = dying.services.streams
    await pause.reached.wait()
    waiting = asyncio.create_task(streams.reader(id, -1).read())
    await asyncio.sleep(0)
    last = await streams.last_event(id)
    assert last
    assert not waiting.done()
    await streams.flush()
    assert (await waiting)[-1] == last
    pause.go.set()


async def test_a_turn_ends_behind_what_its_readers_are_sent(
    other: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody goes on with a turn that has ended, so that the rest of its text would be missing in its stream."""
    stored: list[str] = []
    finish = StoredTurn.finish

    async def looking(turn: StoredTurn, *given: Any) -> None:
        async with Store(database).reading() as repositories:
            stored.append("".join(await repositories.streams.after(turn.id, -1)))
        await finish(turn, *given)

    monkeypatch.setattr(StoredTurn, "finish", looking)
    await events(other, await asked(other))
    assert all(word in stored[0] for word in ("One", "two", "three", "four"))


async def test_a_turn_that_ends_its_processes_is_given_up(dying: Site, pause: Pause, new_database: NewDatabase) -> None:
    id = await asked(dying)
    await pause.reached.wait()
    for number in range(MAX_ATTEMPTS + 1):
        database = new_database()
        turns = TurnService(database, writer=f"host-{number}:1:x")
        await silence(database)
        await turns.checkpoints.settle_abandoned()
        is_last = number == MAX_ATTEMPTS
        assert len(await turns.claim(9)) == (not is_last)
    assert (await dying.client.get(f"{PATH}/{id}")).json()["status"] == "failed"
    pause.go.set()


async def test_a_process_that_ends_leaves_its_answers_to_others(
    dying: Site, other: Site, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await asked(dying)
    await pause.reached.wait()
    monkeypatch.setattr(TurnService, "has_others", True)
    reader = dying.services.streams.reader(id, -1)
    await dying.services.claims.leave()
    assert dying.services.streams.num_running == 0
    assert await other.services.claims.claim()
    found: list[StreamEvent] = []
    while batch := await reader.read():
        found += batch
    assert [each.number for each in found] == [*range(len(found))]
    assert found[-1].type == "response.completed"
    pause.go.set()


async def test_one_process_claims_each_turn(dying: Site, pause: Pause, new_database: NewDatabase) -> None:
    ids = [await asked(dying) for _ in range(6)]
    await pause.reached.wait()
    databases = [new_database() for _ in range(3)]
    claimants = [TurnService(each, writer=f"host-{n}:1:x") for n, each in enumerate(databases)]
    await silence(databases[0])
    await asyncio.gather(*(each.checkpoints.settle_abandoned() for each in claimants))
    claims = await asyncio.gather(*(each.claim(6) for each in claimants))
    assert sorted(each.turn.id for claimed in claims for each in claimed) == sorted(ids)
    assert {each.attempt for claimed in claims for each in claimed} == {1}
    pause.go.set()


class SlowCommit(Database):
    """The caller of the next commit goes on after something else has seen it."""

    between: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        async with super().write() as session:
            yield session
        between, self.between = self.between, None
        if between:
            await between()


async def test_a_process_does_not_abandon_what_it_is_claiming(
    dying: Site, pause: Pause, new_database: NewDatabase
) -> None:
    await asked(dying)
    await pause.reached.wait()
    await settled(new_database())
    database = new_database(SlowCommit)
    claimant = TurnService(database, writer="host:1:x")
    database.between = claimant.checkpoints.settle_abandoned
    (claimed,) = await claimant.claim(9)
    async with database.read() as session:
        assert (await session.execute(text("SELECT writer, attempt FROM turns"))).one() == ("host:1:x", claimed.attempt)
    pause.go.set()


async def test_what_is_left_to_others_can_be_followed_stopped_and_claimed(
    new_site: NewSite, other: Site, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = await new_site(database={"url": database_url, "migrate": False})
    monkeypatch.setattr(busy.services.responses, "is_left_to_others", lambda: True)
    first, second = [await asked(busy) for _ in range(2)]
    assert [each.type for each in await busy.services.streams.reader(first, -1).read()] == [
        "response.created",
        "response.queued",
    ]
    assert (await busy.client.get(f"{PATH}/{first}")).json()["status"] == "queued"
    assert (await busy.client.post(f"{PATH}/{second}/cancel")).json()["status"] == "cancelled"
    assert await other.services.claims.claim()
    found = await events(busy, first)
    assert [each.number for each in found] == [*range(len(found))]
    assert found[-1].type == "response.completed"
    assert not await other.services.claims.claim()


def test_owners_take_turns() -> None:
    waiting = [Unclaimed(str(n), owner) for n, owner in enumerate("aaabbc")]
    assert [each.id for each in in_turn(waiting, {"b": 1})] == ["0", "5", "1", "3", "2", "4"]


class TestSigns:
    """Of life, by PostgreSQL's clock."""

    @pytest.fixture
    def backend(self) -> str:
        return "postgresql"

    async def test_a_process_is_gone_after_seconds_of_silence(self, database: Database) -> None:
        now = [0.0]
        store = Store(database)
        lease, other = Lease(store, "host-0:1:x", clock=lambda: now[0]), Lease(store, "host-1:1:x")
        await lease.beat()
        assert not lease.has_others
        await other.beat()
        await lease.beat()
        assert lease.has_others

        async def silent() -> set[str]:
            async with store.reading() as repositories:
                return await lease.silent(repositories)

        async with database.write() as session:
            await session.execute(text(SILENT))
        assert await silent() == set()  # this process may have been cut off itself
        for _ in range(6):
            now[0] += 1
            await lease.beat()
        assert await silent() == {"host-1:1:x"}
        now[0] += 30  # an outage
        await lease.beat()
        assert await silent() == set()
