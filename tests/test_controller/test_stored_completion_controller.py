from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.chat import ChatCompletion

from database.session import Database
from schemas.chat_schema import ChatMessage
from services.chat.events import Text
from services.chat.items import from_messages
from services.engine.base import Piece, TokenLogprob
from services.history.turn import TurnRequest
from services.turn_service import TurnService
from tests.apps import MODEL, Site
from tests.fakes import FakeEngine
from tests.test_services.test_turn_service import head

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "store": True}


async def create(openai: AsyncOpenAI, **more: Any) -> ChatCompletion:
    answer: ChatCompletion = await openai.chat.completions.create(**ASKED | more)
    return answer


async def test_a_stored_completion_is_found_as_it_was_given(openai: AsyncOpenAI) -> None:
    made = await create(openai, metadata={"a": "b"}, temperature=0.5, seed=7, service_tier="auto")
    found = await openai.chat.completions.retrieve(made.id)
    assert found.to_dict() | made.to_dict() == found.to_dict()
    extra = found.model_extra or {}
    assert (extra["temperature"], extra["seed"], extra["top_p"], found.metadata) == (0.5, 7, 1.0, {"a": "b"})
    assert found.service_tier == "default"


async def test_a_stream_is_stored_too(openai: AsyncOpenAI) -> None:
    chunks = [chunk async for chunk in await openai.chat.completions.create(**ASKED, stream=True)]
    found = await openai.chat.completions.retrieve(chunks[0].id)
    assert found.choices[0].message.content == "Hello, world!"
    assert found.created == chunks[0].created


async def test_choices_and_logprobs_are_stored(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    token = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Ho", b"Ho", float("-inf")),))
    engine.script = (Piece("Hi", token_ids=(1,), logprobs=(token,)),)
    made = await create(openai, n=2, logprobs=True, top_logprobs=1)
    found = await openai.chat.completions.retrieve(made.id)
    assert [choice.to_dict() for choice in found.choices] == [choice.to_dict() for choice in made.choices]
    assert found.usage == made.usage


@pytest.mark.parametrize("more", [{"store": False}, {}])
async def test_what_is_not_to_be_stored_is_not(openai: AsyncOpenAI, more: dict[str, bool]) -> None:
    made = await openai.chat.completions.create(model=MODEL, messages=ASKED["messages"], **more)
    with pytest.raises(NotFoundError):
        await openai.chat.completions.retrieve(made.id)
    assert (await openai.chat.completions.list()).data == []


async def test_they_are_listed_by_the_page_in_either_order(openai: AsyncOpenAI) -> None:
    made = [(await create(openai, messages=[{"role": "user", "content": str(n)}])).id for n in range(5)]
    assert [each.id async for each in openai.chat.completions.list(limit=2)] == made
    assert [each.id async for each in openai.chat.completions.list(limit=2, order="desc")] == made[::-1]
    page = await openai.chat.completions.list(limit=5)
    assert page.has_more is False
    extra = page.model_extra or {}
    assert (extra["first_id"], extra["last_id"]) == (made[0], made[-1])


@pytest.mark.both_databases
async def test_they_are_filtered_by_model_and_metadata(openai: AsyncOpenAI) -> None:
    odd = {'a"b.c[0]': "x", "kind": "odd"}
    one = await create(openai, metadata={"kind": "one", "n": "1"})
    two = await create(openai, metadata=odd)
    await create(openai)

    async def listed(**filters: Any) -> list[str]:
        return [each.id async for each in openai.chat.completions.list(**filters)]

    assert await listed(metadata={"kind": "one"}) == [one.id]
    assert await listed(metadata={"kind": "one", "n": "2"}) == []
    assert await listed(metadata=odd) == [two.id]
    assert len(await listed(model=MODEL)) == 3
    assert await listed(model="another") == []


async def test_metadata_can_be_replaced(openai: AsyncOpenAI) -> None:
    made = await create(openai, metadata={"a": "b"})
    changed = await openai.chat.completions.update(made.id, metadata={"c": "d"})
    assert changed.metadata == {"c": "d"}
    assert [each.id async for each in openai.chat.completions.list(metadata={"c": "d"})] == [made.id]


async def test_a_deleted_one_is_gone(openai: AsyncOpenAI) -> None:
    made = await create(openai)
    gone = await openai.chat.completions.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "chat.completion.deleted")
    for call in (openai.chat.completions.retrieve, openai.chat.completions.delete):
        with pytest.raises(NotFoundError):
            await call(made.id)


async def test_its_messages_are_those_of_the_request(openai: AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]
    sent_messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": parts, "name": "Ada"}]
    made = await create(openai, messages=sent_messages)
    first = await openai.chat.completions.messages.list(made.id, limit=1)
    found = [each async for each in openai.chat.completions.messages.list(made.id, limit=1)]
    assert (first.data[0].id, first.has_more) == (f"{made.id}-0", True)
    assert [(each.role, each.content) for each in found] == [("system", "Be brief"), ("user", "Hi there")]
    assert found[0].content_parts is None
    assert [part.to_dict() for part in found[1].content_parts or []] == parts
    back = [each.id async for each in openai.chat.completions.messages.list(made.id, order="desc")]
    assert back == [f"{made.id}-1", f"{made.id}-0"]
    with pytest.raises(BadRequestError):
        await openai.chat.completions.messages.list(made.id, after="x")


async def test_a_truncated_answer_has_its_status(site: Site, turns: TurnService, engine: FakeEngine) -> None:
    opening = TurnRequest(owner="local", input=from_messages([ChatMessage(content="Hi")]), stored=True)
    turn = await turns.open(opening)
    await turn.begin(head(turn))
    turn.add(head(turn))
    turn.add(Text("Hel"))
    url = f"/v1/chat/completions/{turn.id}"
    assert (await site.client.get(url)).status_code == 404
    assert (await site.client.get(f"{url}/messages")).status_code == 404
    await turn.finish()
    found = (await site.client.get(url)).json()
    assert (found["status"], found["choices"][0]["message"]["content"]) == ("incomplete", "Hel")
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("n", [1, 2])
async def test_an_answer_cut_by_a_crash_has_its_status(site: Site, sqlite_url: str, n: int) -> None:
    database = Database(sqlite_url)
    dead = TurnService(database, writer="local:0")
    turn = await dead.open(TurnRequest(owner="local", input=from_messages([ChatMessage(content="Hi")]), stored=True))
    await turn.begin(head(turn, n))
    turn.add(head(turn, n))
    turn.add(Text("Hel", index=n - 1))
    await dead.checkpoints.checkpoint()
    await TurnService(database, writer="local:0").checkpoints.settle_abandoned()
    await database.close()
    found = (await site.client.get("/v1/chat/completions")).json()["data"][0]
    assert (found["status"], found["choices"][n - 1]["message"]["content"]) == ("incomplete", "Hel")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("metadata[a]=%00", "metadata"),
    ],
)
async def test_bad_questions_are_refused(site: Site, query: str, param: str) -> None:
    answer = await site.client.get(f"/v1/chat/completions?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("metadata", [{"a": "\0"}, {"\0": "a"}, {"a" * 65: ""}, {"a": "b" * 513}, [1]])
async def test_bad_metadata_is_refused(site: Site, metadata: object) -> None:
    answer = await site.client.post("/v1/chat/completions/chatcmpl-x", json={"metadata": metadata})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("metadata")


async def test_they_are_there_without_v1(site: Site) -> None:
    made = (await site.client.post("/chat/completions", json=ASKED)).json()
    paths = ["/chat/completions", f"/chat/completions/{made['id']}", f"/chat/completions/{made['id']}/messages"]
    answers: list[httpx2.Response] = [await site.client.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert (await site.client.delete(paths[1])).json()["deleted"]
