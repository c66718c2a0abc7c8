"""What the official client finds again when the service was killed and started anew, on both databases."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import ConflictError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion

from tests.test_live.service import CHAT, ENDLESS, ROOT, running

pytestmark = pytest.mark.live


@contextmanager
def life(folder: Path, database_url: str, *, kill: bool = False, **settings: str) -> Iterator[OpenAI]:
    with running(folder, DATABASE__URL=database_url, **settings) as service:
        yield OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0)
        if kill:
            service.kill()


def complete(client: OpenAI, text: str, **more: Any) -> ChatCompletion:
    asked: dict[str, Any] = {"model": CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    answer: ChatCompletion = client.chat.completions.create(**asked | more)
    return answer


async def test_what_was_stored_survives(folder: Path, database_url: str) -> None:
    with life(folder, database_url, kill=True) as client:
        stored = [complete(client, f"Say {n}.", store=True, metadata={"n": str(n)}) for n in range(3)]
        thread = client.conversations.create(metadata={"of": "Ada"})
        client.responses.create(model=CHAT, conversation=thread.id, input="My name is Ada.", max_output_tokens=16)
        first = client.responses.create(model=CHAT, input="My dog is called Rex.", max_output_tokens=16)
        key = {"Idempotency-Key": "a retry"}
        once = complete(client, "Once.", extra_body={"conversation": thread.id}, extra_headers=key)
        said = list(client.conversations.items.list(thread.id, order="asc"))

    with life(folder, database_url) as client:
        assert [each.id for each in client.chat.completions.list(limit=2)] == [each.id for each in stored]
        assert [each.id for each in client.chat.completions.list(metadata={"n": "1"})] == [stored[1].id]
        again = client.chat.completions.retrieve(stored[0].id)
        assert again.choices[0].message.content == stored[0].choices[0].message.content
        assert [each.content for each in client.chat.completions.messages.list(stored[0].id)] == ["Say 0."]
        client.chat.completions.delete(stored[0].id)
        with pytest.raises(NotFoundError):
            client.chat.completions.retrieve(stored[0].id)

        assert client.conversations.retrieve(thread.id).metadata == {"of": "Ada"}
        assert list(client.conversations.items.list(thread.id, order="asc")) == said
        assert complete(client, "Once.", extra_body={"conversation": thread.id}, extra_headers=key).id == once.id
        alone = client.responses.create(model=CHAT, input="What is my name?", max_output_tokens=16)
        answer = client.responses.create(
            model=CHAT, conversation=thread.id, input="What is my name?", max_output_tokens=16
        )
        assert answer.usage
        assert alone.usage
        assert answer.usage.input_tokens > alone.usage.input_tokens
        assert len(list(client.conversations.items.list(thread.id))) == len(said) + 2

        after = client.responses.create(
            model=CHAT, previous_response_id=first.id, input="What is my name?", max_output_tokens=16
        )
        assert after.usage
        assert after.usage.input_tokens > alone.usage.input_tokens
        found = client.get("/conversations/search?query=my+name", cast_to=dict[str, Any])
        assert [each["snippet"] for each in found["data"]][-1] == "My name is Ada."


async def test_the_readmes_lines_go_on_after_a_restart(folder: Path, database_url: str) -> None:
    lines = (ROOT / "README.md").read_text("utf-8").partition("```python\nthread = ")[2].partition("```")[0]
    before, after = f"thread = {lines}".split("# … the server is restarted …\n")
    assert len([*before.splitlines(), *after.splitlines()]) <= 5
    names: dict[str, Any] = {}
    with life(folder, database_url, kill=True, CHAT__MAX_NEW_TOKENS="16") as names["client"]:
        exec(before, names)  # as a reader would run them
    with life(folder, database_url, CHAT__MAX_NEW_TOKENS="16") as names["client"]:
        exec(after, names)
        said = list(names["client"].conversations.items.list(names["thread"].id, order="asc"))
        alone = names["client"].responses.input_tokens.count(input="How old am I?")
    assert [item.role for item in said] == ["user", "assistant"] * 2
    assert said[0].content[0].text == "I am 34 years old."
    assert said[3].content[0].text == names["answer"].output_text
    assert names["answer"].usage.input_tokens > alone.input_tokens + 16  # with what was said before


async def test_nobody_writes_beside_a_running_answer(folder: Path, database_url: str) -> None:
    with life(folder, database_url) as client:
        thread = client.conversations.create()
        there = {"conversation": thread.id}
        asked: Any = [{"role": "user", "content": ENDLESS}]
        stream = client.chat.completions.create(model=CHAT, messages=asked, stream=True, extra_body=there)
        with stream:
            next(iter(stream))
            with pytest.raises(ConflictError):
                complete(client, "Meanwhile", extra_body=there)
            client.conversations.delete(thread.id)
        with pytest.raises(NotFoundError):
            complete(client, "Still there?", extra_body=there)
