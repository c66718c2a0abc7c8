import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Select, inspect, text
from typer.testing import CliRunner

from database.admin_models import RateLimit
from database.batch_models import Batch, BatchResult
from database.engine import create_engine
from database.file_models import File
from database.migration import Status, downgrade, status, upgrade
from database.models import Base, Process, StreamBatch
from database.session import Database
from database.upload_models import Upload, UploadPart
from database.usage_models import LimitState
from database.usage_repository import UsageCounts
from services import callers
from services.chat import items
from services.chat.events import Arguments, Head, Reasoning, ToolCall
from services.conversation_service import ConversationService
from services.history.idempotency import IdempotencyKey
from services.history.turn import TurnRequest
from services.history.usage import usage_of
from services.key_service import KeyService, NewKey
from services.search_service import SearchService
from services.secret_service import SecretService
from services.turn_service import TurnService
from tests.test_services.test_turn_service import begin, store_turn
from tools.data_migration import app

ALL = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012", "0013")
HEAD = ALL[-1]

# For full-text search, which differs by database and is not in the models.
SEARCH = {"ix_items_terms", *(f"items_found{part}" for part in ("", "_config", "_data", "_docsize", "_idx"))}


def is_compared(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
    return name not in SEARCH


def known(described: Any) -> Any:
    """The constraints of a table."""
    return [each for each in described if each["name"] not in SEARCH] if isinstance(described, list) else described


async def test_migrations_build_the_models(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True, "include_name": is_compared}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    engine = create_engine(database_url)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == []


async def test_migrations_and_models_agree_on_constraints_and_partial_indexes(empty_url: str) -> None:
    """Alembic does not compare them."""

    def described(connection: Connection) -> str:
        inspector = inspect(connection)
        kinds: list[Callable[..., Mapping[Any, Any]]] = [
            inspector.get_multi_check_constraints,
            inspector.get_multi_unique_constraints,
            inspector.get_multi_foreign_keys,
            inspector.get_multi_pk_constraint,
            inspector.get_multi_indexes,
        ]
        tables = list(Base.metadata.tables)
        found = [(table, known(rows)) for kind in kinds for table, rows in kind(filter_names=tables).items()]
        return json.dumps(sorted(found, key=str), default=str)  # the order of tables varies

    engine = create_engine(empty_url)
    await upgrade(empty_url)
    async with engine.connect() as connection:
        migrated = await connection.run_sync(described)
    await downgrade(empty_url, "base")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        created = await connection.run_sync(described)
    await engine.dispose()
    assert migrated == created


async def test_up_down_and_up_again(empty_url: str) -> None:
    assert await status(empty_url) == Status(None, HEAD, ALL)
    await upgrade(empty_url)
    assert await status(empty_url) == Status(HEAD, HEAD, ())
    await downgrade(empty_url, "base")
    assert await status(empty_url) == Status(None, HEAD, ALL)
    await upgrade(empty_url)
    await upgrade(empty_url)
    assert await status(empty_url) == Status(HEAD, HEAD, ())


async def test_a_database_newer_than_the_code_is_left_alone(database: Database, database_url: str) -> None:
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(CommandError, match="from_the_future"):
        await upgrade(database_url)


PROCESS = """
import asyncio, sys
from database.migration import upgrade
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(upgrade(sys.argv[1]))
"""


async def test_concurrent_upgrades_wait_for_each_other(empty_url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, empty_url, stdin=pipe, stdout=pipe, stderr=pipe
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert await status(empty_url) == Status(HEAD, HEAD, ())


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/cli.db"
    monkeypatch.setenv("PARLEY_DATABASE__URL", url)
    return url


def test_command_line_upgrades_downgrades_and_shows_status(url: str) -> None:
    outputs = [CliRunner().invoke(app, arguments) for arguments in (["upgrade"], ["status"], ["downgrade", "base"])]
    assert [output.exit_code for output in outputs] == [0, 0, 0]
    assert outputs[1].stdout == f"current: {HEAD}\nhead:    {HEAD}\npending: -\n"
    assert "pending: 0001" in CliRunner().invoke(app, ["status", "--database-url", url]).stdout


def test_command_line_reports_errors() -> None:
    result = CliRunner().invoke(app, ["upgrade", "--database-url", "mysql://me:secret@host/db"])
    assert result.exit_code == 2
    assert "mysql" in result.stderr
    assert "secret" not in result.output


Row = dict[str, Any]
COLUMNS = ("id", "conversation_id", "parent_id", "position", "role", "status", "finish_reason", "model", "writer")
MESSAGES = sa.table(
    "messages",
    *map(sa.column, (*COLUMNS, "created_at", "updated_at")),
    *(sa.column(name, sa.JSON(none_as_null=True)) for name in ("content", "usage")),
)
CONVERSATION, LONG = ("conv_" + digit * 32 for digit in "cd")


def message(id: str, position: int, role: str, content: object, parent: str | None = None, **more: object) -> Row:
    row: Row = dict.fromkeys(COLUMNS) | {"created_at": 1.5, "updated_at": 1.5, "usage": None, "status": "completed"}
    place = {"id": id.zfill(32), "conversation_id": CONVERSATION, "parent_id": parent and parent.zfill(32)}
    return row | place | {"position": position, "role": role, "content": content} | more


REPLY = {"model": "m", "usage": {"total_tokens": 2}, "finish_reason": "stop"}
OLD = [
    message("1", 0, "system", [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]),
    message("2", 1, "user", "Hello \x00 \ud800 你好", "1"),
    message("3", 2, "assistant", "Hi", "2", **REPLY),
    message("4", 3, "user", "Still there?", "3"),
    message("5", 4, "assistant", "", "4", model="m", status="incomplete"),
    message("6", 5, "user", "Hello?", "5"),
    message("7", 6, "assistant", "Salut", "2", **REPLY),
    message("8", 7, "assistant", "Ye", "6", model="m", status="in_progress", writer="host:1"),
]
SILENT = OLD[4]
MANY = [message(f"a{n}", n, "user", str(n), f"a{n - 1}" if n else None, conversation_id=LONG) for n in range(1100)]


async def fill(url: str) -> None:
    add = "INSERT INTO conversations (id, owner, metadata, created_at, updated_at) VALUES (:id, 'me', '{}', 1, 1)"
    database = Database(url)
    async with database.write() as session:
        for conversation in (CONVERSATION, LONG):
            await session.execute(text(add), {"id": conversation})
        await session.execute(sa.insert(MESSAGES), OLD + MANY)
    await database.close()


async def rows(url: str, query: Select[Any]) -> list[Row]:
    database = Database(url)
    async with database.read() as session:
        found = (await session.execute(query)).mappings().all()
    await database.close()
    return [dict(row) for row in found]


async def test_messages_become_turns_and_items(empty_url: str) -> None:
    await upgrade(empty_url, "0001")
    await fill(empty_url)
    await upgrade(empty_url)
    database = Database(empty_url)
    turns, conversations = TurnService(database, writer="host:1"), ConversationService(database)
    stored = (await conversations.messages("me", CONVERSATION, limit=10)).data
    assert [(each.id, each.role, each.content, each.status, each.model) for each in stored] == [
        (row["id"], row["role"], row["content"], row["status"], row["model"]) for row in OLD if row is not SILENT
    ]
    assert [each.content for each in (await conversations.messages("me", LONG, limit=2000)).data] == [
        row["content"] for row in MANY
    ]
    running = await turns.answer(OLD[-1]["id"], "me", "message")
    assert (running.status, items.text(running.output[0])) == ("in_progress", "Ye")
    await turns.start()
    await turns.stop()
    after = await turns.open(TurnRequest(owner="me", conversation=CONVERSATION))
    assert [each.content for each in after.history] == [
        *(row["content"] for row in OLD[:4]),
        "Hello?",
        "Ye",
    ]
    await database.close()


async def test_turns_and_items_become_messages_again(empty_url: str) -> None:
    await upgrade(empty_url, "0001")
    await fill(empty_url)
    await upgrade(empty_url)
    await downgrade(empty_url, "0001")
    in_order = sa.select(MESSAGES).order_by(MESSAGES.c.conversation_id, MESSAGES.c.position)
    found = await rows(empty_url, in_order)
    expected = [row for row in OLD + MANY if row is not SILENT]
    expected[4] = expected[4] | {"parent_id": OLD[3]["id"]}
    assert [row | {"position": 0} for row in found] == [row | {"position": 0} for row in expected]


Table = list[dict[str, Any]]


async def dump(url: str) -> dict[str, Table]:
    """All rows of all tables of any revision, without the search index."""

    def read(connection: Connection) -> dict[str, Table]:
        reflected = sa.MetaData()
        reflected.reflect(connection, only=lambda name, _: not name.startswith(("items_found", "alembic")))
        tables = reflected.sorted_tables
        found = {table.name: connection.execute(sa.select(table)).mappings().all() for table in tables}
        return {name: sorted((dict(row) for row in rows), key=str) for name, rows in found.items()}

    engine = create_engine(url)
    async with engine.connect() as connection:
        found = await connection.run_sync(read)
    await engine.dispose()
    return found


async def store_everything(url: str) -> None:
    """Stores one object of each kind."""
    database = Database(url)
    turns = TurnService(database, writer="host:1")
    ask: dict[str, Any] = {
        "idempotency_key": IdempotencyKey("k", "d"),
        "metadata": {"a": "b"},
        "kind": "response",
        "stored": True,
    }
    named = await store_turn(turns, "The sea \x00 你好", "Deep", create=True, **ask)
    alone = await store_turn(turns, "Alone", "Yes", create=False, kind="response", stored=True)
    await store_turn(turns, "And?", "And", create=False, kind="response", stored=True, previous=alone.id)
    await begin(turns, "Wait", create=False, kind="response", stored=True, background=True)
    await ConversationService(database).create("me", [{"type": "compaction", "encrypted_content": "x"}], {}, "Title")
    await SecretService(database).seal("me")
    _, project = await KeyService(database).create_in("team", NewKey(name="laptop", project_id=""))
    await turns.usage.record(usage_of(callers.current(), "m", "completions", UsageCounts(requests=1)))
    async with database.write() as session:
        session.add(StreamBatch(turn_id=named.id, number=3, events="[]"))
        session.add(Process(name="host:1", seen_at=0.0))
        session.add(LimitState(subject="key:k", state={"at": 1.0}))
        session.add(
            File(id="file-1", owner="me", purpose="batch", filename="a", bytes=1, status="processed", created_at=1.0)
        )
        session.add(RateLimit(project_id=project.id, model="m", rpm=3))
        session.add(
            Batch(
                id="batch_1",
                owner="me",
                key_id="k",
                endpoint="/v1/embeddings",
                input_file_id="file-1",
                completion_window="24h",
                status="in_progress",
                created_at=1.0,
                expires_at=2.0,
            )
        )
        session.add(
            Upload(
                id="upload_1",
                owner="me",
                purpose="batch",
                filename="a",
                bytes=1,
                status="pending",
                created_at=1.0,
                expires_at=2.0,
            )
        )
        await session.flush()
        session.add(UploadPart(id="part_1", upload_id="upload_1", bytes=1, created_at=1.0))
        session.add(BatchResult(batch_id="batch_1", line=1, failed=False, data="{}"))
    await database.close()


# the way to the oldest and back passes all migrations
PASSED = [pytest.param(each, marks=pytest.mark.extended) for each in ALL[2:-2]]


@pytest.mark.parametrize("revision", [ALL[1], *PASSED, *ALL[-2:]])
async def test_data_of_each_revision_survives_upgrade_and_downgrade(empty_url: str, revision: str) -> None:
    await upgrade(empty_url)
    await store_everything(empty_url)
    newest = await dump(empty_url)
    assert all(newest.values())  # no table is empty
    await downgrade(empty_url, revision)
    before = await dump(empty_url)
    assert {"conversations", "turns", "items"} <= before.keys()
    assert [len(before[name]) for name in before] == [len(newest[name]) for name in before]
    await upgrade(empty_url)
    after = await dump(empty_url)
    assert {name: after[name] for name in ("conversations", "turns", "items")} == {
        name: newest[name] for name in ("conversations", "turns", "items")
    }
    database = Database(empty_url)
    assert [each.snippet for each in (await SearchService(database).find("me", "sea", limit=9)).data] == [
        "The sea \x00 你好"
    ]
    await database.close()
    await downgrade(empty_url, revision)
    assert await dump(empty_url) == before


async def test_downgrade_leaves_out_other_items(empty_url: str) -> None:
    await upgrade(empty_url)
    database = Database(empty_url)
    turns = TurnService(database, writer="host:1")
    given = [
        {"id": "msg_" + "1" * 32, "type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    ]
    for create in (True, True, False):
        turn = await turns.open(TurnRequest(owner="me", input=given, create=create, stored=True))
        await turn.begin(Head(turn.id, 0, "m", "fp", None))
        for event in (Head(turn.id, 0, "m", "fp", None), Reasoning("Hm"), ToolCall("c", "f", 0), Arguments("{}", 0)):
            turn.add(event)
        await turn.finish()
    await database.close()
    await downgrade(empty_url, "0001")
    assert [row["content"] for row in await rows(empty_url, sa.select(MESSAGES))] == ["a", "a"]
    await upgrade(empty_url)
