"""What an answer is to look like -> the grammar that holds it to that."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.generation_schema import GenerationRequest
from schemas.structure_schema import ResponseFormat, StructuredOutputs
from services.engine.base import MAX_SOURCE, GrammarSpec
from services.errors import InvalidRequest

OBJECT = {"type": "object"}


def grammar(request: GenerationRequest) -> GrammarSpec | None:
    """The one that the request asks for; there is no way to hold an answer to two."""
    grammars = list(_grammars(request))
    if len(grammars) > 1:
        first, second = grammars[0].param, grammars[1].param
        raise InvalidRequest("'%s' does not go with '%s'", second, first)
    return grammars[0] if grammars else None


def _grammars(request: GenerationRequest) -> Iterator[GrammarSpec]:
    if spec := _of_format(request.response_format):
        yield spec
    if spec := _of_outputs(request.structured_outputs):
        yield spec
    if request.guided_json is not None:
        yield _schema(request.guided_json, "guided_json")
    if request.guided_regex is not None:
        yield GrammarSpec("regex", request.guided_regex, "guided_regex")
    if request.guided_choice is not None:
        yield _choice(request.guided_choice, "guided_choice")
    if request.guided_grammar is not None:
        yield GrammarSpec("lark", request.guided_grammar, "guided_grammar")


def _of_format(format: ResponseFormat | None) -> GrammarSpec | None:
    if format is None or format.type == "text":
        return None
    return _schema(format.json_schema.schema_ if format.json_schema else OBJECT, "response_format")


def _of_outputs(outputs: StructuredOutputs | None) -> GrammarSpec | None:
    match outputs:
        case StructuredOutputs(regex=str(pattern)):
            return GrammarSpec("regex", pattern, "structured_outputs")
        case StructuredOutputs(grammar=str(source)):
            return GrammarSpec("lark", source, "structured_outputs")
        case StructuredOutputs(choice=list(texts)):
            return _choice(texts, "structured_outputs")
        case StructuredOutputs(json_=schema):
            return _schema(OBJECT if schema is None else schema, "structured_outputs")
        case None:
            return None


def _schema(schema: Mapping[str, Any], param: str) -> GrammarSpec:
    _check_size(schema, param)
    return GrammarSpec("json_schema", json.dumps(schema), param)


def _choice(texts: list[str], param: str) -> GrammarSpec:
    _check_size(texts, param)
    return GrammarSpec("lark", "start: " + " | ".join(map(json.dumps, texts)), param)


def _check_size(value: object, param: str) -> None:
    """What is certainly too long is not written out first: that would take the event loop a second."""
    left, inside = MAX_SOURCE, [value]
    while inside and left >= 0:
        match inside.pop():
            case str(text):
                left -= len(text) + 2
            case list(items):
                left -= 1 + len(items)
                inside += items
            case dict(entries):
                left -= 1 + sum(map(len, entries))
                inside += entries.values()
            case _:
                left -= 1
    if left < 0:
        raise InvalidRequest(f"'%s': it is longer than {MAX_SOURCE} characters", param)
