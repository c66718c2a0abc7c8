import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.common.settings import api_key
from database.session import Database
from schemas.chat_schema import ChatMessage
from services.chat.events import Arguments, Reasoning, Text, ToolCall
from services.conversation_service import ConversationService
from services.history.turn import Opening
from services.turn_service import TurnService
from tests.test_services.test_turn_service import END, begin, finish, say
from tools.archive import ArchivedConversation
from tools.history import app, owner_of, read


def run(*arguments: str, url: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--database-url", url])
    assert result.exit_code == code, result.output
    return result


async def run_in_thread(*arguments: str, url: str, code: int = 0) -> Result:
    """The command has an event loop of its own."""
    return await asyncio.to_thread(run, *arguments, url=url, code=code)


async def fill(database: Database, owner: str = "local") -> list[str]:
    """A conversation, and two answers that go on from one."""
    turns = TurnService(database, writer="host:1")
    named = await begin(turns, "Weather?", owner=owner)
    await finish(named, Reasoning("Hm"), ToolCall("call_1", "weather", 0), Arguments("{}", 0), END)
    output = ChatMessage(role="tool", tool_call_id="call_1", content="Rain")
    await finish(await begin(turns, output, owner=owner, conversation=named.conversation_id), Text("Rain"), END)
    kept: dict[str, Any] = {"owner": owner, "create": False, "stored": True, "kind": "response"}
    first = await say(turns, "1", "one", metadata={"a": "b"}, **kept)
    others = [await say(turns, asked, "two", previous=first.id, **kept) for asked in ("2", "2, too")]
    return [turn.id for turn in (named, first, *others)]


async def told(database: Database, turn_ids: Sequence[str], owner: str) -> list[object]:
    turns = TurnService(database, writer="host:1")
    answers = [await turns.answer(turn_ids[0], owner, "message")]
    answers += [await turns.answer(turn_id, owner, "response") for turn_id in turn_ids[1:]]
    branches = [
        (await turns.open(Opening(owner=owner, kind="response", stored=True, previous=turn_id))).history
        for turn_id in turn_ids[1:]
    ]
    named = await turns.open(Opening(owner=owner, conversation=answers[0].conversation_id))
    return [answers, branches, named.history]


async def test_what_is_exported_comes_back_whole(database: Database, database_url: str, tmp_path: Path) -> None:
    made = await fill(database)
    before = await told(database, made, "local")
    file = str(tmp_path / "history.jsonl")
    assert "2 conversations" in (await run_in_thread("export", file, url=database_url)).stderr
    assert "0 conversations added, 2" in (await run_in_thread("import", file, url=database_url)).stderr
    await run_in_thread("delete", "--all", "--yes", url=database_url)
    assert (await ConversationService(database).page("local", limit=1)).data == []
    assert "2 conversations added, 0" in (await run_in_thread("import", file, url=database_url)).stderr
    assert await told(database, made, "local") == before
    again = await run_in_thread("export", url=database_url)
    assert again.stdout == await asyncio.to_thread(Path(file).read_text)


async def test_somebody_elses_ids_are_not_taken(database: Database, database_url: str, tmp_path: Path) -> None:
    made = await fill(database)
    before = await told(database, made, "local")
    file = str(tmp_path / "history.jsonl")
    await run_in_thread("export", file, url=database_url)
    for added in ("2 conversations added, 0", "0 conversations added, 2"):
        assert added in (await run_in_thread("import", file, "--key", "secret", url=database_url)).stderr
    assert await told(database, made, "local") == before
    owner = api_key("secret").owner
    (copied,) = (await ConversationService(database).page(owner, limit=2)).data
    assert copied.id != before[0][0].conversation_id  # type: ignore[index]
    assert "Rain" in (await run_in_thread("search", "rain", "--key", "secret", url=database_url)).stdout
    lines = (await run_in_thread("export", "--key", "secret", url=database_url)).stdout.splitlines()
    turns = [turn for line in lines for turn in ArchivedConversation.model_validate_json(line).turns]
    assert {turn.previous_id for turn in turns if turn.previous_id} < {turn.id for turn in turns}
    assert not {turn.id for turn in turns} & set(made)


async def test_what_is_still_written_is_left_out(database: Database, database_url: str) -> None:
    turns = TurnService(database, writer="host:1")
    turn = await say(turns, "1", "one", owner="local")
    await begin(turns, "2", owner="local", conversation=turn.conversation_id)
    (line,) = (await run_in_thread("export", url=database_url)).stdout.splitlines()
    archived = ArchivedConversation.model_validate_json(line)
    assert ([each.id for each in archived.turns], len(archived.items)) == ([turn.id], 2)


async def test_it_is_searched_and_deleted(database: Database, database_url: str) -> None:
    await fill(database)
    found = await run_in_thread("search", "Weather", url=database_url)
    conversation = next(word for word in found.stdout.split() if word.startswith("conv_"))
    assert "Weather?" in found.stdout
    assert "1 conversations deleted" in (await run_in_thread("delete", conversation, url=database_url)).stderr
    assert "conv_" not in (await run_in_thread("search", "Weather", url=database_url)).stdout
    assert "No conversation" in (await run_in_thread("delete", conversation, url=database_url, code=2)).stderr
    assert "name conversations" in (await run_in_thread("delete", url=database_url, code=2)).stderr
    assert "Abort" in (await run_in_thread("delete", "--all", url=database_url, code=1)).output


def node(id: str, parent: str | None, children: list[str], role: str = "", said: object = None, **more: Any) -> Any:
    content = {"content_type": "text", "parts": [said]} | more
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
    after = await TurnService(database, writer="host:1").open(Opening(owner="local", conversation=found.id))
    assert [(each.role, each.content) for each in after.history] == [
        ("user", "How deep is it?"),
        ("assistant", "Deep"),
        ("user", "Thanks"),
    ]
    messages = await ConversationService(database).messages("local", found.id, limit=9)
    assert [each.content for each in messages][-1] == "Thanks"
    assert {"Very deep", "And wide?"} <= {each.content for each in messages if isinstance(each.content, str)}


def test_chatgpts_export_may_lack_times_and_have_speech(tmp_path: Path) -> None:
    spoken = [{"content_type": "audio_transcription", "text": "Hello"}, {"content_type": "audio_asset_pointer"}]
    hidden = node("h", "a", ["b"], "user", content_type="user_editable_context", user_profile="x")
    del hidden["message"]["content"]["parts"]
    said = node("b", "h", [], "assistant", None, content_type="multimodal_text", parts=spoken)
    nodes = [node("a", None, ["h"]), hidden, said]
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
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, sqlite_url: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    assert "neither" in run("import", str(file), url=sqlite_url, code=2).stderr


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([{"data": {"type": "message"}}], "no id"),
        ([{"data": {"id": "msg_1"}}], "no type"),
        ([{"data": {"id": "msg_1", "type": "message"}, "parent_id": "msg_0"}], "'msg_0'"),
        ([{"data": {"id": "msg_1", "type": "message"}}] * 2, "twice"),
    ],
)
def test_a_file_that_was_edited_is_refused_by_what_is_wrong(
    items: list[dict[str, Any]], why: str, tmp_path: Path, sqlite_url: str
) -> None:
    file = tmp_path / "file"
    conversation = {"id": "conv_1", "created_at": 1.0, "updated_at": 1.0}
    file.write_text(json.dumps(conversation | {"items": [{"created_at": 1.0} | item for item in items]}))

    assert why in run("import", str(file), url=sqlite_url, code=2).stderr


def test_an_empty_file_has_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("\n")
    assert list(read(file)) == []


def test_whose_history_it_is() -> None:
    assert owner_of(None) == "local"
    assert owner_of("secret") == api_key("secret").owner


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("/nodir/x", "Error: /nodir/x: No such file or directory\n"),
        pytest.param(
            "/dev/full",
            "Error: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full"),
        ),
    ],
)
async def test_where_nothing_can_be_written_is_told_in_a_line(
    database: Database, database_url: str, output: str, said: str
) -> None:
    await fill(database)
    assert (await run_in_thread("export", output, url=database_url, code=2)).output == said


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("no database, but some text that is long enough to be looked at" * 9)
    before = path.read_bytes()
    output = run("search", "x", url=f"sqlite:///{path}", code=2).output
    assert output == f"Error: {path} is no SQLite database\n"
    assert path.read_bytes() == before


def test_a_database_that_is_not_there_is_told_in_a_line() -> None:
    output = run("search", "x", url="postgresql://user:secret@127.0.0.1:1/x", code=2).output
    assert output == "Error: The conversation store is not reachable\n"
    assert run("search", "x", url="mysql://user:secret@h/x", code=2).output.count("\n") == 1
