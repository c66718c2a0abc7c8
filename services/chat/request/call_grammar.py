"""What an answer must look like that calls tools, or may: a grammar in the dialect of `GrammarSpec`."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from schemas.chat_schema import Function
from services.chat.dialects import ARGUMENTS, NAME_HERE, Calls
from services.chat.request.tools import Offer
from services.engine.base import GrammarSpec
from services.errors import InvalidRequest

MAX_CALLS = 16  # in one answer: a small model would else call for ever
MARKER = re.compile(r"<\S+>|\[[A-Z_]+\]")
COMBINING = {"allOf", "anyOf", "oneOf", "$ref", "if", "not", "patternProperties", "unevaluatedProperties"}


def call_grammar(offer: Offer, calls: Calls, answer: GrammarSpec | None = None) -> GrammarSpec | None:
    """None: the model is free to call as it likes. `answer`: what it must look like where nothing is called."""
    if offer.must:
        return _spec(offer, [f"start: {_block(calls, offer)}", *_rules(offer, calls)])
    if answer is None and offer.parallel and not any(each.strict for each in offer.callable):
        return None
    if answer is not None:
        return _answer_or_calls(offer, calls, answer)
    return _spec(offer, [f"start: {_free(calls, offer)}", *_rules(offer, calls)])


def _answer_or_calls(offer: Offer, calls: Calls, answer: GrammarSpec) -> GrammarSpec:
    if answer.kind != "json_schema":
        raise InvalidRequest(f"'{answer.param}' of this kind goes without 'tools'", param=answer.param)
    # a call without a marker could not be told from the answer by its first letters
    block = _block(replace(calls, before=(calls.marker,)) if calls.marker and not calls.before else calls, offer)
    spec = _spec(offer, [f"start: answer | {block}", f"answer: %json {answer.source}", *_rules(offer, calls)])
    return replace(spec, param=answer.param)


def _free(calls: Calls, offer: Offer) -> str:
    """Any text, or text up to a call, and calls from there on."""
    if calls.bare:
        text = r"/(?s:\s*[^\s\[{].*)?/"
        begin = f"{marker(calls.marker)}? " if calls.marker else ""
        return f"{text} | {begin}{_block(calls, offer)}"
    begin, *before = calls.before
    said = f"/(?s:.*)/ & ~/(?s:.*){_pattern(begin)}(?s:.*)/"
    return f"TEXT | ...{marker(begin)} {_block(replace(calls, before=tuple(before)), offer)}\nTEXT: {said}"


def _pattern(text: str) -> str:
    return re.sub(r"([^\w<>])", r"\\\1", text)


def _block(calls: Calls, offer: Offer) -> str:
    """One call, or several."""
    more = f"({_lark(calls.between)} call){{0,{MAX_CALLS - 1}}}" if offer.parallel else ""
    return " ".join(filter(None, [_lark(calls.before), "call", more, _lark(calls.after)]))


def _rules(offer: Offer, calls: Calls) -> list[str]:
    ways = " | ".join(f"call-{place}" for place in range(len(offer.callable)))
    rules = [f"call: {ways}"]
    for place, function in enumerate(offer.callable):
        parts = [f"arguments-{place}" if part == ARGUMENTS else _lark([_named(part, function)]) for part in calls.call]
        rules += [f"call-{place}: {' '.join(parts)}", f"arguments-{place}: %json {_schema(function)}"]
    return rules


def _named(part: str, function: Function) -> str:
    return part.replace(NAME_HERE, function.name)


def _lark(parts: Iterable[str]) -> str:
    return " ".join(marker(part) if MARKER.fullmatch(part) else json.dumps(part) for part in parts)


def marker(text: str) -> str:
    return f"<{json.dumps(text)}>"


def _schema(function: Function) -> str:
    """Arguments are an object. A schema that is not strict is enforced as far as it can be."""
    schema: dict[str, Any] = {"properties": {}, **function.parameters, "type": "object"}
    if not COMBINING & schema.keys():
        schema.setdefault("additionalProperties", False)  # what is not asked for, a small model would make up
    return json.dumps({**schema, "x-guidance": {"lenient": not function.strict}})


def _spec(offer: Offer, lines: list[str]) -> GrammarSpec:
    strict = [param for param, each in zip(offer.params, offer.callable, strict=True) if each.strict]
    named = strict if strict else offer.params  # those of which something can be wrong
    return GrammarSpec("lark", "\n".join(lines), param=named[0] if len(named) == 1 else "tools")
