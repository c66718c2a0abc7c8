"""The grammar of Gemma's calls: arguments in the order of their schema, strings between marks that are tokens."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from services.chat.formats.argument_schemas import ANY, ArgumentSchemas
from services.chat.formats.base import CallRule
from services.chat.formats.lark_text import marker
from services.chat.formats.member_rules import Member, member_rules, other_key, other_key_rule
from services.chat.formats.text_expressions import expressions
from services.errors import InvalidRequest

PLAIN_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
WORDS = {"boolean": '("true" | "false")', "null": '"null"'}
NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
UNENFORCED = {"prefixItems", "contains", "uniqueItems", "not", "if", "unevaluatedItems"}
MAX_BRANCHES = 64
MAX_RULES = 2000  # a schema of more is enforced in part, or refused if it is strict


def key_of(key: str, quote: str) -> str:
    return key if PLAIN_KEY.fullmatch(key) else f"{quote}{key}{quote}"


def written(value: object, quote: str) -> str:
    match value:
        case str():
            return f"{quote}{value}{quote}"
        case list():
            return f"[{','.join(written(each, quote) for each in value)}]"
        case dict():
            return f"{{{','.join(f'{key_of(key, quote)}:{written(each, quote)}' for key, each in value.items())}}}"
        case _:
            return json.dumps(value)


def call_rules(rule: CallRule, quote: str) -> list[str]:
    """`rule.name`: the whole call, but for the brace that ends it."""
    return list(_Call(rule, quote).rules())


class _Call:
    def __init__(self, rule: CallRule, quote: str) -> None:
        self._rule = rule
        self._quote = quote
        self._schemas = ArgumentSchemas(rule.function.parameters)
        self._is_strict = bool(rule.function.strict)
        self._rules: list[str] = []
        self._references: dict[str, str] = {}
        self._num_rules = 0

    def rules(self) -> Iterator[str]:
        name = self._members(self._schemas)
        yield f"{self._rule.name}: {json.dumps(f'call:{self._rule.function.name}{{')} {name}"
        yield from self._rules

    def _new(self) -> str:
        self._num_rules += 1
        return f"{self._rule.name}-{self._num_rules}"

    def _named(self, grammar: str) -> str:
        name = self._new()
        self._rules.append(f"{name}: {grammar}")
        return name

    # --- objects ---

    def _members(self, schemas: ArgumentSchemas) -> str:
        """The name of their rule."""
        if self._is_strict and schemas.unenforced:
            self._refuse(min(schemas.unenforced))
        name = self._new()
        keys = dict.fromkeys((*schemas.properties, *schemas.required))
        members = [
            Member(
                f"{marker(key_of(each, self._quote) + ':')} {self._value(schemas.of(each))}", each in schemas.required
            )
            for each in keys
        ]
        more = None if schemas.more is None else f'{other_key(name)} ":" {self._value(schemas.more)}'
        self._rules += [*member_rules(name, members, '","', more), other_key_rule(name, keys)]
        return name

    def _object(self, known: Mapping[str, Any]) -> str:
        """One of which nothing is said may have anything."""
        schemas = self._schemas.within(known)
        if not schemas.properties and not schemas.required and "additionalProperties" not in known:
            schemas.more = {}
        return f'"{{" {self._members(schemas)} "}}"'

    # --- values ---

    def _value(self, schema: object) -> str:
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if isinstance(reference, str):
            return self._referred(reference, schema)
        return self._resolved(self._schemas.resolved(schema))

    def _referred(self, reference: str, schema: object) -> str:
        """A rule for each reference, as it may be inside of what it refers to."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._references:
            name = self._references[key] = self._new()
            self._rules.append(f"{name}: {self._resolved(self._schemas.resolved(schema))}")
        return self._references[key]

    def _resolved(self, known: Mapping[str, Any]) -> str:
        if self._num_rules > MAX_RULES:
            if self._is_strict:
                self._refuse("properties")
            return self._any()
        if self._is_strict and (unenforced := UNENFORCED & known.keys()):
            self._refuse(min(unenforced))
        choices = [known["const"]] if "const" in known else known.get("enum")
        if isinstance(choices, list):
            return f"({' | '.join(marker(written(each, self._quote)) for each in choices)})"
        branches = known.get("anyOf") or known.get("oneOf")
        if isinstance(branches, list):
            rest = {key: value for key, value in known.items() if key not in ("anyOf", "oneOf")}
            return f"({' | '.join(self._value(self._with(rest, each)) for each in branches[:MAX_BRANCHES])})"
        types = self._schemas.types(known)
        if types == ANY and not known.keys() & {"properties", "items"}:
            return self._any()
        return self._of_types(known, types)

    def _with(self, rest: Mapping[str, Any], branch: object) -> object:
        return {**rest, **branch} if rest and isinstance(branch, Mapping) else branch

    def _of_types(self, known: Mapping[str, Any], types: frozenset[str]) -> str:
        ways = []
        for each in sorted(types - ({"integer"} if "number" in types else set())):
            match each:
                case "string":
                    ways.append(self._string(known))
                case "integer" | "number":
                    ways.append(self._number(known, each))
                case "array":
                    ways.append(self._array(known))
                case "object":
                    ways.append(self._object(known))
                case _:
                    ways.append(WORDS[each])
        return f"({' | '.join(ways)})"

    def _string(self, known: Mapping[str, Any]) -> str:
        bodies = []
        for keyword, expression in expressions({key: each for key, each in known.items() if key != "allOf"}):
            if expression is None and self._is_strict:
                self._refuse(keyword)
            if expression is not None:
                bodies.append(f"/({expression})/")
        return f"{marker(self._quote)} ...{' & '.join(bodies or ['/(?s:.*)/'])} {marker(self._quote)}"

    def _number(self, known: Mapping[str, Any], type: str) -> str:
        schema = {"type": type, **{key: each for key, each in known.items() if key in NUMERIC}}
        return f"%json {json.dumps({**schema, 'x-guidance': {'lenient': not self._is_strict}})}"

    def _array(self, known: Mapping[str, Any]) -> str:
        least, most = known.get("minItems", 0), known.get("maxItems")
        if most == 0:
            return '"[]"'
        item = self._named(self._value(known.get("items", {})))
        upper = "" if most is None else int(most) - 1
        items = f'{item} ("," {item}){{{max(0, int(least) - 1)},{upper}}}'
        return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'

    def _any(self) -> str:
        name = f"{self._rule.name}-any"
        if name not in self._references:
            self._references[name] = name
            string, number = self._string({}), self._number({}, "number")
            member = f'/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ ":" {name}'
            self._rules += [
                f"{name}: {string} | {number} | {WORDS['boolean']} | {WORDS['null']} | {name}-list | {name}-object",
                f'{name}-list: "[" ({name} ("," {name})*)? "]"',
                f'{name}-object: "{{" ({member} ("," {member})*)? "}}"',
            ]
        return name

    def _refuse(self, keyword: str) -> NoReturn:
        """Of strict tools only: the others are held to what can be enforced."""
        raise InvalidRequest(f"'%s': '{keyword}' is not supported there in this model's tool format", self._rule.param)
