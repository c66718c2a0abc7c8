"""Calls whose arguments are written between tags: how values are read, and what forced ones are held to."""

import json
from typing import Any

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.events import Arguments
from services.chat.formats import QWEN_XML
from services.chat.formats.argument_schemas import ArgumentSchemas
from services.chat.formats.base import OutputFormat
from services.chat.parsing.output_parser import OutputParser
from services.chat.request.tool_grammar import tool_grammar
from services.chat.request.tool_selection import select_tools
from services.errors import InvalidRequest
from tests.test_services.test_format_properties import BYTES
from tests.test_services.test_output_parser import Meaning, meaning

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "flag": {"type": "boolean"},
        "list": {"type": "array"},
        "maybe": {"type": ["string", "null"]},
        "any": {},
    },
}
FORMAT = OutputFormat(tools=QWEN_XML, names=frozenset({"f"}), parameters={"f": SCHEMA})


def call(*arguments: str) -> str:
    return f"<tool_call>\n<function=f>\n{''.join(arguments)}</function>\n</tool_call>"


def argument(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def read(text: str) -> Meaning:
    whole = meaning(FORMAT, text)
    assert meaning(FORMAT, *text) == whole
    return whole


class TestValues:
    @pytest.mark.parametrize(
        ("key", "text", "value"),
        [
            ("text", "5", "5"),
            ("text", "null", "null"),
            ("text", '"quoted"', '"quoted"'),
            ("text", "", ""),
            ("text", "\na\n\n", "\na\n\n"),
            ("text", "  a ", "  a "),
            ("text", "a\r\n", "a\r\n"),
            ("text", "</parameter> <b>\n</parameter>\n</b>", "</parameter> <b>\n</parameter>\n</b>"),
            ("number", "5", 5),
            ("number", " 5 ", 5),
            ("number", "five", "five"),
            ("flag", "true", True),
            ("flag", "True", True),
            ("flag", "yes", "yes"),
            ("list", '[1, "a"]', [1, "a"]),
            ("list", '["a\nb"]', ["a\nb"]),
            ("list", "['a', None]", ["a", None]),
            ("list", "[NaN]", "[NaN]"),
            ("list", "[" * 5000, "[" * 5000),
            ("maybe", "null", None),
            ("maybe", "None", None),
            ("maybe", "5", "5"),
            ("maybe", '"a"', '"a"'),
            ("any", "5", 5),
            ("any", '"a"', "a"),
            ("any", "None", "None"),
            ("unknown", "{}", {}),
        ],
    )
    def test_are_of_their_schema(self, key: str, text: str, value: object) -> None:
        ((_, arguments),) = read(call(argument(key, text))).calls
        assert json.loads(arguments) == {key: value}

    def test_json_stays_as_it_was_written(self) -> None:
        assert read(call(argument("number", "5"), argument("list", "[ 1.0,2 ]"))).calls == (
            ("f", '{"number": 5, "list": [ 1.0,2 ]}'),
        )

    def test_line_ends_around_them_may_be_missing(self) -> None:
        text = (
            "<tool_call><function=f><parameter=text>a</parameter><parameter=number>5</parameter></function></tool_call>"
        )
        assert read(text).calls == (("f", '{"text": "a", "number": 5}'),)

    def test_tags_in_objects_do_not_end_them(self) -> None:
        tags = "</parameter></function></tool_call>"
        text = call(argument("list", json.dumps([tags])), argument("text", "a"))
        assert read(text).calls == (("f", json.dumps({"list": [tags], "text": "a"})),)

    def test_objects_without_an_end_end_with_the_first_tag(self) -> None:
        text = call(argument("list", '["a'), argument("text", "b")) + call(argument("number", "5"))
        first, second = read(text).calls
        assert json.loads(first[1]) == {"list": '["a', "text": "b"}
        assert second == ("f", '{"number": 5}')

    def test_texts_are_passed_on_while_they_come(self) -> None:
        parser = OutputParser(FORMAT)
        parser.feed("<tool_call>\n<function=f>\n<parameter=text>\nOnce")
        for piece, expected in ((" upon", [" upon"]), (' a "', [' a \\"']), ("\n", []), ("time", ["\\ntime"])):
            events = [each.event for each in parser.feed(piece)]
            assert [each.text for each in events if isinstance(each, Arguments)] == expected

    def test_of_an_answer_that_was_cut_stay_as_they_came(self) -> None:
        assert read("<tool_call>\n<function=f>\n<parameter=text>\nOnce\n").calls == (("f", '{"text": "Once\\n'),)
        assert read("<tool_call>\n<function=f>\n<parameter=list>\n[1, 2").calls == (("f", '{"list": [1, 2'),)
        assert read("<tool_call>\n<function=f>\n").calls == (("f", ""),)


class TestCalls:
    @pytest.mark.parametrize(
        "text",
        [
            call(argument("text", "a")),
            call(argument("text", "a")) + "\n",
            "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n</tool_call>",
            "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n</function>",
            "\n<tool_call> <function=f> <parameter=text>\na\n</parameter> </function> </tool_call>",
        ],
    )
    def test_in_other_forms(self, text: str) -> None:
        assert read(text) == Meaning(calls=(("f", '{"text": "a"}'),))

    @pytest.mark.parametrize(
        "content",
        [
            "<tool_call>",
            "<tool_call>\n<function=",
            "<tool_call>\n<function=g>\n</function>\n</tool_call>",
            "<tool_call>\n<functions=f>\n</function>\n</tool_call>",
            "<tool_call><tool_call>no",
            "<tool_call>\n{}",
        ],
    )
    def test_that_are_none_are_content(self, content: str) -> None:
        assert read(content) == Meaning(content)

    def test_end_where_no_argument_comes(self) -> None:
        assert read("<tool_call>\n<function=f>\nHello") == Meaning("Hello", (("f", "{}"),))

    def test_several_with_text_around(self) -> None:
        text = f"Well.\n\n{call()}\n{call(argument('text', 'a'))}\n\nDone."
        assert read(text) == Meaning("Well.Done.", (("f", "{}"), ("f", '{"text": "a"}')))


def accepts(schema: dict[str, Any], *arguments: str, strict: bool = True) -> bool:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
    body = {"messages": [{"content": "hi"}], "tools": [tool], "tool_choice": "required"}
    selection = select_tools(ChatCompletionRequest.model_validate(body))
    assert selection
    spec = tool_grammar(selection, QWEN_XML)
    assert spec
    matcher = BYTES.matcher(spec)
    written = list(call(*arguments).encode())
    return (
        matcher.validate_tokens(written) == len(written) and matcher.consume_tokens(written) and matcher.is_accepting()
    )


class TestForced:
    @pytest.mark.parametrize(
        ("schema", "good", "bad"),
        [
            ({"type": "string"}, ["", "5", "a\nb", "</par"], []),
            ({"type": "integer", "minimum": 3}, ["3", "12"], ["2", "a", '"3"', ""]),
            ({"type": "boolean"}, ["true", "false"], ["True", "yes"]),
            ({"enum": ["a", "ab", 5, None]}, ["a", "ab", "5", "null"], ["b", "abc", '"a"']),
            ({"const": "a/b"}, ["a/b"], ["a"]),
            ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a\nb"], ["a", "abcd"]),
            ({"type": "string", "minLength": "2", "maxLength": -1}, ["", "a"], []),
            ({"type": "string", "pattern": "^[a-z]+/\\d$"}, ["a/5"], ["a", "A/5", "a/5b"]),
            ({"type": "string", "pattern": "^(a|b)$"}, ["a", "b"], ["c", "ab"]),
            ({"type": "string", "pattern": "b", "maxLength": 3}, ["b", "abc"], ["a", "abcd"]),
            ({"type": "string", "format": "date"}, ["2026-01-31"], ["2026-13-01", "today"]),
            ({"type": ["string", "null"]}, ["a", "null"], []),
            ({"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer"}]}, ["a", "5"], ["b"]),
            ({"anyOf": [{"$ref": "#/$defs/pair"}, {"type": "null"}]}, ['{"a": [1]}', "null"], ["a", "{}"]),
            ({"allOf": [{"$ref": "#/$defs/unit"}], "description": "of it"}, ["celsius"], ["K"]),
            ({"$ref": "#/$defs/pair"}, ['{"a": []}', '{"a": [1, 2]}'], ['{"a": ["b"]}', "a"]),
            ({"type": "object", "properties": {"b": {"type": "string"}}}, ["{}", '{"b": "</parameter>"}'], ["b"]),
        ],
    )
    def test_values_are_of_their_schema(self, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
        items = {"type": "array", "items": {"$ref": "#/$defs/number"}}
        pair = {"type": "object", "properties": {"a": items}, "required": ["a"], "additionalProperties": False}
        defs = {"number": {"type": "integer"}, "pair": pair, "unit": {"type": "string", "enum": ["celsius"]}}
        whole = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": defs}
        types = ArgumentSchemas(whole).types(schema)
        for text in good:
            assert accepts(whole, argument("x", text)), text
            ((_, arguments),) = meaning(
                OutputFormat(tools=QWEN_XML, names=frozenset({"f"}), parameters={"f": whole}), call(argument("x", text))
            ).calls
            assert json.loads(arguments)["x"] == (text if types == {"string"} else json_or_text(text))
        for text in bad:
            assert not accepts(whole, argument("x", text)), text

    def test_arguments_are_those_of_the_schema(self) -> None:
        schema = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]}
        assert accepts(schema, argument("b", "5"))
        assert accepts(schema, argument("a", "x"), argument("b", "5"))
        assert not accepts(schema, argument("a", "x"))
        assert not accepts(schema, argument("b", "5"), argument("c", "5"))
        assert accepts({**schema, "additionalProperties": True}, argument("b", "5"), argument("c", "5"))
        assert not accepts({**schema, "additionalProperties": True}, argument("b", "5"), argument("a", "5"))
        assert not accepts({**schema, "additionalProperties": {"type": "null"}}, argument("b", "5"), argument("c", "5"))
        assert not accepts({"properties": {"a": False}}, argument("a", "x"))
        assert accepts({"required": ["c"]}, argument("c", "x"))
        assert not accepts({"required": ["c"]})

    def test_arguments_are_found_where_schemas_are_combined(self) -> None:
        schema = {
            "allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}],
            "anyOf": [{"$ref": "#/$defs/b"}, {"properties": {"c": {"type": "string"}}}],
            "$defs": {"b": {"properties": {"b": {"type": "integer"}}, "anyOf": [{"$ref": "#/$defs/b"}]}},
        }
        assert accepts(schema, argument("a", "x"), argument("b", "5"), strict=False)
        assert accepts(schema, argument("a", "x"), argument("c", "5"), strict=False)
        assert not accepts(schema, argument("c", "5"), strict=False)

    @pytest.mark.parametrize(
        ("schema", "keyword"),
        [
            ({"anyOf": [{"properties": {}}]}, "anyOf"),
            ({"minProperties": 1}, "minProperties"),
            ({"properties": {"a": {"type": "string", "pattern": "^a|b$"}}}, "pattern"),
            ({"properties": {"a": {"type": "string", "pattern": "(a)\\1"}}}, "pattern"),
            ({"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "pattern"),
            ({"properties": {"a": {"type": "string", "pattern": "(" * 50_000 + ")" * 50_000}}}, "pattern"),
            ({"properties": {"a": {"type": "string", "format": "hostname"}}}, "format"),
            ({"properties": {"a": {"type": "string", "not": {"const": "a"}}}}, "not"),
        ],
    )
    def test_what_cannot_be_enforced_is_refused_for_strict_tools_only(
        self, schema: dict[str, Any], keyword: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=f"'{keyword}'") as refused:
            accepts(schema)
        assert refused.value.param == "tools.0.function.parameters"
        assert accepts(schema, strict=False)

    def test_schemas_without_an_end_are_read_all_the_same(self) -> None:
        endless = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "allOf": [{"$ref": "#/$defs/a"}] * 2}
        schema = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": endless}, **endless}
        assert read_types(schema)


def json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_types(schema: dict[str, Any]) -> frozenset[str]:
    return ArgumentSchemas(schema).types(schema["properties"]["a"])


class TestMissingMarkers:
    """Qwen3-Coder leaves out the opening `<tool_call>` now and then."""

    CALL = call(argument("number", "5")).removeprefix("<tool_call>\n")

    @pytest.mark.parametrize("before", ["", "I look it up.", "<tool_call>", "Not <function=unknown> but this:"])
    def test_call_is_read_without_one(self, before: str) -> None:
        expected = read(before.removesuffix("<tool_call>") + call(argument("number", "5")))
        assert json.loads(expected.calls[0][1]) == {"number": 5}
        assert read(f"{before}\n{self.CALL}\n{self.CALL}").calls == expected.calls * 2
        assert read(f"{before}\n{self.CALL}").text == expected.text

    @pytest.mark.parametrize("text", ["a\n\n<function=other>\nb", "a <function=", "\n<function=g>", "<function= f>"])
    def test_what_is_no_call_is_content_to_the_letter(self, text: str) -> None:
        assert read(text) == Meaning(text)
