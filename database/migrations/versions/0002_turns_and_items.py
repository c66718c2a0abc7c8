"""Turns and items in place of messages.

Messages become items in the form of the Conversations API, replies get a turn besides. Replies that never said anything
keep their turn only; what answered them goes on from what came before. On the way back, items that are no messages are
left out likewise, and so is what belongs to no conversation.
"""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from database import terms

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATUSES = "('queued', 'in_progress', 'completed', 'incomplete', 'failed', 'cancelled')"
RUNNING = "status IN ('queued', 'in_progress')"
CHUNK = 1000
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OURS = re.compile("msg_([0-9a-f]{32})")


def upgrade() -> None:
    op.add_column("conversations", sa.Column("listed", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("conversations", sa.Column("title", sa.Text(), nullable=True))
    op.drop_index("ix_conversations_owner_updated_at", "conversations")
    _index("ix_conversations_listed", "conversations", ["owner", "updated_at", "id"], where="listed")
    _index("ix_conversations_updated_at", "conversations", ["updated_at"])
    _create_turns()
    _create_items()
    _carry_messages(op.get_bind())
    op.drop_table("messages")


def downgrade() -> None:
    _create_messages()
    _carry_items(op.get_bind())
    for statement in _drop_search():
        op.execute(statement)
    op.drop_table("items")
    op.drop_table("turns")
    op.execute("DELETE FROM conversations WHERE NOT listed")
    op.drop_index("ix_conversations_updated_at", "conversations")
    op.drop_index("ix_conversations_listed", "conversations")
    op.create_index("ix_conversations_owner_updated_at", "conversations", ["owner", "updated_at"])
    with op.batch_alter_table("conversations") as table:
        table.drop_column("title")
        table.drop_column("listed")


def _index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    condition = sa.text(where) if where else None
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)


def _create_turns() -> None:
    op.create_table(
        "turns",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("conversation_id", sa.String(64), nullable=False),
        sa.Column("previous_id", sa.String(64), nullable=True),
        sa.Column("parent_id", sa.String(128), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("said", sa.JSON(), nullable=True),
        sa.Column("choices", sa.JSON(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("writer", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("completed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_turns"),
        # f(): this is the whole name, the naming convention must not prefix it again
        sa.CheckConstraint(f"status IN {STATUSES}", name=op.f("ck_turns_status")),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_turns_conversation_id", ondelete="CASCADE"
        ),
    )
    _index("ix_turns_conversation_id", "turns", ["conversation_id"])
    _index("ix_turns_stored", "turns", ["owner", "kind", "created_at", "id"], where="stored")
    _index("ix_turns_running", "turns", ["updated_at"], where=RUNNING)


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("conversation_id", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(128), nullable=True),
        sa.Column("turn_id", sa.String(64), nullable=True),
        sa.Column("choice", sa.Integer(), nullable=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_items"),
        sa.UniqueConstraint("conversation_id", "id", name="uq_items_conversation_id_id"),
        sa.ForeignKeyConstraint(
            ["conversation_id", "parent_id"], ["items.conversation_id", "items.id"], name="fk_items_parent_id"
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_items_conversation_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name="fk_items_turn_id", ondelete="SET NULL"),
    )
    _index("ix_items_conversation_id_seq", "items", ["conversation_id", "seq"])
    _index("ix_items_conversation_id_parent_id", "items", ["conversation_id", "parent_id"])
    _index("ix_items_turn_id", "items", ["turn_id"])
    _index("ix_items_owner_seq", "items", ["owner", "seq"])
    for statement in _create_search():
        op.execute(statement)


def _create_search() -> list[str]:
    if op.get_bind().dialect.name == "postgresql":
        return ["CREATE INDEX ix_items_terms ON items USING gin (to_tsvector('simple', terms))"]
    old = "INSERT INTO items_found (items_found, rowid, terms) VALUES ('delete', old.seq, old.terms)"
    new = "INSERT INTO items_found (rowid, terms) VALUES (new.seq, new.terms)"
    return [
        "CREATE VIRTUAL TABLE items_found USING fts5 (terms, content='items', content_rowid='seq')",
        f"CREATE TRIGGER items_added AFTER INSERT ON items BEGIN {new}; END",
        f"CREATE TRIGGER items_removed AFTER DELETE ON items BEGIN {old}; END",
        f"CREATE TRIGGER items_changed AFTER UPDATE OF terms ON items BEGIN {old}; {new}; END",
    ]


def _drop_search() -> list[str]:
    if op.get_bind().dialect.name == "postgresql":
        return ["DROP INDEX ix_items_terms"]
    return [*(f"DROP TRIGGER items_{when}" for when in ("added", "removed", "changed")), "DROP TABLE items_found"]


Json = sa.JSON(none_as_null=True)
CONVERSATIONS = sa.table("conversations", sa.column("id"), sa.column("owner"), sa.column("listed", sa.Boolean))
MESSAGES = sa.table(
    "messages",
    *map(sa.column, ["id", "conversation_id", "parent_id", "position", "role", "status", "finish_reason"]),
    *map(sa.column, ["model", "writer", "created_at", "updated_at"]),
    *(sa.column(name, Json) for name in ("content", "usage")),
)
TURNS = sa.table(
    "turns",
    *map(sa.column, ["id", "kind", "owner", "conversation_id", "parent_id", "status", "model", "writer"]),
    *map(sa.column, ["created_at", "updated_at", "completed_at"]),
    *(sa.column(name, sa.Boolean) for name in ("stored", "background")),
    *(sa.column(name, Json) for name in ("request", "metadata", "said", "choices", "usage")),
)
ITEMS = sa.table(
    "items",
    *map(sa.column, ["seq", "id", "owner", "conversation_id", "parent_id", "turn_id", "choice", "type"]),
    *map(sa.column, ["terms", "created_at"]),
    sa.column("data", Json),
)
Row = dict[str, Any]


def _carry_messages(connection: sa.Connection) -> None:
    place: Place = {}
    for rows in _messages(connection):
        items = [item for row in rows if (item := _item(row, place)) is not None]
        turns = [_turn(row, place) for row in rows if row["model"] is not None]
        for table, new in ((TURNS, turns), (ITEMS, items)):
            if new:
                connection.execute(sa.insert(table), new)


Place = dict[str, str | None]  # a row's id -> the id of what goes on from it hangs on


def _messages(connection: sa.Connection) -> Iterator[list[Row]]:
    """In order and by the chunk, so that memory is not what limits a history."""
    key = sa.tuple_(MESSAGES.c.conversation_id, MESSAGES.c.position)
    query = sa.select(MESSAGES, CONVERSATIONS.c.owner).join(
        CONVERSATIONS, CONVERSATIONS.c.id == MESSAGES.c.conversation_id
    )
    query = query.order_by(MESSAGES.c.conversation_id, MESSAGES.c.position).limit(CHUNK)
    rows = connection.execute(query).mappings().all()
    while rows:
        yield [dict(row) for row in rows]
        last = rows[-1]["conversation_id"], rows[-1]["position"]
        rows = connection.execute(query.where(key > last)).mappings().all()


def _turn(row: Row, place: Place) -> Row:
    running = row["status"] == "in_progress"
    return {
        **{name: row[name] for name in ("id", "owner", "conversation_id", "status", "model", "writer")},
        **{name: row[name] for name in ("created_at", "updated_at", "usage")},
        "kind": "message",
        "parent_id": place.get(row["parent_id"]),
        "completed_at": None if running else row["updated_at"],
        "stored": False,
        "background": False,
        "request": {},
        "metadata": {},
        "said": [[_data(row)] if row["content"] else []] if running else None,
        "choices": None if running else [{"finish_reason": row["finish_reason"]}],
    }


def _item(row: Row, place: Place) -> Row | None:
    parent = place.get(row["parent_id"])
    if row["status"] == "in_progress" or (row["status"] == "incomplete" and not row["content"]):
        place[row["id"]] = parent
        return None
    data = _data(row)
    place[row["id"]] = data["id"]
    return {
        **{name: row[name] for name in ("owner", "conversation_id", "created_at")},
        "id": data["id"],
        "parent_id": parent,
        "turn_id": row["id"] if row["model"] is not None else None,
        "choice": 0 if row["model"] is not None else None,
        "type": "message",
        "data": data,
        "terms": terms.indexed(row["owner"], "\n".join(part.get("text") or "" for part in data["content"])),
    }


def _data(row: Row) -> Row:
    content = row["content"] or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    told = [_part(part, row["role"]) for part in parts]
    return {
        "id": f"msg_{row['id']}",
        "type": "message",
        "role": row["role"],
        "content": told,
        "status": row["status"],
    }


def _part(part: Row, role: str) -> Row:
    if part["type"] != "text":
        return part
    if role == "assistant":
        return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": part["text"]}


def _carry_items(connection: sa.Connection) -> None:
    """Each conversation by itself; positions follow from the order."""
    listed = sa.select(CONVERSATIONS.c.id).where(CONVERSATIONS.c.listed).order_by(CONVERSATIONS.c.id)
    taken: set[str] = set()  # ids of what was given may be the client's, and there twice
    for conversation in connection.execute(listed).scalars().all():
        rows = _old_messages(connection, conversation, taken)
        if rows:
            connection.execute(sa.insert(MESSAGES), [row | {"position": nth} for nth, row in enumerate(rows)])


def _old_messages(connection: sa.Connection, conversation: str, taken: set[str]) -> list[Row]:
    turns = {row["id"]: row for row in _of(connection, TURNS, conversation, TURNS.c.created_at)}
    place: Place = {}
    rows = []
    for item in _of(connection, ITEMS, conversation, ITEMS.c.seq):
        parent = place.get(item["parent_id"])
        place[item["id"]] = parent
        if item["type"] == "message":
            rows.append(_old_message(item, parent, turns.get(item["turn_id"]), taken))
            place[item["id"]] = rows[-1]["id"]
    running = [turn for turn in turns.values() if turn["status"] in ("queued", "in_progress")]
    return [*rows, *(_old_reply(turn, place.get(turn["parent_id"])) for turn in running)]


def _of(connection: sa.Connection, table: sa.TableClause, conversation: str, order: Any) -> list[Row]:
    query = sa.select(table).where(table.c.conversation_id == conversation).order_by(order)
    return [dict(row) for row in connection.execute(query).mappings()]


def _old_message(item: Row, parent: str | None, turn: Row | None, taken: set[str]) -> Row:
    said = turn if item["choice"] is not None else None
    ours = OURS.fullmatch(item["id"])
    id = ours[1] if ours and ours[1] not in taken else uuid4().hex
    taken.add(id)
    return {
        "id": id,
        "conversation_id": item["conversation_id"],
        "parent_id": parent,
        "role": item["data"]["role"],
        "content": _old_content(item["data"]),
        "status": "incomplete" if item["data"].get("status") == "incomplete" else "completed",
        "finish_reason": said["choices"][0].get("finish_reason") if said and said["choices"] else None,
        "usage": said["usage"] if said else None,
        "model": said["model"] if said else None,
        "writer": None,
        "created_at": item["created_at"],
        "updated_at": item["created_at"],
    }


def _old_content(data: Row) -> Any:
    parts = [
        {"type": "text", "text": part["text"]} if part["type"].endswith("text") else part for part in data["content"]
    ]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _old_reply(turn: Row, parent: str | None) -> Row:
    said = [item for item in (turn["said"] or [[]])[0] if item["type"] == "message"]
    return {
        **{name: turn[name] for name in ("conversation_id", "usage", "model", "writer", "created_at", "updated_at")},
        "id": turn["id"] if re.fullmatch("[0-9a-f]{32}", turn["id"]) else uuid4().hex,
        "parent_id": parent,
        "role": "assistant",
        "content": _old_content(said[-1]) if said else "",
        "status": "in_progress",
        "finish_reason": None,
    }


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("conversation_id", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("content", sa.JSON(), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("finish_reason", sa.String(32), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("writer", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.UniqueConstraint("conversation_id", "position", name="uq_messages_conversation_id_position"),
        sa.CheckConstraint("status IN ('in_progress', 'completed', 'incomplete')", name=op.f("ck_messages_status")),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_messages_conversation_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["messages.id"], name="fk_messages_parent_id"),
    )
    _index("ix_messages_parent_id", "messages", ["parent_id"])
    _index("ix_messages_in_progress", "messages", ["updated_at"], where="status = 'in_progress'")
