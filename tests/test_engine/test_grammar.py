"""Compiled grammars with real tokenizers: what they allow, token by token, is what they say."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from services.engine.base import MAX_SOURCE, GrammarSpec
from services.engine.grammar.compiler import KEPT_SOURCE, GrammarCompiler, Matcher
from services.engine.grammar.lark import InvalidGrammar
from services.engine.token_texts import TokenTexts
from services.errors import InvalidRequest
from tests.test_engine.tiny_tokenizers import EOS, TOOL, byte_fallback, byte_level

TOKENIZERS = [byte_level, byte_fallback]
ROWS = 400  # more than either has tokens


opened: dict[tuple[str, int], GrammarCompiler] = {}  # beginning a process takes longer than most tests


def grammars(tokenizer: Any, rows: int = ROWS) -> GrammarCompiler:
    key = (tokenizer.backend_tokenizer.to_str(), rows)
    if key not in opened:
        opened[key] = new_grammars(tokenizer, rows)
    return opened[key]


def new_grammars(tokenizer: Any, rows: int = ROWS) -> GrammarCompiler:
    return GrammarCompiler(TokenTexts(tokenizer), rows, frozenset([tokenizer.convert_tokens_to_ids(EOS)]))


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    stop_opened()


def stop_opened() -> None:
    while opened:
        asyncio.run(opened.popitem()[1].stop())


@pytest.fixture
async def compiling() -> AsyncIterator[GrammarCompiler]:
    """One that nothing has been asked for."""
    new = new_grammars(byte_level())
    yield new
    await new.stop()


def allowed(matcher: Matcher) -> list[int]:
    tokens: list[int] = np.unpackbits(matcher.allowed(), bitorder="little").nonzero()[0].tolist()
    return tokens


def walk(matcher: Matcher, tokenizer: Any, seed: int = 0, limit: int = 3000) -> str:
    """An answer drawn by chance among all that is allowed; ends are taken where they are offered."""
    random, said = Random(seed), []
    while not matcher.is_over:
        tokens = allowed(matcher)
        assert tokens
        token = next((each for each in tokens if each in matcher.ends), None)
        matcher.advance(token := random.choice(tokens) if token is None else token)
        said.append(token)
        assert len(said) < limit
    return str(tokenizer.decode([each for each in said if each not in matcher.ends], skip_special_tokens=False))


@pytest.mark.parametrize("make", TOKENIZERS)
async def test_text_is_reached_whatever_the_tokens_are(make: Any) -> None:
    tokenizer = make()
    spec = GrammarSpec("lark", 'start: "x é世 👋" <|tool|> "<|tool|>" <other> <"[CALL]">')

    for seed in range(5):
        said = walk(await grammars(tokenizer).matcher(spec), tokenizer, seed)
        assert said == f"x é世 👋{TOOL}{TOOL}<other>[CALL]"


@pytest.mark.parametrize("make", TOKENIZERS)
async def test_a_marker_is_its_one_token_and_its_text_is_none(make: Any) -> None:
    tokenizer = make()
    tool = tokenizer.convert_tokens_to_ids(TOOL)

    assert allowed(await grammars(tokenizer).matcher(GrammarSpec("lark", "start: <|tool|>"))) == [tool]
    assert tool not in allowed(await grammars(tokenizer).matcher(GrammarSpec("lark", 'start: "<|tool|>"')))
    assert tool not in allowed(await grammars(tokenizer).matcher(GrammarSpec("regex", "(?s:.*)")))


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("marker", [TOOL, "</then>"])
async def test_an_answer_begins_after_its_marker(make: Any, marker: str) -> None:
    tokenizer = make()
    matcher = await grammars(tokenizer).matcher(GrammarSpec("regex", "yes|no", before=f"...<{json.dumps(marker)}>"))
    thought = tokenizer.encode("the fox <said>", add_special_tokens=False)
    ids = (
        [tokenizer.convert_tokens_to_ids(TOOL)]
        if marker == TOOL
        else tokenizer.encode(marker, add_special_tokens=False)
    )

    for token in [*thought, *ids]:
        assert not matcher.is_over
        assert not {*matcher.ends} & {*allowed(matcher)}
        matcher.advance(token)

    assert walk(matcher, tokenizer) in ("yes", "no")


async def test_rows_without_a_token_are_never_allowed() -> None:
    tokenizer = byte_level()

    assert max(allowed(await grammars(tokenizer).matcher(GrammarSpec("regex", "(?s:.*)")))) < len(tokenizer) < ROWS


async def test_tokens_beyond_the_models_rows_are_never_allowed() -> None:
    matcher = await grammars(byte_level(), rows=300).matcher(GrammarSpec("regex", "(?s:.*)"))

    assert 250 < max(allowed(matcher)) < 300


async def test_each_answer_goes_its_own_way_through_a_grammar_compiled_once(compiling: GrammarCompiler) -> None:
    tokenizer = byte_level()
    first, second = await asyncio.gather(*(compiling.matcher(GrammarSpec("regex", "aa|bb", param)) for param in "xy"))

    first.advance(tokenizer.encode("a")[0])

    assert [tokenizer.decode(allowed(each)) for each in (first, second)] == ["a", "ab"]
    assert compiling.num_compiled == 1


async def test_each_owner_compiles_its_own(compiling: GrammarCompiler) -> None:
    """Else a guess would be known to be right by how soon it is there."""
    for owner in ("alpha", "beta", "alpha"):
        await compiling.matcher(GrammarSpec("regex", "4711"), owner)
    assert compiling.num_compiled == 2


async def test_each_owner_is_refused_by_itself(compiling: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """And many refusals of one do not make another's forgotten."""
    checked: list[str] = []

    def check(spec: GrammarSpec) -> str:
        checked.append(spec.source)
        raise InvalidGrammar("it is none")

    async def ask(owner: str, source: str) -> None:
        with pytest.raises(InvalidRequest):
            await compiling.matcher(GrammarSpec("regex", source), owner)

    monkeypatch.setattr(compiling.checker, "check", check)
    monkeypatch.setattr("services.engine.grammar.compiler.KEPT_REFUSALS", 4)
    for owner, source in (("beta", "b"), ("alpha", "b"), *(("alpha", f"{i}") for i in range(9)), ("beta", "b")):
        await ask(owner, source)

    assert checked == ["b", "b", *(f"{i}" for i in range(9))]


async def test_the_latest_are_kept_and_not_too_much_of_them(compiling: GrammarCompiler) -> None:
    large = [GrammarSpec("lark", f"start: /{letter}/ // {letter * (KEPT_SOURCE // 5)}") for letter in "abcde"]

    for spec in [*large, large[4], large[0]]:
        await compiling.matcher(spec)

    assert compiling.num_compiled == len(large) + 1


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"properties": {"a": {"contains": {}}}}, "'contains'"),
        ({"not": {}}, "'not'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"dependentRequired": {}}, "'dependentRequired'"),
        ({"propertyNames": {}}, "'propertyNames'"),
        ({"type": "string", "format": "of my own"}, "'format'"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "'oneOf'"),
        ({"minProperties": 2, "properties": {"a": {}, "b": {}}}, "'minProperties'"),
        ({"$ref": "#/$defs/a"}, r"'\$ref'"),
        ({"$ref": "https://example.org/a"}, r"'\$ref'"),
        ({"$ref": "#"}, "no text matches it"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            "no text matches it",
        ),
        ({"type": "text"}, "'type'"),
        ({"enum": []}, "Unsatisfiable"),
        ({"minimum": 5, "maximum": 3, "type": "integer"}, "minimum"),
        ({"pattern": "(?=a)b", "type": "string"}, "look-around"),
        ({"pattern": "[", "type": "string"}, "unclosed"),
        ({"maxLength": -1}, "'maxLength'"),
        ({"multipleOf": 9_999_991, "type": "integer"}, "'multipleOf'"),
        ([], "object or boolean"),
        (False, "Unsatisfiable"),
        ({"title": "a" * MAX_SOURCE}, "longer"),
        (
            {"anyOf": [{"type": "object", "properties": {f"{i}-{j}": {} for j in range(20)}} for i in range(200)]},
            "too large",
        ),
    ],
)
async def test_a_schema_that_cannot_be_enforced_is_refused_by_its_keyword(schema: object, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refusal:
        await grammars(byte_level()).matcher(
            GrammarSpec("json_schema", json.dumps(schema), "response_format.json_schema")
        )

    assert refusal.value.param == "response_format.json_schema"
    assert len(refusal.value.message) < 250


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", "{"),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
        ("json_schema", '{"const": NaN}'),
        ("regex", "("),
        ("regex", "\ud800"),
        ("regex", "(a*)\\1"),
        ("regex", "(" * 5000 + ")" * 5000),
        ("lark", ""),
        ("lark", "start: other"),
        ("lark", "start: <[99999]>"),
        ("lark", "start: " + "(" * 50_000),
        ("lark", "root ::= ("),
    ],
)
async def test_what_is_no_grammar_is_refused(kind: Any, source: str) -> None:
    with pytest.raises(InvalidRequest):
        await grammars(byte_level()).matcher(GrammarSpec(kind, source))


async def test_annotations_and_unknown_keywords_ask_for_nothing() -> None:
    tokenizer = byte_level()
    annotations = ["$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"]
    unknown = ["contentEncoding", "nullable", "x-order"]
    schema = {"const": {"a": ["b"]}, "$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= dict.fromkeys([*annotations, *unknown], "a")

    said = walk(await grammars(tokenizer).matcher(GrammarSpec("json_schema", json.dumps(schema))), tokenizer)
    assert json.loads(said) == {"a": ["b"]}


async def test_what_a_lenient_schema_cannot_have_enforced_is_left_out() -> None:
    schema = {"type": "array", "uniqueItems": True, "maxItems": 1, "x-guidance": {"lenient": True}}
    tokenizer = byte_level()

    assert (
        json.loads(walk(await grammars(tokenizer).matcher(GrammarSpec("json_schema", json.dumps(schema))), tokenizer))
        == []
    )
