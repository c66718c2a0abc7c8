"""Tokens one by one, as bytes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.token_texts import TokenTexts
from tests.test_engine.fakes import Alphabet
from tests.test_engine.tiny_tokenizers import SMOLLM, TOOL, byte_fallback, byte_level, smollm

TOKENIZERS = [
    pytest.param(cache(byte_level), id="byte level"),
    pytest.param(cache(byte_fallback), id="byte fallback"),
    pytest.param(
        cache(smollm), id="SmolLM2", marks=pytest.mark.skipif(not SMOLLM.is_dir(), reason="make run fetches it")
    ),
]


def raw(texts: TokenTexts, tokens: list[int]) -> bytes:
    return b"".join(texts.named(token, 0.0).raw for token in tokens)


@pytest.mark.parametrize("build", TOKENIZERS)
@given(text=st.lists(st.sampled_from(["👋🏽", "日本語", "é", " ", "the", " fox", "世界", "𝔘", "\n"])).map("".join))
def test_bytes_joined_are_the_text(build: Callable[[], Any], text: str) -> None:
    tokens = build().encode(text, add_special_tokens=False)

    assert raw(TokenTexts(build()), tokens).decode().strip() == build().decode(tokens).strip()


def test_part_of_a_character_has_bytes_but_no_letter() -> None:
    first, *_ = byte_fallback().encode("日", add_special_tokens=False)[1:]

    named = TokenTexts(byte_fallback()).named(first, -1.0)

    assert (named.text, named.raw, named.logprob) == ("\ufffd", "日".encode()[:1], -1.0)


@pytest.mark.parametrize("build", TOKENIZERS[:2])
def test_special_tokens_are_as_they_are_written(build: Callable[[], Any]) -> None:
    assert raw(TokenTexts(build()), [build().convert_tokens_to_ids(TOOL)]) == TOOL.encode()


def test_rows_beyond_the_tokenizer_are_nothing() -> None:
    assert raw(TokenTexts(byte_level()), [len(byte_level()) + 5]) == b""


def test_a_tokenizer_written_in_python_is_asked_for_the_text() -> None:
    assert raw(TokenTexts(Alphabet()), [0, 1, 2]) == b"abc"
