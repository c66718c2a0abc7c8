"""What a request brings that is left aside is found at any depth, and nothing that is a caller's own."""

from itertools import islice
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.ignored_keys import Kept, ignored_keys, kept

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"odd": {"type": "string", "odd": 1}}}}
TEXT = {"type": "text", "text": "a"}


def found(**fields: Any) -> list[str]:
    chat_request = ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}], **fields})
    return sorted(ignored_keys(chat_request))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, []),
        ({"zebra": 1, "none": None}, ["zebra"]),
        ({"messages": [{"content": "a"}, {"content": "b", "id": "m"}]}, ["messages.1.id"]),
        (
            {"messages": [{"content": [{"type": "text", "text": "a"}, {**TEXT, "cache_control": {}}]}]},
            ["messages.0.content.1.cache_control"],
        ),
        (
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "u", "size": 1}}]}]},
            ["messages.0.content.0.image_url.size"],
        ),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "input_examples": []}, "defer_loading": True}]},
            ["tools.0.defer_loading", "tools.0.function.input_examples"],
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"odd": 1}, "odd": 1}}},
            ["response_format.json_schema.odd"],
        ),
        ({"metadata": {"odd": "x"}, "chat_template_kwargs": {"odd": {"odd": 1}}}, []),
        ({"prompt_cache_retention": "in_memory", "verbosity": "medium", "service_tier": "flex"}, []),
        ({"prompt_cache_retention": "24h", "verbosity": "low"}, ["prompt_cache_retention", "verbosity"]),
        ({"service_tier": "slow"}, ["service_tier"]),
    ],
    ids=str,
)
def test_paths(fields: dict[str, Any], named: list[str]) -> None:
    assert found(**fields) == named


def test_keys_that_are_left_aside_do_not_reach_the_prompt() -> None:
    message = ChatMessage.model_validate({"content": [{"type": "text", "text": "a", "odd": 1}]})
    assert message.content == [{"type": "text", "text": "a"}]


def test_names_as_they_are_on_the_wire() -> None:
    assert found(structured_outputs={"json": {"odd": 1}, "odd": 1}) == ["structured_outputs.odd"]


def test_models_of_others_are_searched_too() -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Outer(BaseModel):
        inner: list[Inner]

    assert list(ignored_keys(Outer.model_validate({"inner": [{}, {"odd": 1}], "odd": 1}))) == ["inner.1.odd"]


def test_of_many_no_more_are_looked_at_than_are_asked_for() -> None:
    keys = {f"k{n}": n for n in range(900)}
    many = ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}], **keys})
    assert len(list(islice(ignored_keys(many), 3))) == 3
    message = ChatMessage.model_validate({"content": [{**TEXT, **keys}, {**TEXT, **keys}]})
    assert isinstance(shown := kept(message, extra=False), Kept)
    assert len(shown.ignored) == 1_000


@pytest.mark.parametrize("place", ["request", "part"])
def test_objects_of_very_many_keys_are_refused(place: str) -> None:
    keys = {f"k{n}": n for n in range(1_000)}
    content = [{**TEXT, **keys}] if place == "part" else "hi"
    with pytest.raises(ValidationError, match="more than 1000 keys"):
        ChatCompletionRequest.model_validate(
            {"messages": [{"content": content}], **(keys if place == "request" else {})}
        )
