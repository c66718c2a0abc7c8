"""Every query uses an index, according to the query plans of both databases."""

import inspect
from collections.abc import Callable, Coroutine
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from sqlalchemy import event, text

from database import repositories
from database.batch_models import Batch
from database.batch_repository import Unfinished
from database.file_models import File
from database.models import Conversation, Item, Turn
from database.repositories import Repositories
from database.session import Database

EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}
IDS = [f"i{n}" for n in range(3)]
THREAD = Conversation(id="c", owner="me", created_at=0.0, updated_at=0.0)
ITEM = Item(id="i", owner="me", conversation_id="c", parent_id=None, type="message", data={}, terms="", created_at=0.0)
ITEM.seq = 7
TURN = Turn(
    id="t",
    kind="response",
    owner="me",
    conversation_id="c",
    status="completed",
    stored=True,
    model="m",
    created_at=0.0,
    updated_at=0.0,
)
FILE = File(
    id="f",
    owner="me",
    purpose="batch",
    filename="a",
    bytes=1,
    status="processed",
    created_at=0.0,
)
BATCH = Batch(
    id="b",
    owner="me",
    key_id=None,
    endpoint="/v1/embeddings",
    input_file_id="f",
    completion_window="24h",
    status="validating",
    created_at=0.0,
    expires_at=0.0,
)

Query = Callable[[Repositories], Coroutine[Any, Any, object]]
QUERIES: dict[str, tuple[Query, str]] = {
    "conversation": (lambda r: r.conversations.get("c", "me"), "conversations"),
    "conversations": (lambda r: r.conversations.page("me", limit=20), "ix_conversations_listed"),
    "more conversations": (
        lambda r: r.conversations.page("me", limit=20, after=THREAD),
        "ix_conversations_listed",
    ),
    "item": (lambda r: r.items.get("c", "i"), "items"),
    "newest item": (lambda r: r.items.newest("c"), "ix_items_conversation_id_seq"),
    "items": (lambda r: r.items.page("c", limit=20, order="desc", after=ITEM), "ix_items_conversation_id_seq"),
    "a page of items": (lambda r: r.items.bounded_page("c", limit=20, after=ITEM), "ix_items_conversation_id_seq"),
    "items of a turn": (lambda r: r.items.of_turn("t"), "ix_items_turn_id"),
    "items of turns": (lambda r: r.items.of_turns(IDS), "ix_items_turn_id"),
    "known items": (lambda r: r.items.get_many("c", IDS), "items"),
    "items of conversations": (lambda r: r.items.existing_keys([("c", "i"), ("d", "j")]), "items"),
    "conversations to write to": (lambda r: r.conversations.lock(IDS), "conversations"),
    "states of conversations": (lambda r: r.conversations.states(IDS), "ix_items_conversation_id_seq"),
    "turns to write to": (lambda r: r.turns.lock_unfinished(IDS, "host:1"), "turns"),
    "search": (lambda r: r.search.find("me", ["sea"], limit=20), "items_found|ix_items_terms|ix_items_owner_seq"),
    "what is not used": (lambda r: r.conversations.delete_unused(0.0, limit=10), "ix_conversations_updated_at"),
    "a request that comes again": (lambda r: r.idempotency_keys.get("me", "k"), "idempotency_keys"),
    "some turns": (lambda r: r.turns.get_many(IDS), "turns"),
    "turn": (lambda r: r.turns.get("t", "me"), "turns"),
    "turns": (
        lambda r: r.turns.page("me", "response", order="asc", limit=20, metadata={"a": "b"}),
        "ix_turns_stored",
    ),
    "more turns": (
        lambda r: r.turns.page("me", "response", order="desc", limit=20, after=TURN),
        "ix_turns_stored",
    ),
    "turns of a conversation": (lambda r: r.turns.of_conversation("c"), "ix_turns_conversation_id"),
    "running in a conversation": (lambda r: r.turns.running_in("c"), "ix_turns_conversation_id|ix_turns_running"),
    "running": (lambda r: r.turns.running(), "ix_turns_running"),
    "running of some": (lambda r: r.turns.lock_running(IDS), "turns"),
    "stopped": (lambda r: r.turns.stopped_among(IDS, "w"), "turns"),
    "waiting for a process": (lambda r: r.turns.unclaimed(9, 0.0), "ix_turns_running"),
    "running of owners": (lambda r: r.turns.num_claimed(), "ix_turns_running"),
    "taken by a process": (lambda r: r.turns.claim(IDS, "w", 0.0), "turns"),
    "status": (lambda r: r.turns.status(IDS), "turns"),
    "turns kept": (lambda r: r.turns.lock_shared(IDS), "turns"),
    "turns to write": (lambda r: r.turns.lock_unfinished(IDS, "w"), "turns"),
    "writers dismissed": (lambda r: r.turns.clear_writers("c"), "ix_turns_conversation_id"),
    "turn deleted": (lambda r: r.turns.delete("t"), "turns"),
    "conversation used last": (lambda r: r.conversations.latest("me"), "ix_conversations_listed"),
    "listed": (lambda r: r.conversations.listed(IDS), "conversations"),
    "owners": (lambda r: r.conversations.owners(IDS), "conversations"),
    "conversations to write": (lambda r: r.conversations.lock(IDS), "conversations"),
    "conversations of turns": (lambda r: r.conversations.lock_of_turns(IDS), "conversations"),
    "states": (lambda r: r.conversations.states(IDS), "ix_items_conversation_id_seq"),
    "conversation deleted": (lambda r: r.conversations.delete("c"), "conversations"),
    "which items": (lambda r: r.items.existing_keys([("c", "i")]), "items"),
    "items referred to": (lambda r: r.items.of_owner("me", IDS), "ix_items_owner_id"),
    "item deleted": (lambda r: r.items.delete([ITEM]), "ix_items_conversation_id_parent_id"),
    "events": (lambda r: r.streams.after("t", 3), "stream_batches"),
    "pieces": (lambda r: r.streams.pieces("t"), "stream_batches"),
    "last events": (lambda r: r.streams.last("t"), "stream_batches"),
    "events deleted": (lambda r: r.streams.delete("t"), "stream_batches"),
    "old requests": (lambda r: r.idempotency_keys.delete_expired(0.0), "ix_idempotency_keys_created_at"),
    "key of a digest": (lambda r: r.keys.of_digest("d"), "ix_api_keys_digest"),
    "keys of an account": (lambda r: r.keys.of_account("a"), "ix_api_keys_account_id"),
    "old audit events": (lambda r: r.audit.delete_before(0.0), "ix_audit_events_at"),
    "usage": (lambda r: r.usage.sums(["hour"], 0, 3600), "usage_hours"),
    "what a key has used": (lambda r: r.usage.tokens_of_key("k", 0), "ix_usage_hours_key_id_hour"),
    "when keys were used": (lambda r: r.usage.last_hours(IDS), "ix_usage_hours_key_id_hour"),
    "file": (lambda r: r.files.get("f", "me", now=0.0), "files"),
    "files": (lambda r: r.files.page("me", now=0.0, limit=20), "ix_files_owner_created_at_id"),
    "more files": (
        lambda r: r.files.page("me", now=0.0, limit=20, order="asc", after=FILE),
        "ix_files_owner_created_at_id",
    ),
    "bytes of files": (lambda r: r.files.total_bytes("me"), "ix_files_owner_created_at_id"),
    "expired files": (lambda r: r.files.expired(0.0, 9), "ix_files_expires_at"),
    "file uploaded": (lambda r: r.files.finish_upload("f", None), "files"),
    "file deleted": (lambda r: r.files.mark_deleted("f", "me", now=0.0), "files"),
    "files removed": (lambda r: r.files.remove(IDS), "files"),
    "batch": (lambda r: r.batches.get("b", "me"), "batches"),
    "batches": (lambda r: r.batches.page("me", limit=20, after=BATCH), "ix_batches_owner_created_at_id"),
    "unfinished batches of an owner": (
        lambda r: r.batches.num_unfinished("me"),
        "ix_batches_unfinished|ix_batches_owner_created_at_id",
    ),
    "unfinished batches": (lambda r: r.batches.unfinished(9), "ix_batches_unfinished"),
    "batch claimed": (lambda r: r.batches.claim(Unfinished("b", "me", None), "w"), "batches"),
    "batch to write": (lambda r: r.batches.lock_own("b", "w"), "batches"),
    "status of a batch": (lambda r: r.batches.status("b", "w"), "batches"),
    "batches released": (lambda r: r.batches.release("w"), "ix_batches_unfinished"),
    "results that are there": (lambda r: r.batches.existing("b", [1, 2]), "batch_results"),
    "lines that are done": (lambda r: r.batches.lines("b"), "batch_results"),
    "results": (lambda r: r.batches.results("b", after=3, limit=9), "batch_results"),
    "results deleted": (lambda r: r.batches.delete_results("b"), "batch_results"),
    "upload": (lambda r: r.uploads.lock("u", "me"), "uploads"),
    "parts of an upload": (lambda r: r.uploads.parts("u"), "ix_upload_parts_upload_id"),
    "bytes of uploads": (lambda r: r.uploads.pending_bytes("me", 0.0), "ix_uploads_owner|ix_uploads_expires_at"),
    "parts of expired uploads": (
        lambda r: r.uploads.unneeded_parts(0.0, 9),
        "ix_uploads_expires_at|ix_upload_parts_upload_id",
    ),
    "parts removed": (lambda r: r.uploads.remove_parts(IDS), "upload_parts"),
    "uploads forgotten": (lambda r: r.uploads.forget(0.0), "ix_uploads_expires_at|ix_upload_parts_upload_id"),
    "the server's secret": (lambda r: r.secrets.get("seal"), "secrets"),
}
# By primary key only, or for the command line, which reads whole histories.
OTHERS = {
    *(f"{table}.add" for table in ("conversations", "items", "turns", "streams", "idempotency_keys", "secrets")),
    *("conversations.touch", "turns.admit", "turns.checkpoint", "turns.finish", "turns.force_finish"),
    *("turns.release", "processes.beat", "processes.silent", "processes.num_alive", "processes.forget"),
    *("processes.leave", "conversations.all_of", "conversations.delete_batch"),
    *("keys.version", "keys.bump", "keys.add", "keys.project", "keys.account", "keys.key", "keys.rate_limit"),
    *("keys.projects", "keys.projects_named", "keys.keys", "keys.keys_named", "keys.rate_limits"),  # small tables
    *("audit.add", "audit.events", "usage.add", "usage.last_batch", "usage.set_batch", "usage.delete_before"),
    *("keys.of_project", "keys.accounts", "limits.lock", "limits.save", "files.add"),
    *("batches.add", "batches.add_results", "uploads.add"),
}


def test_all_queries_are_tested() -> None:
    methods = {
        f"{field.name}.{name}"
        for field in fields(Repositories)
        for name, _ in inspect.getmembers(get_type_hints(Repositories)[field.name], inspect.isfunction)
        if not name.startswith("_")
    }
    tested = {".".join(query.__code__.co_names[:2]) for query, _ in QUERIES.values()}  # type: ignore[attr-defined]
    assert tested | OTHERS == methods


@pytest.mark.parametrize("name", QUERIES)
async def test_query_uses_an_index(database: Database, backend: str, name: str) -> None:
    query, index = QUERIES[name]
    seen: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        seen.append((statement, parameters))

    async with database.read() as session:
        connection = await session.connection()
        if backend == "postgresql":
            await session.execute(text("SET LOCAL enable_seqscan = off"))  # small tables would be scanned
        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await query(repositories.of(session))
        event.remove(connection.sync_connection, "before_cursor_execute", note)
        steps = []
        for statement, parameters in seen:
            plan = await connection.exec_driver_sql(f"{EXPLAIN[backend]} {statement}", parameters)
            steps += [str(row) for row in plan]
    plan_text = "\n".join(steps)
    assert not [step for step in steps if "Seq Scan" in step or ("SCAN" in step and "INDEX" not in step)], plan_text
    assert any(each in plan_text for each in index.split("|")), plan_text
    assert "TEMP B-TREE" not in plan_text  # in index order, so that only the page is read
