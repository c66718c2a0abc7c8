"""The grammar of calls that are written as in Python: arguments by name, in the order of their schema.

Lists and objects are written as JSON, as chat templates show those of earlier calls.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from services.chat.formats.argument_schemas import ArgumentSchemas
from services.chat.formats.base import CallRule
from services.chat.formats.member_rules import Member, member_rules, other_key, other_key_rule
from services.errors import InvalidRequest

IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
PYTHON_WORDS = {"true": "True", "false": "False", "null": "None"}
JSON_WORDS = {each: each for each in PYTHON_WORDS}
WORDS = {"boolean": ("true", "false"), "null": ("null",)}
ANNOTATIONS = {"type", "title", "description", "default", "examples", "deprecated"}  # beside which a type says all


def python_of(value: object, words: Mapping[str, str]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return words.get(text, text)


def call_rules(rule: CallRule, words: Mapping[str, str]) -> list[str]:
    """`rule.name`: the whole call."""
    return list(_Call(rule, words).rules())


class _Call:
    def __init__(self, rule: CallRule, words: Mapping[str, str]) -> None:
        self._rule = rule
        self._words = words
        self._schemas = ArgumentSchemas(rule.function.parameters)
        self._is_strict = bool(rule.function.strict)

    def rules(self) -> Iterator[str]:
        name, schemas = f"{self._rule.name}-arguments", self._schemas
        if self._is_strict and schemas.unenforced:
            unenforced = min(schemas.unenforced)
            raise InvalidRequest(f"'%s': '{unenforced}' is not supported in this model's tool format", self._rule.param)
        keys = dict.fromkeys((*schemas.properties, *schemas.required))
        members = [Member(self._argument(each, schemas.of(each)), each in schemas.required) for each in keys]
        more = None if schemas.more is None else f'{other_key(name)} "=" {self._value(schemas.more)}'
        yield f'{self._rule.name}: {json.dumps(f"{self._rule.function.name}(")} {name} ")"'
        yield from member_rules(name, members, '", "', more)
        yield other_key_rule(name, keys)

    def _argument(self, key: str, schema: object) -> str:
        if IDENTIFIER.fullmatch(key):
            return f"{json.dumps(f'{key}=')} {self._value(schema)}"
        return f'"**{{" {json.dumps(f"{json.dumps(key, ensure_ascii=False)}: ")} {self._value(schema)} "}}"'

    def _value(self, schema: object, *, is_branch: bool = False) -> str:
        """JSON, but for the words that Python has in another way."""
        known = self._schemas.resolved(schema)
        asserted = known.keys() - ANNOTATIONS
        for key in ("anyOf", "oneOf"):
            if asserted == {key} and "type" not in known and isinstance(known[key], list) and not is_branch:
                return f"({' | '.join(self._value(each, is_branch=True) for each in known[key])})"
        choices = [known["const"]] if asserted == {"const"} else known["enum"] if asserted == {"enum"} else []
        if any(each is None or isinstance(each, bool) for each in choices):
            return f"({' | '.join(json.dumps(python_of(each, self._words)) for each in choices)})"
        return self._json(known) if asserted else self._typed(known)

    def _typed(self, known: Mapping[str, Any]) -> str:
        """Of a schema that names types only."""
        types = known.get("type")
        named = [types] if isinstance(types, str) else types if isinstance(types, list) else []
        words = [json.dumps(self._words[word]) for each in named for word in WORDS.get(str(each), ())]
        others = [each for each in named if each not in WORDS]
        rest = [self._json({**known, "type": others} if words else known)] if others or not words else []
        return f"({' | '.join([*words, *rest])})"

    def _json(self, known: Mapping[str, Any]) -> str:
        schema = {**self._schemas.alone(known), "x-guidance": {"lenient": not self._is_strict}}
        return f"%json {json.dumps(schema)}"
