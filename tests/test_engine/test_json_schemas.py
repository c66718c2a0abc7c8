"""Small JSON schemas of every kind: whatever is drawn under a grammar is JSON, on one line, and holds to its schema."""

import json
from collections.abc import Iterator
from datetime import date, datetime, time
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from openai.lib._pydantic import to_strict_json_schema
from pydantic import AnyUrl, BaseModel, Field, TypeAdapter

from services.engine.base import GrammarSpec
from tests.test_engine.test_grammar import grammars, stop_opened, walk
from tests.test_engine.tiny_tokenizers import byte_fallback, byte_level

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

NAMES = ["a", "b", "the quick", '"é"\\']
VALUES = [None, True, 3, -1.5, "fox", "", {"a": [1]}, [], {"b": "世"}]
PATTERNS = ["^[a-c]{2,4}$", "^(yes|no)$", r"^\d{3}-[xé]$"]
FORMATS = ["date", "uuid", "ipv4", "ipv6"]
SMALL = st.integers(0, 3)


def _ranged(type: str, least: str, most: str, low: int, size: int) -> Schema:
    return {"type": type, least: low, most: low + size}


def _array(items: Schema, low: int, size: int) -> Schema:
    return {"items": items, **_ranged("array", "minItems", "maxItems", low, size)}


def _object(properties: dict[str, Schema], required: set[str]) -> Schema:
    needed = sorted(required & set(properties))
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _inside(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    names = st.sampled_from(NAMES)
    return (
        st.builds(_array, inner, SMALL, SMALL)
        | st.builds(_object, st.dictionaries(names, inner, max_size=3), st.sets(names))
        | st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    )


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["boolean", "null"]}, {"type": "number"}]),
    st.builds(_ranged, st.just("integer"), st.just("minimum"), st.just("maximum"), st.integers(-200, 200), SMALL),
    st.builds(_ranged, st.just("number"), st.just("minimum"), st.just("maximum"), st.integers(-9, 9), SMALL),
    st.builds(_ranged, st.just("string"), st.just("minLength"), st.just("maxLength"), SMALL, SMALL),
    st.integers(1, 7).map(lambda step: {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 90}),
    st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.sampled_from(VALUES).map(lambda value: {"const": value}),
)
PLAIN = st.recursive(LEAVES, _inside, max_leaves=5)
SCHEMAS = PLAIN | PLAIN.map(lambda each: {"$defs": {"x": each}, **_array({"$ref": "#/$defs/x"}, 0, 2)})

TOKENIZERS = {make.__name__: make() for make in (byte_level, byte_fallback)}


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    stop_opened()


async def drawn(schema: Schema, name: str = "byte_level", seed: int = 0) -> str:
    matcher = await grammars(TOKENIZERS[name]).matcher(GrammarSpec("json_schema", json.dumps(schema)))
    return walk(matcher, TOKENIZERS[name], seed)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_what_is_drawn_holds_to_its_schema(name: str, schema: Schema, seed: int) -> None:
    said = await drawn(schema, name, seed)

    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(said))
    assert "\n" not in said


class Color(StrEnum):
    red = "red"
    deep_blue = "deep blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float = Field(gt=0, lt=100)


class Person(BaseModel):
    """Whatever pydantic's models are usually made of."""

    name: str = Field(min_length=1, max_length=8, description="of the person")
    colors: list[Color] | None = Field(None, max_length=2)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: Cat | Dog
    born: date
    woken: datetime | None
    id: UUID
    mail: Annotated[str, Field(max_length=4)] | int
    point: tuple[int, int]
    pairs: dict[str, int] = Field(max_length=2)
    code: str = Field(pattern="^[A-Z]{2}$")
    friends: list["Person"] = Field(max_length=0)


class Loose(BaseModel):
    """What only compiles, because any text may be in it."""

    anything: Any
    mapping: dict[str, Any]
    mail: Annotated[str, Field(json_schema_extra={"format": "email"})]
    site: AnyUrl
    address: IPv4Address
    nested: dict[str, list[Person]]
    maybe: Optional["Loose"] = None


def schemas_of(model: type[BaseModel]) -> list[Schema]:
    """As pydantic makes it, and as the official client, pydantic-ai and instructor send it, strict or not."""
    return [
        model.model_json_schema(),
        model.model_json_schema(mode="serialization"),
        to_strict_json_schema(model),
        {"$schema": DRAFT, **model.model_json_schema()},
    ]


async def test_models_are_read_from_what_is_drawn() -> None:
    for schema in schemas_of(Person):
        Person.model_validate_json(await drawn(schema))


@pytest.mark.parametrize("kind", [date, datetime, time, UUID, IPv4Address, bool, int, float, list[int] | None])
async def test_values_are_read_from_what_is_drawn(kind: Any) -> None:
    reader = TypeAdapter(kind)
    for seed in range(20):
        reader.validate_json(await drawn(reader.json_schema(), seed=seed))


@pytest.mark.parametrize("index", range(4))
async def test_looser_models_compile(index: int) -> None:
    await grammars(TOKENIZERS["byte_level"]).matcher(GrammarSpec("json_schema", json.dumps(schemas_of(Loose)[index])))
