import asyncio

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import Pool

from database.session import Database, is_outage
from tests.databases import NewDatabase, PostgresServer, free_port

INSERT = text("INSERT INTO conversations (id, owner, metadata, created_at, updated_at) VALUES (:id, 'me', '{}', 0, 0)")

COUNT = text("SELECT count(*) FROM conversations")


async def count(database: Database) -> int:
    async with database.read() as session:
        return int((await session.execute(COUNT)).scalar_one())


async def test_committed_rows_are_visible_to_others(database: Database, new_database: NewDatabase) -> None:
    async with database.write() as session:
        await session.execute(INSERT, {"id": "a"})
    assert await count(new_database()) == 1


async def test_reader_sees_one_snapshot(database: Database) -> None:
    async with database.read() as session:
        before = await session.scalar(COUNT)
        async with database.write() as other:
            await other.execute(INSERT, {"id": "a"})
        assert (before, await session.scalar(COUNT)) == (0, 0)
    assert await count(database) == 1


async def test_burst_of_readers_opens_no_overflow_connections(database: Database) -> None:
    opened: list[object] = []
    closed: list[object] = []

    def note_opened(connection: object, _: object) -> None:
        opened.append(connection)

    def note_closed(connection: object, _: object) -> None:
        closed.append(connection)

    event.listen(Pool, "connect", note_opened)
    event.listen(Pool, "close", note_closed)
    for _ in range(2):
        await asyncio.gather(*(count(database) for _ in range(50)))
    event.remove(Pool, "connect", note_opened)
    event.remove(Pool, "close", note_closed)
    assert opened
    assert not [each for each in closed if each in opened]


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_who_stands_still_in_a_transaction_does_not_stop_the_others(
    database: Database, new_database: NewDatabase
) -> None:
    frozen = new_database(patience_s=0.2)

    async def stand_still() -> None:
        async with frozen.write() as session:
            await session.execute(INSERT, {"id": "a"})
            async with database.write() as other:
                await other.execute(INSERT, {"id": "a"})  # waits for the row
            await session.execute(INSERT, {"id": "b"})

    with pytest.raises(DBAPIError) as raised:
        await stand_still()
    assert is_outage(raised.value)
    assert await count(frozen) == 1


async def test_error_rolls_back(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as session:
            await session.execute(INSERT, {"id": "a"})
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await count(database) == 0


async def test_cancelled_write_rolls_back_and_releases_the_lock(database: Database) -> None:
    written = asyncio.Event()

    async def write_for_ever() -> None:
        async with database.write() as session:
            await session.execute(INSERT, {"id": "a"})
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_for_ever())
    await written.wait()
    task.cancel()
    await asyncio.wait([task])
    async with database.write() as session:
        await session.execute(INSERT, {"id": "b"})
    assert await count(database) == 1


async def test_wrong_statement_is_not_an_outage(database: Database) -> None:
    async with database.write() as session:
        await session.execute(INSERT, {"id": "a"})
    with pytest.raises(IntegrityError) as refused:
        async with database.write() as session:
            await session.execute(INSERT, {"id": "a"})
    assert not is_outage(refused.value)


async def test_errors_do_not_contain_parameters(database: Database) -> None:
    with pytest.raises(IntegrityError) as refused:
        async with database.write() as session:
            await session.execute(INSERT, [{"id": "private"}, {"id": None}])
    assert "private" not in str(refused.value)


async def test_a_closed_port_is_an_outage() -> None:
    database = Database(f"postgresql://parley@127.0.0.1:{free_port()}/parley")
    with pytest.raises(ConnectionError) as away:
        await database.ping()
    assert is_outage(away.value)
    await database.close()


async def test_a_database_that_does_not_exist_yet_is_an_outage(postgres: PostgresServer) -> None:
    database = Database(postgres.url("nobody_made_it"))
    with pytest.raises(DBAPIError) as away:
        await database.ping()
    assert is_outage(away.value)
    await database.close()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
async def test_restarted_server_fails_running_transactions_only(database: Database, postgres: PostgresServer) -> None:
    others = "FROM pg_stat_activity WHERE usename = 'parley' AND pid <> pg_backend_pid()"
    disconnect = f"SELECT pg_terminate_backend(pid) {others}"
    await database.ping()
    await postgres.execute(disconnect)
    await database.ping()

    async def write_meanwhile() -> None:
        async with database.write() as session:
            await session.execute(INSERT, {"id": "a"})
            await postgres.execute(disconnect)
            await session.execute(INSERT, {"id": "b"})

    with pytest.raises(DBAPIError) as away:
        await write_meanwhile()
    assert is_outage(away.value)
    assert await count(database) == 0
