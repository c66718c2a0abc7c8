"""A GrammarSpec as one text in llguidance's Lark dialect: markers resolved for a tokenizer, JSON kept compact."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from math import lcm
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from services.engine.base import GrammarSpec

# The library would else force the tokenizer's own tokens for text that is certain, and where that text reads like a
# special token force this one, which it then refuses. A model finds its usual tokens by itself.
HEAD = '%llguidance {"no_forcing": true}\n'

# At most one space after a separator: a small model, left to itself, goes on with white space for ever.
COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
OPTIONS = "x-guidance"  # a schema's own compiler options, of which "lenient" is read

DATA = {"const", "enum", "default", "examples"}  # keywords that hold no schemas
EXACT = 2**53 - 1
NO_LEAP_SECOND = r"\d:\d\d:[0-5]"  # which the format has, and next to no reader of it

MAX_PROPERTIES = 5000
MAX_MULTIPLE = 100_000
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")  # in regular expressions
ANY_TEXT = "/(?s:.*)/"
ANSWER = "the-answer"  # what "start" is called where something comes before it

# What a text or an expression leaves open is taken to the end of all, which the library refuses: to look for an end
# from each quote anew would take time by the square of a source.
PARTS = re.compile(
    r"""
      "(?:\\.|[^"\\])*(?:"|(?s:.)*) | //[^\n]* | \#[^\n]* | /(?:\\.|[^/\\])+(?:/|(?s:.)*)
    | %lark\ \{\n (?: (?s:.*?)\n\}\n | (?s:.*) )
    | (?P<json> %json\s*(?=\{) )
    | (?P<until> \.\.\.\s*
        (?: (?P<body> /(?:\\.|[^/\\])+/ (?:\s*&\s*/(?:\\.|[^/\\])+/)* )\s*)? )?
      <(?: (?P<quoted> "(?:\\.|[^"\\])+" ) | (?P<bare> [^<>\s\["][^<>\s]* ) )>
    | (?P<start> (?<![\w@%-]) start (?![\w-]) )
    """,
    re.VERBOSE,
)
LARK = re.compile(r"^[^\S\n]*(?:%llguidance\b|start\s*:)", re.MULTILINE)  # as the library tells it from GBNF
GBNF_COMMENT = re.compile(r"""("(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?)|\#[^\n\r]*""")


class InvalidGrammar(ValueError):
    """Says why, in words for whoever sent it."""


def lark(spec: GrammarSpec, markers: Mapping[str, int]) -> str:
    """`markers`: the tokens that are more than their text."""
    return HEAD + lark_without_head(spec, markers)


def lark_without_head(spec: GrammarSpec, markers: Mapping[str, int]) -> str:
    """The rules alone: a GrammarSpec again, of one text."""
    text = _source(spec)
    if not spec.before:
        return _resolve(text, markers)
    return _resolve(f"start: {spec.before} {ANSWER}\n", markers) + "\n" + _resolve(text, markers, start=ANSWER)


def _source(spec: GrammarSpec) -> str:
    match spec.kind:
        case "json_schema":
            schema, end = _json(spec.source)
            if spec.source[end:].strip():
                raise InvalidGrammar("more than one JSON value")
            return f"start: %json {json.dumps({} if schema is True else schema)}"
        case "regex":
            pattern = regex_to_lark(spec.source, "d")
            return f"start: /{pattern}/" if pattern else 'start: ""'
        case "lark":
            return _from_gbnf(spec.source) if is_gbnf(spec.source) else spec.source


def is_gbnf(text: str) -> bool:
    return "::=" in text and not LARK.search(text)


def _from_gbnf(text: str) -> str:
    try:
        # it keeps the comments by adding each to all those before
        return gbnf_to_lark(GBNF_COMMENT.sub(lambda found: found[1] or "", text))
    except Exception as error:  # the converter raises whatever it stumbles over
        raise InvalidGrammar("as GBNF it cannot be read") from error


def _resolve(text: str, markers: Mapping[str, int], start: str = "start") -> str:
    parts: list[str] = []
    rules: list[str] = []
    at = 0
    while found := PARTS.search(text, at):
        parts.append(text[at : found.start()])
        at = found.end()
        if found["json"]:
            schema, at = _json(text, at)
            parts.append(f"%json {json.dumps(_compact(schema))}")
        elif found["start"]:
            parts.append(start)
        elif (name := _marker(found)) is None:
            parts.append(found[0])
        elif found["until"]:
            rules.append(_until(f"before-{start}-{len(rules)}", found["body"], name, markers))
            parts.append(f"before-{start}-{len(rules) - 1}")
        else:
            parts.append(" ".join(_spelled(name, markers)))
    return "\n".join(["".join(parts) + text[at:], *rules])


def _marker(found: re.Match[str]) -> str | None:
    if found["quoted"]:
        return str(_json(found["quoted"])[0])
    return f"<{found['bare']}>" if found["bare"] else None


def _spelled(marker: str, markers: Mapping[str, int]) -> list[str]:
    """The marker's token, or its text with the tokens that are in it."""
    found = sorted((each for each in markers if each in marker), key=len, reverse=True)
    if not found:
        return [json.dumps(marker)]
    pieces = re.split(f"({'|'.join(map(re.escape, found))})", marker)
    return [f"<[{markers[each]}]>" if each in markers else json.dumps(each) for each in pieces if each]


def _until(rule: str, body: str | None, marker: str, markers: Mapping[str, int]) -> str:
    begin, *rest = _spelled(marker, markers)
    text = body or ANY_TEXT
    if body:
        # parsers see the text only, and may take a marker that is spelled without its token for the end
        text, terminal = rule.upper(), f"\n{rule.upper()}: {body} & ~/(?s:.*){_escaped(marker)}(?s:.*)/"
    else:
        terminal = ""
    if begin.startswith("<["):
        return f"{rule}: {text} {' '.join([begin, *rest])}{terminal}"
    if not rest:
        return f"{rule}[suffix={begin}]: {text}{terminal}"
    lead = f"{rule.upper()}-LEAD"
    return f"{rule}: {lead} {' '.join(rest)}\n{lead}: {text} {begin}{terminal}"


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\g<0>", text).replace("\n", "\\n")


def _json(text: str, at: int = 0) -> tuple[Any, int]:
    """A value, and where it ends."""
    try:
        return DECODER.raw_decode(text, at)
    except RecursionError:
        raise InvalidGrammar("its JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidGrammar("its JSON cannot be read") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(parse_constant=_no_constant)


def without_options(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as any library takes it."""
    return {name: value for name, value in schema.items() if name != OPTIONS}


def _compact(schema: dict[str, Any]) -> dict[str, Any]:
    _check_size(schema)
    options = schema.get(OPTIONS)
    lenient = isinstance(options, dict) and options.get("lenient") is True
    for part in _objects(schema, but=DATA):
        if part.get("type") == "integer":
            _bound(part)
        if part.get("format") in ("time", "date-time"):
            part.setdefault("pattern", NO_LEAP_SECOND)
    return {**schema, OPTIONS: {**COMPACT, "lenient": lenient}}


def _bound(integer: dict[str, Any]) -> None:
    """To what every reader of JSON keeps exact: a small model, left to itself, goes on with digits for ever."""
    if not {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & set(integer):
        integer |= {"minimum": -EXACT, "maximum": EXACT}


def _check_size(schema: dict[str, Any]) -> None:
    """Refuses what the library would take minutes over: it bounds itself everywhere else."""
    parts = list(_objects(schema))
    if sum(len(part["properties"]) for part in parts if isinstance(part.get("properties"), dict)) > MAX_PROPERTIES:
        raise InvalidGrammar(f"a JSON schema has at most {MAX_PROPERTIES} 'properties' in all")
    steps = {Decimal(str(part["multipleOf"])) for part in parts if type(part.get("multipleOf")) in (int, float)}
    if any(not 0 < step < MAX_MULTIPLE for step in steps) or _common_multiple(steps) > MAX_MULTIPLE:
        raise InvalidGrammar(f"'multipleOf' is supported up to {MAX_MULTIPLE} of the smallest unit")


def _objects(value: object, but: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """All that are in it, at any depth; `but` not in what has one of these names."""
    left = [value]
    while left:
        match left.pop():
            case dict() as found:
                yield found
                left.extend(part for name, part in found.items() if name not in but)
            case list() as found:
                left.extend(found)


def _common_multiple(steps: Collection[Decimal]) -> int:
    """In units of the last decimal place: the states of an automaton that counts them all at once."""
    places = max((-int(step.as_tuple().exponent) for step in steps), default=0)
    return lcm(*(int(step.scaleb(places)) for step in steps))
