from typing import Any, get_args

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError
from openai.types.conversations.conversation_item import ConversationItem
from pydantic import BaseModel, TypeAdapter

from schemas.chat_schema import ChatMessage
from schemas.conversation_schema import TYPES
from services.chat.items import from_messages
from services.history.turn import TurnRequest
from services.turn_service import TurnService
from tests.apps import MODEL, Site
from tests.fakes import FakeEngine, Pause
from tests.test_services.test_turn_service import head

CLASSES: tuple[type[BaseModel], ...] = get_args(get_args(ConversationItem)[0])
PARTS = [
    {"type": "input_text", "text": "Hello \x00 你好"},
    {"type": "output_text", "text": "Hi", "annotations": [{"type": "file_path", "file_id": "f", "index": 0}]},
    {"type": "text", "text": "plain"},
    {"type": "summary_text", "text": "in short"},
    {"type": "reasoning_text", "text": "hm"},
    {"type": "refusal", "refusal": "no"},
    {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
    {"type": "computer_screenshot", "image_url": None, "file_id": "f1", "detail": "auto"},
    {"type": "input_file", "file_id": "f2", "filename": "a.pdf"},
]
SCHEMA = {"type": "object", "properties": {"a": {"default": None}}}
SHELL = {"type": "exec", "command": ["ls"], "env": {"A": "b"}}
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": PARTS},
    {"type": "message", "role": "assistant", "content": PARTS[1:2], "phase": "final_answer", "status": "incomplete"},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"at": "sea"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"type": "function_call_output", "call_id": "c1", "output": PARTS[:1]},
    {"type": "reasoning", "summary": [PARTS[3]], "content": [PARTS[4]], "encrypted_content": "x"},
    {"type": "file_search_call", "queries": ["a"], "results": [{"score": 0.5, "attributes": {"b": 1.5}}]},
    {"type": "web_search_call", "action": {"type": "search", "query": "a"}},
    {"type": "image_generation_call", "result": "AA==", "status": "generating"},
    {"type": "computer_call", "call_id": "c2", "pending_safety_checks": [], "action": {"type": "wait"}},
    {"type": "computer_call_output", "call_id": "c2", "output": {"type": "computer_screenshot", "file_id": "f"}},
    {"type": "tool_search_call", "arguments": {"a": 1}, "execution": "client", "call_id": "c3"},
    {"type": "tool_search_output", "execution": "client", "tools": [], "call_id": "c3"},
    {"type": "additional_tools", "role": "developer", "tools": []},
    {"type": "configuration_update", "reasoning": {"effort": "low"}},
    {"type": "program", "call_id": "c4", "code": "1 + 1", "fingerprint": "f"},
    {"type": "program_output", "call_id": "c4", "result": "2"},
    {"type": "compaction", "encrypted_content": "x"},
    {"type": "code_interpreter_call", "container_id": "k", "code": "1", "outputs": [{"type": "logs", "logs": "1"}]},
    {"type": "local_shell_call", "call_id": "c5", "action": SHELL},
    {"type": "local_shell_call_output", "output": "{}"},
    {"type": "shell_call", "call_id": "c6", "action": {"commands": ["ls"]}},
    {"type": "shell_call_output", "call_id": "c6", "output": []},
    {"type": "apply_patch_call", "call_id": "c7", "operation": {"type": "delete_file", "path": "a"}},
    {"type": "apply_patch_call_output", "call_id": "c7", "output": "done"},
    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "t", "input_schema": SCHEMA}]},
    {"type": "mcp_approval_request", "arguments": "{}", "name": "t", "server_label": "s"},
    {"type": "mcp_approval_response", "approval_request_id": "r", "approve": True, "reason": "why not"},
    {"type": "mcp_call", "arguments": "{}", "name": "t", "server_label": "s", "output": "o"},
    {"type": "custom_tool_call", "call_id": "c8", "input": "free text", "name": "t"},
    {"type": "custom_tool_call_output", "call_id": "c8", "output": "o"},
]


def message(text: str, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text, **more}


def texts(found: list[Any]) -> list[str]:
    return [each.content[0].text for each in found]


async def contents(openai: AsyncOpenAI, conversation: str) -> list[str]:
    return texts([each async for each in openai.conversations.items.list(conversation, order="asc")])


def test_no_type_is_forgotten() -> None:
    known = {get_args(cls.model_fields["type"].annotation)[0] for cls in CLASSES}
    assert {item["type"] for item in ITEMS} == known == TYPES


@pytest.mark.parametrize("given", ITEMS, ids=lambda item: item["type"])
async def test_items_come_back_as_they_were(site: Site, given: dict[str, Any]) -> None:
    made = (await site.client.post("/v1/conversations", json={"items": [given]})).json()
    listed = (await site.client.get(f"/v1/conversations/{made['id']}/items")).json()["data"]
    assert len(listed) == 1
    TypeAdapter(ConversationItem).validate_python(listed[0])  # as the client says it is
    known = {name: value for name, value in listed[0].items() if name in given}
    bare = [{name: value for name, value in part.items() if value is not None} for part in given.get("content", [])]
    expected = given | ({"content": [part | DEFAULTS.get(part["type"], {}) for part in bare]} if bare else {})
    assert known == expected
    alone = (await site.client.get(f"/v1/conversations/{made['id']}/items/{listed[0]['id']}")).json()
    assert alone == listed[0]


DEFAULTS: dict[str, dict[str, Any]] = {"output_text": {"logprobs": []}}


async def test_a_conversation_is_made_found_changed_and_deleted(openai: AsyncOpenAI) -> None:
    made = await openai.conversations.create(metadata={"a": "b"}, items=[message("Hi")])
    assert made.id.startswith("conv_")
    assert await openai.conversations.retrieve(made.id) == made
    assert (await openai.conversations.update(made.id, metadata={"c": "d"})).metadata == {"c": "d"}
    assert (await openai.conversations.retrieve(made.id)).metadata == {"c": "d"}
    gone = await openai.conversations.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    for call in (openai.conversations.retrieve, openai.conversations.delete, openai.conversations.items.list):
        with pytest.raises(NotFoundError):
            await call(made.id)


async def test_items_are_added_in_order_and_paged(openai: AsyncOpenAI) -> None:
    made = await openai.conversations.create()
    added = await openai.conversations.items.create(made.id, items=[message(str(n)) for n in range(3)])  # type: ignore[arg-type]
    assert (texts(added.data), added.has_more) == (["0", "1", "2"], False)
    assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)
    await openai.conversations.items.create(made.id, items=[message("3"), message("4")])  # type: ignore[arg-type]
    pages = openai.conversations.items.list(made.id, limit=2)
    assert texts([each async for each in pages]) == ["4", "3", "2", "1", "0"]
    assert await contents(openai, made.id) == ["0", "1", "2", "3", "4"]
    rest = await openai.conversations.items.list(made.id, after=added.data[1].id, order="asc", limit=1)
    assert (texts(rest.data), rest.has_more) == (["2"], True)
    empty = await openai.conversations.items.list((await openai.conversations.create()).id)
    assert (empty.data, empty.has_more) == ([], False)


async def test_an_item_is_found_and_deleted(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await openai.conversations.create(items=[message(text) for text in "abc"])
    listed = [each async for each in openai.conversations.items.list(made.id, order="asc")]
    middle = listed[1].id or ""
    assert await openai.conversations.items.retrieve(middle, conversation_id=made.id) == listed[1]
    assert (await openai.conversations.items.delete(middle, conversation_id=made.id)).id == made.id
    with pytest.raises(NotFoundError):
        await openai.conversations.items.retrieve(middle, conversation_id=made.id)
    assert await contents(openai, made.id) == ["a", "c"]
    await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "d"}], extra_body={"conversation": made.id}
    )
    assert engine.prompts[-1] == "<user>a\n<user>c\n<user>d\n<assistant>\n"
    assert await contents(openai, made.id) == ["a", "c", "d", "Hello, world!"]


async def test_ids_are_kept_and_are_there_once(openai: AsyncOpenAI) -> None:
    one, other = [await openai.conversations.create(items=[message("a", id="msg_mine")]) for _ in range(2)]
    assert (await openai.conversations.items.retrieve("msg_mine", conversation_id=one.id)).id == "msg_mine"
    for items in ([message("b", id="msg_mine")], [message("b", id="x"), message("c", id="x")]):
        with pytest.raises(BadRequestError):
            await openai.conversations.items.create(other.id, items=items)  # type: ignore[arg-type]
    assert await contents(openai, other.id) == ["a"]


async def test_what_no_model_here_reads_is_refused_when_one_must(openai: AsyncOpenAI) -> None:
    sound = {"type": "message", "role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}
    made = await openai.conversations.create(items=[sound])  # type: ignore[list-item]
    with pytest.raises(BadRequestError, match="input_audio"):
        await openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "d"}], extra_body={"conversation": made.id}
        )


async def test_items_without_text_for_a_model_are_skipped(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await openai.conversations.create(items=[ITEMS[7], message("a")])  # type: ignore[list-item]
    await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "d"}], extra_body={"conversation": made.id}
    )
    assert engine.prompts == ["<user>a\n<user>d\n<assistant>\n"]


@pytest.mark.both_databases
async def test_nobody_writes_while_an_answer_is_written(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause, "lo")
    made = await openai.conversations.create(items=[message("a")])
    (first,) = [each async for each in openai.conversations.items.list(made.id)]
    stream = await openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "b"}], stream=True, extra_body={"conversation": made.id}
    )
    await pause.reached.wait()
    with pytest.raises(ConflictError):
        await openai.conversations.items.create(made.id, items=[message("c")])  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        await openai.conversations.items.delete(first.id or "", conversation_id=made.id)
    pause.go.set()
    assert [chunk async for chunk in stream]
    assert await contents(openai, made.id) == ["a", "b", "Hello"]


async def test_an_old_message_is_answered_once_more(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await openai.conversations.create(items=[message("a"), message("b", "assistant"), message("c")])
    first = await anext(aiter(openai.conversations.items.list(made.id, order="asc")))
    fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "d"}]}
    branch = {"conversation": made.id, "parent_item": first.id}
    await openai.chat.completions.create(**fields, extra_body=branch)
    assert engine.prompts[-1] == "<user>a\n<user>d\n<assistant>\n"
    await openai.chat.completions.create(**fields, extra_body={"conversation": made.id})
    assert engine.prompts[-1] == "<user>a\n<user>d\n<assistant>Hello, world!\n<user>d\n<assistant>\n"
    assert (await contents(openai, made.id))[:4] == ["a", "b", "c", "d"]
    for wrong in ({"conversation": made.id, "parent_item": "x"}, {"parent_item": first.id}):
        with pytest.raises(BadRequestError) as refused:
            await openai.chat.completions.create(**fields, extra_body=wrong)
        assert refused.value.param == "parent_item"


async def test_ones_own_are_listed_the_last_used_first(site: Site, turns: TurnService) -> None:
    url = "/v1/conversations"
    made = [(await site.client.post(url, json={"title": f"No. {n}"})).json()["id"] for n in range(3)]
    await site.client.post(f"{url}/{made[0]}/items", json={"items": [message("a")]})
    alone = await turns.open(TurnRequest(owner="local", input=from_messages([ChatMessage(content="Hi")]), stored=True))
    await alone.begin(head(alone))
    first = (await site.client.get(url, params={"limit": 2})).json()
    rest = (await site.client.get(url, params={"limit": 2, "after": first["last_id"]})).json()
    assert [each["id"] for each in first["data"] + rest["data"]] == [made[0], made[2], made[1]]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"][0]["title"] == "No. 0"


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "", {"items": [message("a")] * 21}, "items"),
        ("POST", "", {"items": [{"type": "item_reference", "id": "x"}]}, "items.0"),
        ("POST", "", {"items": [{"type": "nonsense"}]}, "items.0"),
        ("POST", "", {"items": [message("a", "judge")]}, "items.0.role"),
        ("POST", "", {"items": [message("a", id="\0")]}, "items.0.id"),
        ("POST", "", {"metadata": {"a": True}}, "metadata.a"),
        ("POST", "", {"title": "\0"}, "title"),
        ("POST", "/items", {"items": []}, "items"),
        ("GET", "/items?limit=101", None, "limit"),
        ("GET", "/items?order=up", None, "order"),
        ("GET", "/items?after=%00", None, "after"),
        ("GET", "/items?include[]=nonsense", None, "include[].0"),
        ("GET", "/items/%00", None, "item_id"),
    ],
)
async def test_bad_requests_are_refused_by_name(site: Site, method: str, path: str, body: object, param: str) -> None:
    made = (await site.client.post("/conversations", json={})).json()
    url = "/v1/conversations" + (f"/{made['id']}{path}" if path else "")
    answer = await site.client.request(method, url, json=body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


async def test_unknown_keys_are_named(site: Site) -> None:
    answer = await site.client.post("/v1/conversations", json={"zebra": 1})
    assert answer.headers["x-parley-ignored"] == "zebra"


async def test_include_is_honoured(openai: AsyncOpenAI) -> None:
    made = await openai.conversations.create(items=[message("Hi", "assistant")])
    listed = await openai.conversations.items.list(made.id, include=["message.output_text.logprobs"])
    assert listed.data[0].content[0].logprobs == []  # type: ignore[union-attr]


async def test_ones_own_history_is_searched(site: Site) -> None:
    made = (await site.client.post("/v1/conversations", json={"items": [message("The sea is wide")]})).json()
    found = (await site.client.get("/v1/conversations/search", params={"query": "wide sea"})).json()
    assert [(each["conversation_id"], each["snippet"]) for each in found["data"]] == [(made["id"], "The sea is wide")]
    answer = await site.client.get("/conversations/search", params={"query": "?!"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "query")


async def tree_of(openai: AsyncOpenAI, conversation_id: str, query: str = "") -> Any:
    return await openai.get(f"/conversations/{conversation_id}/tree{query}", cast_to=object)


async def test_a_tree_shows_the_branches_and_how_their_answers_ended(openai: AsyncOpenAI) -> None:
    made = await openai.conversations.create()
    fields: dict[str, Any] = {"model": MODEL, "conversation": made.id}
    first = await openai.responses.create(**fields, input="a")
    tree = await tree_of(openai, made.id)
    question, answer = tree["data"]
    assert (question["parent_item"], answer["parent_item"]) == (None, question["item"]["id"])
    assert (question["is_output"], answer["is_output"]) == (False, True)
    again = await openai.responses.create(**fields, extra_body={"parent_item": question["item"]["id"]})
    edited = await openai.responses.create(**fields, input="b", extra_body={"parent_item": ""})
    tree = await tree_of(openai, made.id)
    parents = {each["item"]["id"]: each["parent_item"] for each in tree["data"]}
    assert [parents[each.output[0].id or ""] for each in (first, again)] == [question["item"]["id"]] * 2
    roots = [each["item"]["content"][0]["text"] for each in tree["data"] if each["parent_item"] is None]
    assert roots == ["a", "b"]
    assert {each["id"]: each["status"] for each in tree["answers"]} == dict.fromkeys(
        (first.id, again.id, edited.id), "completed"
    )
    assert all(each["usage"]["output_tokens"] > 0 for each in tree["answers"])
    head = await tree_of(openai, made.id, "?limit=2")
    rest = await tree_of(openai, made.id, f"?after={head['last_id']}")
    assert head["data"] + rest["data"] == tree["data"]
    assert (head["has_more"], rest["has_more"]) == (True, False)


async def test_a_tree_names_the_answer_that_is_being_generated(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause, "lo")
    made = await openai.conversations.create()
    begun = await openai.responses.create(model=MODEL, conversation=made.id, input="a", background=True)
    await pause.reached.wait()
    tree = await tree_of(openai, made.id)
    (answer,) = tree["answers"]
    assert (answer["id"], answer["status"]) == (begun.id, "in_progress")
    assert answer["parent_item"] == tree["data"][-1]["item"]["id"]
    pause.go.set()


async def test_a_response_continues_from_the_item_it_names(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await openai.conversations.create(items=[message("a"), message("b", "assistant"), message("c")])
    first = await anext(aiter(openai.conversations.items.list(made.id, order="asc")))
    fields: dict[str, Any] = {"model": MODEL, "input": "d"}
    counted = [
        (await openai.responses.input_tokens.count(**fields, conversation=made.id, extra_body=branch)).input_tokens
        for branch in ({}, {"parent_item": first.id}, {"parent_item": ""})
    ]
    assert counted[0] > counted[1] > counted[2]
    await openai.responses.create(**fields, conversation=made.id, extra_body={"parent_item": first.id})
    assert engine.prompts[-1] == "<user>a\n<user>d\n<assistant>\n"
    await openai.responses.create(**fields, conversation=made.id, extra_body={"parent_item": ""})
    assert engine.prompts[-1] == "<user>d\n<assistant>\n"
    for wrong in ({"conversation": made.id, "parent_item": "x"}, {"parent_item": first.id}):
        with pytest.raises(BadRequestError) as refused:
            await openai.responses.create(**fields, extra_body=wrong)
        assert refused.value.param == "parent_item"
