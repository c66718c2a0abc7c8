"""The grammar of calls whose arguments are written one by one between tags: in the order of their schema.

A value that may be any string ends at the first tag that ends one. Other values are JSON of their schema; strings that
are not free are one of an enumeration, or match the expressions that their pattern, format and length make.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from services.chat.formats.argument_schemas import ANY, TEXT, ArgumentSchemas
from services.chat.formats.base import CallRule
from services.chat.formats.lark_text import marker, pattern
from services.chat.formats.lark_text import text_rules as rules_of_grammar
from services.chat.formats.text_expressions import FREE, expressions
from services.engine.base import MAX_SOURCE
from services.errors import InvalidRequest

MAX_BRANCHES = 64
MAX_MORE = 16  # arguments that the schema does not name


class XmlSyntax(Protocol):
    """What stands around arguments, and around values."""

    @property
    def call(self) -> tuple[str, str]: ...
    @property
    def argument(self) -> tuple[str, str]: ...
    def begin_call(self, name: str) -> str: ...
    def text_begin(self, name: str) -> str: ...
    def begin_argument(self, key: str, *, is_text: bool) -> str: ...


def call_rules(syntax: XmlSyntax, rule: CallRule) -> list[str]:
    return list(_Call(syntax, rule, ArgumentSchemas(rule.function.parameters)).rules())


def text_rules(syntax: XmlSyntax, rule: CallRule) -> list[str]:
    assert rule.text
    text = f"{rule.name}-text"
    begin = marker(syntax.text_begin(rule.function.name))
    return [f"{rule.name}: {begin} {text}", *rules_of_grammar(text, rule.text, rule.param)]


@dataclass(frozen=True, slots=True)
class _Call:
    syntax: XmlSyntax
    rule: CallRule
    schemas: ArgumentSchemas

    def rules(self) -> Iterator[str]:
        """A grammar that is too long is refused where it is compiled: its end is left out here."""
        if self._is_strict and self.schemas.unenforced:
            self._refuse(min(self.schemas.unenforced))
        arguments, rules, size = [], [], 0
        for place, key in enumerate(dict.fromkeys((*self.schemas.properties, *self.schemas.required))):
            name, schema = f"{self.rule.name}-{place}", self.schemas.of(key)
            is_required = key in self.schemas.required
            if schema is False and not is_required:
                continue
            rules.append(f"{name}: {' | '.join(self._argument(schema, key))}")
            arguments.append(name if is_required else f"{name}?")
            if (size := size + len(rules[-1])) > MAX_SOURCE:
                break
        if self.schemas.more is not None:
            arguments.append(f"{self.rule.name}-more{{0,{MAX_MORE}}}")
            rules += self._more()
        begin, end = marker(self.syntax.begin_call(self.rule.function.name)), marker(self.syntax.call[1])
        yield f"{self.rule.name}: {' '.join([begin, *arguments, end])}"
        yield from rules

    @property
    def _is_strict(self) -> bool:
        return bool(self.rule.function.strict)

    def _more(self) -> Iterator[str]:
        """Arguments that the schema does not name."""
        terminal = f"{self.rule.name}-key".upper()
        named = "|".join(map(pattern, self.schemas.properties)) or "[^a]{0}"
        yield f'{terminal}: /[^<>"\\n]{{1,64}}/ & ~/{named}/'
        yield f"{self.rule.name}-more: {' | '.join(self._argument(self.schemas.more, None, terminal))}"

    def _argument(self, schema: object, key: str | None, terminal: str = "") -> Iterator[str]:
        """Ways to write it. `terminal`: that of its name, where `key` is none."""
        for each in self._ways(schema):
            begin, _, rest = self.syntax.begin_argument(key or "\0", is_text=each.is_text).partition("\0")
            name = marker(begin) if key else f"{marker(begin)} {terminal} {marker(rest)}"
            yield f"{name} {each.grammar}"

    def _ways(self, schema: object) -> list["_Value"]:
        """Where any text may stand that does not say whether it is one, nothing else has to be said."""
        values = list(self._values(self.schemas.resolved(schema)))
        says_kind = self.syntax.begin_argument("", is_text=True) != self.syntax.begin_argument("", is_text=False)
        free = [each for each in values if each.is_free]
        return [free[0]] if free and not says_kind else values

    def _values(self, known: Mapping[str, Any], *, is_branch: bool = False) -> Iterator["_Value"]:
        types = self.schemas.types(known)
        choices = [known["const"]] if "const" in known else known.get("enum")
        branches = known.get("anyOf") or known.get("oneOf")
        if isinstance(choices, list):
            yield from self._literals(choices)
        elif isinstance(branches, list) and types != ANY and not is_branch:
            rest = {key: value for key, value in known.items() if key not in ("anyOf", "oneOf")}
            for each in branches[:MAX_BRANCHES]:
                yield from self._values({**rest, **self.schemas.resolved(each)}, is_branch=True)
        else:
            if types >= TEXT:
                yield self._text(known)
            if types != TEXT:
                yield self._json(known, types)

    def _literals(self, choices: list[Any]) -> Iterator["_Value"]:
        texts = [json.dumps(each) for each in choices if isinstance(each, str)]
        others = [json.dumps(json.dumps(each)) for each in choices if not isinstance(each, str)]
        end = marker(self.syntax.argument[1])
        for is_text, each in ((True, texts), (False, others)):
            if each:
                yield _Value(is_text, f"({' | '.join(each)}) {end}")

    def _text(self, known: Mapping[str, Any]) -> "_Value":
        end = self.syntax.argument[1]
        tag = end.strip("\n")
        tail = r"\n" if end.startswith("\n") else ""
        parts = [f"/({each}){tail}/" for each in self._expressions(known)]
        rest = end.lstrip("\n").removeprefix(tag)
        text = f"...{' & '.join(parts or [f'/{FREE}/'])} {marker(tag)}"
        return _Value(True, f"{text} {json.dumps(rest)}" if rest else text, is_free=not parts)

    def _expressions(self, known: Mapping[str, Any]) -> Iterator[str]:
        for keyword, expression in expressions(known):
            if expression is not None:
                yield expression
            elif self._is_strict:
                self._refuse(keyword)

    def _json(self, known: Mapping[str, Any], types: frozenset[str]) -> "_Value":
        named = sorted(types - TEXT - ({"integer"} if "number" in types else frozenset()))
        schema = {**self.schemas.alone(known), "type": named, "x-guidance": {"lenient": not self._is_strict}}
        return _Value(False, f"%json {json.dumps(schema)} {marker(self.syntax.argument[1])}")

    def _refuse(self, keyword: str) -> NoReturn:
        """Of strict tools only: the others are held to what can be enforced."""
        raise InvalidRequest(f"'%s': '{keyword}' is not supported there in this model's tool format", self.rule.param)


@dataclass(frozen=True, slots=True)
class _Value:
    """A way to write one, with what ends it."""

    is_text: bool
    grammar: str
    is_free: bool = False
