"""Schemas and values of a call's arguments one by one, for formats that write each by itself."""

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

ANY = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
TEXT = frozenset({"string"})
MAX_REFERENCES = 16  # in a row
MAX_VISITED = 200  # schemas that are combined in one
# assertions about all arguments together, to which a format that writes them one by one does not hold them
UNENFORCED = {
    *("anyOf", "oneOf", "not", "if", "patternProperties", "unevaluatedProperties", "propertyNames"),
    *("minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
}

Schema = Mapping[str, Any]


class ArgumentSchemas:
    """Of one tool. `more`: the schema of arguments without one of their own; None: there are none."""

    def __init__(self, root: Schema, schema: Schema | None = None) -> None:
        """`schema`: that of the arguments, where it is not the root that has the targets of references."""
        self._root = root
        self._schema = root if schema is None else schema
        self.properties: dict[str, object] = {}
        self.required: list[str] = []
        self.more: object = None
        self.unenforced: set[str] = set()
        self._read()

    def of(self, name: str) -> object:
        return self.properties.get(name, {} if self.more is None else self.more)

    def types(self, schema: object) -> frozenset[str]:
        """Names of JSON's types that a value may have. Each integer is a number."""
        return self._types(schema, iter(range(MAX_VISITED)))

    def resolved(self, schema: object) -> dict[str, Any]:
        """Without a reference at its top, or another schema that is all of it."""
        found = dict(schema) if isinstance(schema, Mapping) else {}
        for _ in range(MAX_REFERENCES):
            if "$ref" in found:
                found = {**self._target(found.pop("$ref")), **found}
            elif len(_list(found, "allOf")) == 1 and isinstance(found["allOf"][0], Mapping):
                found = {**found.pop("allOf")[0], **found}
            else:
                break
        return found

    def alone(self, schema: Schema) -> Schema:
        """One that has the targets of its references with it: no others, where all of them are definitions."""
        references = list(_references(schema))
        if not references:
            return schema
        definitions = self._definitions(references)
        if definitions is None or "$defs" in schema:
            return {**_moved(schema), "$defs": {"arguments": _moved(self._root)}}
        return {**schema, "$defs": definitions}

    def _definitions(self, references: list[str]) -> dict[str, Any] | None:
        """Those that they name, and that these do. None: they name something else."""
        known, found = _map(self._root, "$defs"), dict[str, Any]()
        left = list(references)
        while left:
            name = left.pop().removeprefix("#/$defs/")
            if name not in known:
                return None
            if name not in found:
                found[name] = known[name]
                left += _references(known[name])
        return found

    def within(self, schema: Schema) -> "ArgumentSchemas":
        """Of an object among the arguments."""
        return ArgumentSchemas(self._root, schema)

    def _read(self) -> None:
        left = [(self._schema, True)]  # and whether it holds for certain
        for _ in range(MAX_VISITED):
            if not left:
                return
            schema, is_certain = left.pop(0)
            known = self.resolved(schema)
            self.unenforced |= UNENFORCED & known.keys()
            for name, each in _map(known, "properties").items():
                self.properties.setdefault(name, each)
            if is_certain:
                self.required += [each for each in _list(known, "required") if each not in self.required]
            if known.get("additionalProperties", False) is not False:
                self.more = known["additionalProperties"]
            left += [(each, is_certain) for each in _list(known, "allOf")]
            left += [(each, False) for key in ("anyOf", "oneOf") for each in _list(known, key)]

    def _types(self, schema: object, visits: Iterator[int]) -> frozenset[str]:
        if next(visits, None) is None:
            return ANY
        known, found = self.resolved(schema), ANY
        if "type" in known:
            found &= _named(known["type"])
        if "const" in known:
            found &= {type_of(known["const"])}
        if "enum" in known:
            found &= {type_of(each) for each in _list(known, "enum")}
        for key in ("anyOf", "oneOf"):
            if key in known:
                found &= frozenset().union(*(self._types(each, visits) for each in _list(known, key)))
        for each in _list(known, "allOf"):
            found &= self._types(each, visits)
        return found

    def _target(self, reference: object) -> Schema:
        found: object = self._root
        for part in str(reference).removeprefix("#").split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def _map(schema: Schema, key: str) -> Mapping[str, Any]:
    found = schema.get(key)
    return found if isinstance(found, Mapping) else {}


def _list(schema: Schema, key: str) -> list[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else []


def _named(types: object) -> frozenset[str]:
    named = {str(each) for each in types} if isinstance(types, list) else {str(types)}
    return frozenset(named | {"integer"} if "number" in named else named)


def _references(value: object) -> Iterator[str]:
    left = [value]
    while left:
        match left.pop():
            case Mapping() as each:
                if isinstance(each.get("$ref"), str):
                    yield each["$ref"]
                left += each.values()
            case list() as each:
                left += each


def _moved(value: Any) -> Any:
    """With references into the root's new place."""
    if isinstance(value, Mapping):
        return {
            key: f"#/$defs/arguments{each[1:]}"
            if key == "$ref" and isinstance(each, str) and each.startswith("#")
            else _moved(each)
            for key, each in value.items()
        }
    return [_moved(each) for each in value] if isinstance(value, list) else value


def type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"


def json_of(text: str, types: frozenset[str]) -> str:
    """The JSON of a value that was written without quotes, if it is a string, and as JSON if it is none.

    What is neither of the types is the text that it is.
    """
    if types == TEXT:
        return _dumped(text)
    for read in (_read_json, _read_lenient_json, _read_python if types != ANY else _read_nothing):
        found = read(text)
        if found is not None and (type_of(found[0]) in _taken(types) or "string" not in types):
            return found[1]
    return _dumped(text)


def _taken(types: frozenset[str]) -> frozenset[str]:
    """Types of JSON values: with quotes around it, a text that may be one is a text with quotes."""
    return types if types == ANY else types - TEXT


def _read_nothing(text: str) -> None:
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _read_json(text: str) -> tuple[object, str] | None:
    try:
        return json.loads(text, parse_constant=_no_constant), text.strip()
    except (ValueError, RecursionError):
        return None


def _read_lenient_json(text: str) -> tuple[object, str] | None:
    """With line ends in its strings."""
    try:
        found = json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return found, _dumped(found)


def _read_python(text: str) -> tuple[object, str] | None:
    """`True`, `None` or `{'a': 1}`: some templates show earlier arguments like that."""
    try:
        found = ast.literal_eval(text.strip())
        return found, json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
