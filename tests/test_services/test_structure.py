"""Three ways to ask for one thing: which grammar each becomes, and what goes with what."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.common.errors import validation_problem
from schemas.chat_schema import ChatCompletionRequest
from services.chat.request import structure
from services.chat.request.structure import grammar
from services.engine.base import MAX_SOURCE, GrammarSpec
from services.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"const": None}}}
ASKED: list[tuple[str, object]] = [
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}),
    ("structured_outputs", {"json": SCHEMA}),
    ("guided_json", SCHEMA),
    ("guided_regex", "a|b"),
    ("guided_choice", ["a"]),
    ("guided_grammar", 'start: "a"'),
]


def request(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})


def as_schema(json_schema: object, type: str = "json_schema") -> dict[str, object]:
    return {"response_format": {"type": type, "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        (dict(ASKED[:1]), "json_schema", json.dumps(SCHEMA)),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_regex": "a|b"}, "regex", "a|b"),
        ({"guided_choice": ["a", '"b"\n']}, "lark", r'start: "a" | "\"b\"\n"'),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"json": {}}}, "json_schema", "{}"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type": "object"}'),
        ({"structured_outputs": {"regex": "a|b"}}, "regex", "a|b"),
        ({"structured_outputs": {"choice": ["a"]}}, "lark", 'start: "a"'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
    ],
)
def test_each_way_to_ask_becomes_a_grammar(fields: dict[str, object], kind: Any, source: str) -> None:
    assert grammar(request(**fields)) == GrammarSpec(kind, source, next(iter(fields)))


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"guided_json": None}])
def test_no_padding_unless_requested(fields: dict[str, object]) -> None:
    assert grammar(request(**fields)) is None


@pytest.mark.parametrize("first", range(len(ASKED)))
def test_two_at_once_are_refused_by_the_second(first: int) -> None:
    for second in range(first + 1, len(ASKED)):
        with pytest.raises(InvalidRequest) as refusal:
            grammar(request(**dict([ASKED[second], ASKED[first]])))
        assert refusal.value.param == ASKED[second][0]
        assert f"'{ASKED[first][0]}'" in refusal.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (as_schema({"name": "a", "schema": {}}, type="json_object"), "response_format.json_schema"),
        (as_schema({"schema": {}}), "response_format.json_schema.name"),
        (as_schema({"name": "a b", "schema": {}}), "response_format.json_schema.name"),
        (as_schema({"name": "a"}), "response_format.json_schema.schema"),
        (as_schema({"name": "a", "schema": 3}), "response_format.json_schema.schema"),
        (as_schema({"name": "a", "schema": {}, "strict": "so"}), "response_format.json_schema.strict"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
        ({"guided_json": []}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["a", 3]}, "guided_choice.1"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs.json"),
    ],
)
def test_a_fault_is_named_by_its_place(fields: dict[str, object], param: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        request(**fields)

    found = validation_problem([{**error, "loc": ("body", *error["loc"])} for error in refusal.value.errors()])
    assert (found.status, found.param) == (400, param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guided_json", {"title": "a" * MAX_SOURCE}),
        ("guided_json", {"a": {"enum": list(range(MAX_SOURCE))}}),
        ("guided_json", {f"property {i}": {} for i in range(MAX_SOURCE // 10)}),
        ("guided_choice", ["a" * 1000] * 400),
    ],
)
def test_what_is_too_long_is_not_written_out(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.chat.request.structure.json", None)
    with pytest.raises(InvalidRequest, match=f"longer than {MAX_SOURCE}") as refused:
        grammar(ChatCompletionRequest.model_construct(messages=[], **{name: value}))
    assert refused.value.param == name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_nothing_is_taken_for_longer_than_it_is(schema: dict[str, object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "MAX_SOURCE", len(json.dumps(schema)))
        assert grammar(request(guided_json=schema))
