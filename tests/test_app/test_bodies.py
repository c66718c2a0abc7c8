"""Bodies of all routes: JSON types are not coerced, and errors name the path in the body."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from schemas.predict_schema import Prediction
from schemas.request_schema import Request
from tools import compatibility

Json = dict[str, Any]
REQUIRED: Json = {
    "messages": [{"role": "user", "content": "Hi"}],
    "items": [{"role": "user", "content": "Hi"}],
    "max_tokens": 4,
    "prompt": "Hi",
    "input": "Hi",
    "query": "Hi",
    "documents": ["Hi"],
    "text_1": "Hi",
    "text_2": "Hi",
    "tokens": [1],
    "lora_name": "sql",
    "lora_path": "folder",
    "name": "a name",
    "input_file_id": "file-1",
    "endpoint": "/v1/responses",
    "completion_window": "24h",
    "bytes": 1,
    "filename": "a.jsonl",
    "mime_type": "text/plain",
    "purpose": "batch",
    "part_ids": ["part_" + "0" * 32],
}
OTHERS: dict[str | None, tuple[Any, ...]] = {
    "integer": ("3", True, 1.5),
    "number": ("0.5", True),
    "boolean": ("true", 1),
    "string": (3, True),
}
WHATEVER: list[Any] = [
    True,
    3,
    1.5,
    "3",
    "",
    [],
    {},
    [3],
    [{}],
    [[]],
    [[{}]],
    ["3", 4],
    {"type": "x"},
    {"a": {"b": [0]}},
]


def subclasses(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.fixture
def bodies(new_app: Callable[..., FastAPI]) -> list[type[BaseModel]]:
    document = new_app(specs=["anthropic", "ollama"]).openapi()
    names = {compatibility.body(operation) for _, operation in compatibility.operations(document)}
    return [each for each in dict.fromkeys(subclasses(Request)) if each.__name__ in names]


def valid_body(body: type[BaseModel], **field: Any) -> Json:
    least = {name: REQUIRED[name] for name, info in body.model_fields.items() if info.is_required()}
    return least | ({"input": "Hi"} if body is Prediction else {}) | field


def faults(body: type[BaseModel], sent: Json) -> list[tuple[int | str, ...]]:
    try:
        body.model_validate(sent)
    except ValidationError as error:
        return [each["loc"] for each in error.errors()]
    return []


def fields(bodies: list[type[BaseModel]]) -> Iterator[tuple[type[BaseModel], str, Json]]:
    for body in bodies:
        for name, about in body.model_json_schema()["properties"].items():
            yield body, name, about


def type_of(about: Json) -> str | None:
    types = [each.get("type") for each in about.get("anyOf", [about]) if each.get("type") != "null"]
    return types[0] if len(types) == 1 else None


def is_in(place: tuple[int | str, ...], sent: Any) -> bool:
    """Ignores missing keys; a string may be given for a list of one."""
    for index, step in enumerate(place):
        try:
            sent = sent[step]
        except (KeyError, IndexError, TypeError):
            return index == len(place) - 1 and (isinstance(sent, dict) or sent == "")
    return True


def test_all_bodies_are_tested(bodies: list[type[BaseModel]]) -> None:
    assert len(bodies) > 20
    assert [body for body in bodies if faults(body, valid_body(body))] == []


def test_types_are_not_coerced(bodies: list[type[BaseModel]]) -> None:
    taken = [
        (body.__name__, name, value)
        for body, name, about in fields(bodies)
        for value in OTHERS.get(type_of(about), ())
        if not faults(body, valid_body(body, **{name: value}))
    ]
    assert taken == []


def test_integers_may_be_written_as_decimals(bodies: list[type[BaseModel]]) -> None:
    refused = [
        (body.__name__, name)
        for body, name, about in fields(bodies)
        if type_of(about) == "integer" and faults(body, valid_body(body, **{name: 1.0}))
    ]
    assert refused == []


def test_errors_name_the_path_in_the_body(bodies: list[type[BaseModel]]) -> None:
    sent = [(body, valid_body(body, **{name: value})) for body, name, _ in fields(bodies) for value in WHATEVER]
    astray = [
        (body.__name__, each, place)
        for body, each in sent
        for place in faults(body, each)
        if place and not is_in(place, each)
    ]
    assert astray == []
