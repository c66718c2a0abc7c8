"""Texts that are longer than a model takes, with real tokenizers: what is found out of them, and what is left."""

import random
from typing import Any

import pytest

from services.chat.request import long_text
from services.chat.request.encoding import Encoded, Room, encode
from services.errors import InvalidRequest, PromptTooLong
from tests.test_engine.tiny_tokenizers import byte_fallback, byte_level, word_piece

TOKENIZERS = [byte_level, byte_fallback, word_piece]
KEEP = 50


def words(size: int) -> str:
    chance = random.Random(1)
    return " ".join("".join(chance.choices("abcdefghijklmno", k=5)) for _ in range(size // 6))


class Counting:
    """Notes how much of a text is tokenised."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.characters += len(text)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_what_is_far_too_long_is_refused_by_its_beginning(make: Any) -> None:
    tokenizer, text = Counting(make()), words(400_000)

    with pytest.raises(PromptTooLong) as refused:
        encode(text, tokenizer, Room(limit=1000), "prompt")  # type: ignore[arg-type]

    assert tokenizer.characters <= 2 * long_text.CHUNK
    assert refused.value.param == "prompt"
    assert refused.value.tokens == pytest.approx(len(make().encode(text)), rel=0.05)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_what_might_fit_is_tokenised_as_a_whole(make: Any) -> None:
    tokenizer, text = make(), words(150_000)
    ids = tuple(tokenizer.encode(text))

    assert encode(text, tokenizer, Room(limit=len(ids)), "prompt") == Encoded(ids)
    assert encode(text, tokenizer, Room(limit=len(ids) - 1), "prompt") == Encoded(ids)  # exactly too long: not for here


@pytest.mark.parametrize("make", TOKENIZERS)
def test_white_space_that_a_tokenizer_drops_is_not_counted(make: Any) -> None:
    tokenizer, text = make(), "a" + " " * 300_000 + "b"
    ids = tuple(tokenizer.encode(text))

    assert encode(text, tokenizer, Room(limit=len(ids) + 1), "prompt") == Encoded(ids)


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("text", [words(200_000), "a" * 150_000, " b" + "你好，世界 " * 20_000], ids=["a", "b", "c"])
def test_an_end_has_the_last_tokens_of_the_whole(make: Any, text: str) -> None:
    tokenizer = Counting(make())
    whole = make().encode(text)

    taken = encode(text, tokenizer, Room(keep=KEEP), "prompt")  # type: ignore[arg-type]

    assert taken.ids[-KEEP:] == tuple(whole[-KEEP:])
    assert len(taken.ids) + taken.cut == pytest.approx(len(whole), rel=0.05)
    beginning = long_text.head(text, KEEP, lambda part: len(make().encode(part)))
    assert make().encode(beginning)[:KEEP] == whole[:KEEP]
    assert len(beginning) == long_text.CHUNK or len(whole) < KEEP  # to some, a long word is one token


def test_many_chunks_are_counted_by_some_of_them() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text) // 4

    size = 300 * long_text.CHUNK + 7
    assert long_text.total("a" * size, count) == pytest.approx(size // 4, rel=0.01)
    assert len(counted) <= long_text.SAMPLES
    assert long_text.total("", count) == 0


def test_what_is_only_counted_has_a_limit_that_the_error_names() -> None:
    room = Room.to_count(100_000, max_length=10)

    with pytest.raises(InvalidRequest, match=r"100000 .*MAX_TOKENIZE_CHARS"):
        encode("a" * 100_001, byte_level(), room, "messages")
    assert Room.to_count(100, max_length=1000).max_chars == 8000
