"""What an answer must look like that calls tools, or may: a grammar in the dialect of `GrammarSpec`."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from schemas.tool_schema import Function
from services.chat.dialects import ARGUMENTS, NAME_HERE, RAW, Calls
from services.chat.request import custom_tools
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
    """One call, or several. A text that nothing ends but the answer is the last."""
    before, between, after = _lark(calls.before), _lark(calls.between), _lark(calls.after)
    several = offer.parallel and _is_followed(offer, calls)
    blocks = []
    if _is_followed(offer, calls):
        more = f"({between} call){{0,{MAX_CALLS - 1}}}" if several else ""
        blocks.append([before, "call", more, after])
    if offer.grammars:
        earlier = f"(call {between}){{0,{MAX_CALLS - 1}}}" if several else ""
        blocks.append([before, earlier, "text-call"])
    return (
        "(" * (len(blocks) > 1) + " | ".join(" ".join(filter(None, each)) for each in blocks) + ")" * (len(blocks) > 1)
    )


def _is_followed(offer: Offer, calls: Calls) -> bool:
    """Some calls have an end of their own."""
    return bool(calls.raw_end) or len(offer.grammars) < len(offer.callable)


def _rules(offer: Offer, calls: Calls) -> list[str]:
    places = [(place, each.name in offer.grammars) for place, each in enumerate(offer.callable)]
    ended = [f"call-{place}" for place, is_text in places if not is_text or calls.raw_end]
    texts = [f"text-call-{place}" for place, is_text in places if is_text]
    named = {"call": ended, "text-call": texts}
    rules = [f"{name}: {' | '.join(ways)}" for name, ways in named.items() if ways]
    for place, function in enumerate(offer.callable):
        if grammar := offer.grammars.get(function.name):
            rules += _text_rules(place, function, calls)
            rules += custom_tools.rules(f"text-{place}", grammar, offer.params[place])
            continue
        parts = [f"arguments-{place}" if part == ARGUMENTS else _lark([_named(part, function)]) for part in calls.call]
        rules.append(f"call-{place}: {' '.join(parts)}")
        rules.append(f"arguments-{place}: %json {_schema(function)}")
    return rules


def _text_rules(place: int, function: Function, calls: Calls) -> list[str]:
    # a model that has begun as it does for any call is not to be led to another tool by that
    first = calls.call[0]
    lead = first[: len(first) - len(first.lstrip())]
    whole = f"{json.dumps(lead + _named(RAW, function))} text-{place}"
    end = _lark([calls.raw_end]) if calls.raw_end not in calls.between else ""  # that of the next call is enough
    ended = [f"call-{place}: {whole} {end}"] if calls.raw_end else []
    return [f"text-call-{place}: {whole}", *ended]


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
