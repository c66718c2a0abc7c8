import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import Engine, event
from typer.testing import CliRunner

from app.common.settings import api_key
from database.models import Conversation
from database.session import Database
from schemas.chat_schema import ChatMessage
from schemas.response_schema import ResponseRequest
from services.chat.events import Arguments, Reasoning, Text, ToolCall
from services.chat.request.responses import REQUEST_FACTS
from services.chat.request.responses import initial_response as response_begun
from services.conversation_service import ConversationService
from services.history import item_rows
from services.history.store import Store
from services.history.turn import TurnRequest
from services.key_service import KeyService, NewKey
from services.turn_service import TurnService
from tests.apps import NewSite
from tests.test_services.test_turn_service import END, begin, finish, store_turn
from tools import archive
from tools.archive_schema import ArchivedConversation
from tools.history import app, owner_of, read


def run(*arguments: str, url: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--database-url", url])
    assert result.exit_code == code, result.output
    return result


async def run_in_thread(*arguments: str, url: str, code: int = 0) -> Result:
    """In a thread: the command runs its own event loop."""
    return await asyncio.to_thread(run, *arguments, url=url, code=code)


FACTS = response_begun(ResponseRequest(input="1"), "m").model_dump(
    include=REQUEST_FACTS
)  # the stored parameters of a response


async def fill(database: Database, owner: str = "local") -> list[str]:
    """A conversation, and two answers that continue one."""
    turns = TurnService(database, writer="host:1")
    named = await begin(turns, "Weather?", owner=owner)
    await finish(named, Reasoning("Hm"), ToolCall("call_1", "weather", 0), Arguments("{}", 0), END)
    output = ChatMessage(role="tool", tool_call_id="call_1", content="Rain")
    await finish(await begin(turns, output, owner=owner, conversation=named.conversation_id), Text("Rain"), END)
    kept: dict[str, Any] = {"owner": owner, "create": False, "stored": True, "kind": "response", "facts": FACTS}
    first = await store_turn(turns, "1", "one", metadata={"a": "b"}, **kept)
    others = [await store_turn(turns, prompt, "two", previous=first.id, **kept) for prompt in ("2", "2, too")]
    return [turn.id for turn in (named, first, *others)]


async def contents(database: Database, turn_ids: Sequence[str], owner: str) -> list[object]:
    turns = TurnService(database, writer="host:1")
    answers = [await turns.answer(turn_ids[0], owner, "message")]
    answers += [await turns.answer(turn_id, owner, "response") for turn_id in turn_ids[1:]]
    branches = [
        (await turns.open(TurnRequest(owner=owner, kind="response", stored=True, previous=turn_id))).history
        for turn_id in turn_ids[1:]
    ]
    named = await turns.open(TurnRequest(owner=owner, conversation=answers[0].conversation_id))
    return [answers, branches, named.history]


async def test_export_and_import_restore_everything(database: Database, database_url: str, tmp_path: Path) -> None:
    made = await fill(database)
    before = await contents(database, made, "local")
    file = str(tmp_path / "history.jsonl")
    assert "2 conversations" in (await run_in_thread("export", file, url=database_url)).stderr
    assert "0 conversations added, 2" in (await run_in_thread("import", file, url=database_url)).stderr
    await run_in_thread("delete", "--all", "--yes", url=database_url)
    assert (await ConversationService(database).page("local", limit=1)).data == []
    assert "2 conversations added, 0" in (await run_in_thread("import", file, url=database_url)).stderr
    assert await contents(database, made, "local") == before
    again = await run_in_thread("export", url=database_url)
    assert again.stdout == await asyncio.to_thread(Path(file).read_text)


async def test_ids_of_other_owners_are_replaced(database: Database, database_url: str, tmp_path: Path) -> None:
    made = await fill(database)
    before = await contents(database, made, "local")
    file = str(tmp_path / "history.jsonl")
    await run_in_thread("export", file, url=database_url)
    for added in ("2 conversations added, 0", "0 conversations added, 2"):
        assert added in (await run_in_thread("import", file, "--key", "secret", url=database_url)).stderr
    assert await contents(database, made, "local") == before
    owner = api_key("secret").owner
    (copied,) = (await ConversationService(database).page(owner, limit=2)).data
    assert copied.id != before[0][0].conversation_id  # type: ignore[index]
    assert "Rain" in (await run_in_thread("search", "rain", "--key", "secret", url=database_url)).stdout
    lines = (await run_in_thread("export", "--key", "secret", url=database_url)).stdout.splitlines()
    turns = [turn for line in lines for turn in ArchivedConversation.model_validate_json(line).turns]
    assert {turn.previous_id for turn in turns if turn.previous_id} < {turn.id for turn in turns}
    assert not {turn.id for turn in turns} & set(made)


async def test_running_answers_are_left_out(database: Database, database_url: str) -> None:
    turns = TurnService(database, writer="host:1")
    turn = await store_turn(turns, "1", "one", owner="local")
    await begin(turns, "2", owner="local", conversation=turn.conversation_id)
    (line,) = (await run_in_thread("export", url=database_url)).stdout.splitlines()
    archived = ArchivedConversation.model_validate_json(line)
    assert ([each.id for each in archived.turns], len(archived.items)) == ([turn.id], 2)


async def test_history_is_searched_and_deleted(database: Database, database_url: str) -> None:
    await fill(database)
    found = await run_in_thread("search", "Weather", url=database_url)
    conversation = next(word for word in found.stdout.split() if word.startswith("conv_"))
    assert "Weather?" in found.stdout
    assert "1 conversations deleted" in (await run_in_thread("delete", conversation, url=database_url)).stderr
    assert "conv_" not in (await run_in_thread("search", "Weather", url=database_url)).stdout
    assert "No conversation" in (await run_in_thread("delete", conversation, url=database_url, code=2)).stderr
    assert "name conversations" in (await run_in_thread("delete", url=database_url, code=2)).stderr
    assert "Abort" in (await run_in_thread("delete", "--all", url=database_url, code=1)).output


def node(id: str, parent: str | None, children: list[str], role: str = "", message: object = None, **more: Any) -> Any:
    content = {"content_type": "text", "parts": [message]} | more
    message = {"id": f"{id * 8}-0000", "author": {"role": role}, "content": content, "create_time": 5.0}
    return {"id": id, "parent": parent, "children": children, "message": message if role else None}


CHATGPT = {
    "title": "The sea",
    "create_time": 1.5,
    "update_time": 9.5,
    "conversation_id": "abc",
    "current_node": "e",
    "mapping": {
        each["id"]: each
        for each in [
            node("r", None, ["a"]),
            node("a", "r", ["b", "d"], "user", "How deep is it?"),
            node("b", "a", ["t"], "assistant", "Deep"),
            node("d", "a", ["f"], "assistant", "Very deep"),
            node("t", "b", ["e"], "tool", "nothing for us"),
            node("e", "b", [], "user", {"asset": "an image"}, parts=["Thanks", {"asset": "an image"}]),
            node("f", "d", [], "user", "And wide?"),
        ]
    },
}
CHATGPT["mapping"]["e"]["parent"] = "t"  # type: ignore[index]


async def test_chatgpts_export_keeps_its_branches(database: Database, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([CHATGPT]))
    for added in (1, 0):
        assert f"{added} conversations added" in (await run_in_thread("import", str(file), url=database_url)).stderr
    (found,) = (await ConversationService(database).page("local", limit=2)).data
    assert (found.title, found.created_at) == ("The sea", 1)
    after = await TurnService(database, writer="host:1").open(TurnRequest(owner="local", conversation=found.id))
    assert [(each.role, each.content) for each in after.history] == [
        ("user", "How deep is it?"),
        ("assistant", "Deep"),
        ("user", "Thanks"),
    ]
    messages = (await ConversationService(database).messages("local", found.id, limit=9)).data
    assert [each.content for each in messages][-1] == "Thanks"
    assert {"Very deep", "And wide?"} <= {each.content for each in messages if isinstance(each.content, str)}


def test_chatgpts_export_may_lack_times_and_have_speech(tmp_path: Path) -> None:
    spoken = [{"content_type": "audio_transcription", "text": "Hello"}, {"content_type": "audio_asset_pointer"}]
    hidden = node("h", "a", ["b"], "user", content_type="user_editable_context", user_profile="x")
    del hidden["message"]["content"]["parts"]
    message = node("b", "h", [], "assistant", None, content_type="multimodal_text", parts=spoken)
    nodes = [node("a", None, ["h"]), hidden, message]
    silent = {"title": None, "create_time": None, "mapping": {each["id"]: each for each in nodes}}
    empty = {"title": "Nothing", "mapping": {}}
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([silent, empty], indent=1))
    first, second = read(file)
    assert (first.title, first.created_at, first.updated_at) == (None, 5.0, 5.0)
    assert [item.data["content"][0]["text"] for item in first.items] == ["Hello"]
    assert (second.items, second.created_at) == ([], 0.0)
    assert first.id != second.id


@pytest.mark.parametrize("text", ['{"id": 1}\n', '[{"mapping": 1}]', "nonsense"])
def test_other_files_are_rejected(tmp_path: Path, text: str, sqlite_url: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    refused = run("import", str(file), url=sqlite_url, code=2).stderr
    assert refused.startswith(("Error: line 1", "Error: conversation 1"))


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([{"data": {"type": "message"}}], "has an id"),
        ([{"data": {"id": "msg_1"}}], "has a type"),
        ([{"data": {"id": "rs_1", "type": "reasoning"}, "parent_id": "msg_0"}], "'msg_0'"),
        ([{"data": {"id": "rs_1", "type": "reasoning"}}] * 2, "twice"),
    ],
)
def test_edited_file_is_rejected_with_the_error(
    items: list[dict[str, Any]], why: str, tmp_path: Path, sqlite_url: str
) -> None:
    file = tmp_path / "file"
    conversation = {"id": "conv_" + "0" * 32, "created_at": 1.0, "updated_at": 1.0}
    file.write_text(json.dumps(conversation | {"items": [{"created_at": 1.0} | item for item in items]}))

    assert why in run("import", str(file), url=sqlite_url, code=2).stderr


def test_empty_file_imports_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("\n")
    assert list(read(file)) == []


async def test_history_belongs_to_the_key(store: Database) -> None:
    created, project = await KeyService(store).create_in("team", NewKey(name="laptop", project_id=""))
    assert await owner_of(store, None) == "local"
    assert await owner_of(store, "secret") == api_key("secret").owner
    assert [await owner_of(store, each) for each in (created.value, project.id)] == [project.id] * 2


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/nodir/x", "Error: /nodir/x: No such file or directory\n"),
        pytest.param(
            "/dev/full",
            "Error: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full"),
        ),
    ],
)
async def test_unwritable_output_is_reported_in_a_line(
    database: Database, database_url: str, output: str, message: str
) -> None:
    await fill(database)
    assert (await run_in_thread("export", output, url=database_url, code=2)).output == message


def test_foreign_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("no database, but some text that is long enough to be looked at" * 9)
    before = path.read_bytes()
    output = run("search", "x", url=f"sqlite:///{path}", code=2).output
    assert output == f"Error: {path} is no SQLite database\n"
    assert path.read_bytes() == before


def test_unreachable_database_is_reported_in_a_line() -> None:
    output = run("search", "x", url="postgresql://user:secret@127.0.0.1:1/x", code=2).output
    assert output == "Error: The conversation store is not reachable\n"
    assert run("search", "x", url="mysql://user:secret@h/x", code=2).output.count("\n") == 1


MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "Hi"}],
    "status": "completed",
}
CALL = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}
RESP = "resp_" + "0" * 32


def line(*items: dict[str, Any], turns: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    rows = [{"data": data, "created_at": 1.0} for data in items]
    known = {"id": "conv_" + "0" * 32, "created_at": 1.0, "updated_at": 1.0}
    return {**known, "items": rows, "turns": turns or [], **more}


def without(name: str, item: dict[str, Any] = MESSAGE) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != name}


def turn(**more: Any) -> dict[str, Any]:
    times = {"created_at": 1.0, "updated_at": 1.0, "completed_at": 1.0}
    return {"id": RESP, "kind": "response", "status": "completed", "stored": True, "model": "m", **times, **more}


@pytest.mark.parametrize(
    ("archived", "where"),
    [
        (line(without("status")), "items.0.data.status"),
        (line(without("role")), "items.0.data.role"),
        (line(without("content")), "items.0.data.content"),
        (line(without("id")), "items.0.data.id"),
        (line(MESSAGE, CALL | {"call_id": ""}), "items.1.data.call_id"),
        (line(without("status", CALL)), "items.0.data.status"),
        (line(MESSAGE | {"content": [{"type": "input_text"}]}), "items.0.data.content.0.text"),
        (line(MESSAGE | {"content": "Hi"}), "items.0.data.content"),
        (line(MESSAGE | {"role": "wizard"}), "items.0.data.role"),
        (line(MESSAGE | {"status": "odd"}), "items.0.data.status"),
        (line(MESSAGE | {"type": "item_reference"}), "items.0.data.type"),
        (line(created_at=-1), "created_at"),
        (line(updated_at=1e300), "updated_at"),
        (line(title="a\0b"), "title"),
        (line(id="conv_1"), "id"),
        (line(turns=[turn(id="resp_1")]), "turns.0.id"),
        (line(turns=[turn(kind="else")]), "turns.0.kind"),
        (line(turns=[turn(completed_at=None)]), "turns.0.completed_at"),
        (
            line(turns=[turn(request={"temperature": 9} | without("user", FACTS))]),
            "turns.0.request.user",
        ),  # a response includes the request's parameters
        (line(turns=[turn(kind="message", usage={"prompt_tokens": 1})]), "turns.0.usage.cached_tokens"),
        (line(turns=[turn(kind="message", error={"code": "x"})]), "turns.0.error.message"),
        (line(turns=[turn(kind="message", choices=[{"finish_reason": 1}])]), "turns.0.choices.0.finish_reason"),
        (line(turns=[turn(kind="message", choices=[{"logprobs": [{}]}])]), "turns.0"),
        (line(turns=[turn(kind="chat.completion", metadata_={"a": []})]), "turns.0.metadata"),
        (line() | {"items": [{"data": MESSAGE, "created_at": 1.0, "turn_id": RESP}]}, "items"),
        (line() | {"items": [{"data": MESSAGE, "created_at": 1.0, "choice": 10**9}]}, "items.0.choice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_turn_is_rejected_with_line_and_field(
    archived: dict[str, Any], where: str, tmp_path: Path, sqlite_url: str
) -> None:
    file = tmp_path / "file"
    file.write_text("\n\n" + json.dumps(archived) + "\n")
    assert f"Error: line 3, {where}" in run("import", str(file), url=sqlite_url, code=2).stderr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"title": "caf\xe9"}', "byte 15 is not UTF-8"),
        (b'{"created_at": NaN}', "line 2"),
        (b'{"metadata": {"a": Infinity}}', "line 2"),
        (b'{"created_at": 1e999}', "line 2"),
        (b'{"title": "\\ud800"}', "line 2"),
        (b'{"a": ' * 500, "line 2"),
        (b"1", "line 2"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_invalid_json_is_rejected_with_its_line(data: bytes, message: str, tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(json.dumps(line()).encode() + b"\n" + data + b"\n")
    refused = run("import", str(file), url=sqlite_url, code=2).stderr
    assert message in refused
    assert "Traceback" not in refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"mapping": {}}, {"mapping": 1}]', "conversation 2, mapping"),
        (b'[{"mapping": {}, "create_time": NaN}]', "the file"),
        (b'[{"mapping": {}, "title": "\xff"}]', "byte 28 is not UTF-8"),
        (b"[1]", "conversation 1"),
    ],
    ids=str,
)
def test_invalid_chatgpt_export_is_rejected_with_the_place(
    data: bytes, message: str, tmp_path: Path, sqlite_url: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert message in run("import", str(file), url=sqlite_url, code=2).stderr


async def test_unchecked_rows_can_be_read(
    database: Database, database_url: str, new_site: NewSite, tmp_path: Path
) -> None:
    """Rows imported by earlier versions."""
    conversation = "conv_" + "0" * 32
    damaged = [without("status"), without("role"), without("content"), MESSAGE | {"content": [{"type": "input_text"}]}]
    items = [each | {"id": f"msg_{index}"} for index, each in enumerate(damaged)]
    async with Store(database).writing() as repositories:
        made = Conversation(id=conversation, owner="local", created_at=1.0, updated_at=1.0)
        await repositories.conversations.add([made])
        await repositories.items.add(item_rows.linked_rows(items, item_rows.ItemPosition("local", conversation, 1.0)))
    site = await new_site(database={"url": database_url, "migrate": False})
    for path in (
        f"/chat/get/messages/?conversation_id={conversation}",
        f"/v1/conversations/{conversation}/items",
        f"/v1/conversations/{conversation}/items/msg_0",
        "/v1/conversations/search?query=Hi",
    ):
        assert (await site.client.get(path)).status_code == 200, path
    body = {"messages": [{"content": "Hi"}], "conversation": conversation}
    assert (await site.client.post("/v1/chat/completions", json=body)).status_code == 400
    exported = (await run_in_thread("export", url=database_url)).stdout
    (tmp_path / "file").write_text(exported)
    assert (
        "items.0.data.status"
        in (await run_in_thread("import", str(tmp_path / "file"), url=database_url, code=2)).stderr
    )


def tree(size: int) -> dict[str, Any]:
    """A long conversation with a branch at every tenth message."""
    items = []
    for index in range(size):
        parent = index - 2 if index % 10 == 9 else index - 1
        data = MESSAGE | {"id": f"msg_{index}", "content": [{"type": "input_text", "text": f"number {index}"}]}
        items.append({"data": data, "created_at": 1.0, "parent_id": f"msg_{parent}" if index else None})
    return line() | {"items": items}


@contextmanager
def counted() -> Iterator[list[str]]:
    """Counts statements; a bulk insert is one."""
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


async def test_number_of_statements_is_independent_of_the_tree(database: Database) -> None:
    counts = []
    for number, size in enumerate((20, 2000)):
        archived = ArchivedConversation.model_validate(tree(size) | {"id": f"conv_{number:032}"})
        with counted() as statements:
            assert await archive.restore(database, "local", archived)
        counts.append(len(statements))
        assert len((await ConversationService(database).messages("local", archived.id, limit=size + 1)).data) == size
    assert counts[0] == counts[1]


def test_tree_is_traversed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item is converted once."""
    calls = []
    linked_rows = item_rows.linked_rows
    monkeypatch.setattr(item_rows, "linked_rows", lambda items, at: calls.append(len(items)) or linked_rows(items, at))
    archived = ArchivedConversation.model_validate(tree(300))
    assert len(archive.rows_of(archived, archived.id, "local", {})) == 300
    assert sum(calls) == 300


def test_search_prints_whole_lines_for_programs(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    text = "a needle in\na [bold]haystack[/bold] " + "of words " * 30
    file.write_text(json.dumps(line(MESSAGE | {"content": [{"type": "input_text", "text": text}]})))
    run("import", str(file), url=sqlite_url)
    (found,) = run("search", "needle", url=sqlite_url).stdout.splitlines()
    where, who, what = found.split("\t")
    assert (where, who) == ("conv_" + "0" * 32, "user")
    assert what.startswith("a needle in a [bold]haystack[/bold] of words")


def test_search_prints_whole_ids_in_a_terminal(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps(line(MESSAGE | {"content": [{"type": "input_text", "text": "needle " * 30}]})))
    run("import", str(file), url=sqlite_url)
    environment = {"FORCE_COLOR": "1", "COLUMNS": "60", "TERM": "xterm"}
    result = CliRunner().invoke(app, ["search", "needle", "--database-url", sqlite_url], env=environment)
    assert "conv_" + "0" * 32 in result.output
    assert "Where" in result.output
