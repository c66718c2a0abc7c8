"""Text out of tokens: whole characters, whole stop strings, nothing lost."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from services.engine.base import Piece, SamplingParams, TokenLogprob
from services.engine.streamer import RequestStreamer
from tests.test_engine.tiny_tokenizers import (
    EOS,
    SMOLLM,
    TOOL,
    WrittenInPython,
    byte_fallback,
    byte_level,
    smollm,
    word_piece,
)

LOST = "\ufffd"  # what decoders put for bytes that are no character

byte_level = cache(byte_level)
byte_fallback = cache(byte_fallback)
word_piece = cache(word_piece)
TOKENIZERS = [
    pytest.param(byte_level, id="byte level"),
    pytest.param(byte_fallback, id="byte fallback"),
    pytest.param(word_piece, id="word piece"),
    pytest.param(
        cache(smollm), id="SmolLM2", marks=pytest.mark.skipif(not SMOLLM.is_dir(), reason="make run fetches it")
    ),
]
SPEAKS = [pytest.param(lambda t: t, id="fast"), pytest.param(WrittenInPython, id="slow")]


def test_token_may_be_told_to_be_an_end() -> None:
    tokenizer = byte_level()
    streamer = RequestStreamer(tokenizer, (), SamplingParams(), frozenset())
    (token,) = tokenizer.encode("a")
    streamer.put(token, TokenLogprob("a", b"a", -1.0))
    streamer.put(token, TokenLogprob("a", b"a", -1.0), is_end=True)
    piece = streamer.take()
    assert piece is not None
    assert (piece.text, piece.token_ids, piece.finish, len(piece.logprobs)) == ("a", (token, token), "stop", 1)


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["👋🏽", "👨‍👩‍👧", "🇩🇪", "日本語", "é", "e\u0301", " ", "\n", "the", " fox", "世界", "ß", "ก็", "𝔘"]
        ),
        st.text(st.characters(codec="utf-8", exclude_characters=LOST), max_size=3),
    ),
    max_size=12,
).map("".join)


def streamer(
    tokenizer: Any, prompt: Iterable[int] = (), stop: Iterable[str] = (), eos: Iterable[int] = (), **params: Any
) -> RequestStreamer:
    return RequestStreamer(tokenizer, tuple(prompt), SamplingParams(stop=tuple(stop), **params), frozenset(eos))


def stream(streamer: RequestStreamer, tokens: Iterable[int]) -> list[Piece]:
    """All that is said until it ends by itself or the tokens run out."""
    pieces = []
    for token in tokens:
        streamer.put(token)
        if streamer.finish:
            break
        if piece := streamer.take():
            pieces.append(piece)
    if not streamer.finish:
        streamer.end("length")
    last = streamer.take()
    assert last is not None
    return [*pieces, last]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def encode(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def decode(tokenizer: Any, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=False)
    return text


@pytest.mark.parametrize("speak", SPEAKS)
@pytest.mark.parametrize("build", TOKENIZERS)
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt="", answer="👨‍👩‍👧👋🏽")
@example(prompt="👋🏽", answer=" and 日本語")
@example(prompt="ก็", answer="世")  # the last four bytes of the prompt begin within a character
@settings(max_examples=60, deadline=None)
def test_pieces_joined_are_the_text(build: Any, speak: Any, prompt: str, answer: str) -> None:
    tokenizer = build()
    before, tokens = encode(tokenizer, prompt), encode(tokenizer, answer)
    whole = decode(tokenizer, before + tokens)
    assume(LOST not in whole)  # SmolLM2's has no tokens for some bytes

    pieces = stream(streamer(speak(tokenizer), before), tokens)

    assert decode(tokenizer, before) + text(pieces) == whole
    assert not any(LOST in piece.text for piece in pieces)
    assert ids(pieces) == tokens


@pytest.mark.parametrize("speak", SPEAKS)
@pytest.mark.parametrize("build", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_tokens_at_all_become_text(build: Any, speak: Any, data: st.DataObject) -> None:
    """Models in high spirits say bytes that are no characters; only an unfinished end is left out."""
    tokenizer = build()
    some = st.lists(st.integers(0, len(tokenizer) - 1), max_size=20)
    prompt, tokens = data.draw(some), data.draw(some)

    pieces = stream(streamer(speak(tokenizer), prompt), tokens)

    assert ids(pieces) == tokens
    # bytes that fit nowhere take back whole characters of the one, and the other puts a space behind the prompt
    if build not in (byte_fallback, word_piece):
        full = decode(tokenizer, tokens)
        assert full.startswith(text(pieces))
        assert full == text(pieces) or full.endswith(LOST)


@pytest.mark.parametrize("build", [TOKENIZERS[0], TOKENIZERS[3]])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_slow_and_fast_tokenizers_say_the_same(build: Any, data: st.DataObject) -> None:
    tokenizer = build()
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))

    fast, slow = (stream(streamer(each), tokens) for each in (tokenizer, WrittenInPython(tokenizer)))

    assert fast == slow


def test_a_character_cut_into_tokens_comes_whole() -> None:
    tokens = encode(byte_fallback(), "日")[1:]  # without the space in front
    speaker = streamer(byte_fallback(), encode(byte_fallback(), "a"))

    said = []
    for token in tokens:
        speaker.put(token)
        said.append(speaker.take())

    assert len(tokens) == 3
    assert said == [None, None, Piece("日", tuple(tokens))]


def test_bytes_that_fit_nowhere_do_not_end_the_answer() -> None:
    tokenizer = byte_fallback()
    tokens = [tokenizer.convert_tokens_to_ids(token) for token in ("a", "<0xC3>", "<0xA9>", "<0x80>", "b", "c")]

    said = text(stream(streamer(tokenizer), tokens))

    assert said.startswith("aé")
    assert said.endswith("bc")


def test_a_prompt_that_ends_within_a_character_is_not_said_again() -> None:
    tokens = encode(byte_level(), "👨")
    assert len(tokens) > 1

    pieces = stream(streamer(byte_level(), [*encode(byte_level(), "hello"), tokens[0]]), encode(byte_level(), " you"))

    assert text(pieces) == " you"


STOPS = st.lists(st.text("abc\n日", min_size=1, max_size=4), min_size=1, max_size=4)
SAID = st.text("abc\n日 ", max_size=24)


@given(said=SAID, stops=STOPS)
@example(said="aab", stops=["ab"])
@example(said="abcab", stops=["abcd", "cabc"])
@example(said="a日", stops=["日本"])
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop_string(said: str, stops: list[str]) -> None:
    tokens = encode(byte_level(), said)

    pieces = stream(streamer(byte_level(), stop=stops), tokens)

    assert ids(pieces) == tokens[: len(ids(pieces))]
    if not any(stop in said for stop in stops):
        assert (text(pieces), pieces[-1].finish) == (said, "length")
    else:
        assert pieces[-1].finish == "stop"
        assert not any(stop in text(pieces) for stop in stops)
        # two of them may overlap: whichever is whole first ends the answer
        ends = [said.find(stop) + len(stop) for stop in stops if stop in said]
        whole = said[: min(ends)]
        assert text(pieces) == whole[: min(whole.find(stop) for stop in stops if stop in whole)]
        assert pieces[-1].stop in stops
        assert whole.startswith(text(pieces) + (pieces[-1].stop or ""))


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    tokenizer = byte_level()
    speaker = streamer(tokenizer, stop=["xyz!"])
    said = []
    for token in (token for letter in "axybxyzz" for token in encode(tokenizer, letter)):
        speaker.put(token)
        piece = speaker.take()
        said.append(piece.text if piece else "")

    assert said == ["a", "", "", "xyb", "", "", "", "xyzz"]


def test_text_after_a_stop_string_in_the_same_token_is_dropped() -> None:
    tokenizer = byte_level()
    token = next(i for i in range(len(tokenizer)) if decode(tokenizer, [i]) == "the")

    pieces = stream(streamer(tokenizer, stop=["h"]), [token, token])

    assert pieces == [Piece("t", (token,), "stop", stop="h")]


@pytest.mark.parametrize("speak", SPEAKS)
def test_special_tokens_are_said_and_the_end_is_not(speak: Any) -> None:
    tokenizer = byte_level()
    tool, end = tokenizer.convert_tokens_to_ids([TOOL, EOS])
    tokens = [tool, *encode(tokenizer, "f()"), tool, end]

    pieces = stream(streamer(speak(tokenizer), eos=[end]), tokens)

    assert text(pieces) == f"{TOOL}f(){TOOL}"
    assert pieces[-1].finish == "stop"
    assert ids(pieces) == tokens  # it took a token, so it is counted


def test_an_end_in_the_middle_of_a_stop_string_gives_back_what_was_held() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids(EOS)

    pieces = stream(streamer(tokenizer, stop=["<stop>"], eos=[end]), [*encode(tokenizer, "so <st"), end])

    assert text(pieces) == "so <st"
    assert pieces[-1].finish == "stop"


def test_a_stop_string_in_the_last_token_is_a_stop() -> None:
    """max_tokens is reached at the same token: OpenAI's clients are told what ended the text."""
    speaker = streamer(byte_level(), stop=["b"])
    for token in encode(byte_level(), "ab"):
        speaker.put(token)
    speaker.end("length")

    assert speaker.take() == Piece("a", tuple(encode(byte_level(), "ab")), "stop", stop="b")


def test_token_ids_wait_for_their_text() -> None:
    tokens = encode(byte_fallback(), "日")[1:]
    speaker = streamer(byte_fallback())
    for token in tokens[:-1]:
        speaker.put(token)
        assert speaker.take() is None
    speaker.end("length")

    assert speaker.take() == Piece("", tuple(tokens[:-1]), "length")


def test_a_stop_string_is_not_looked_for_in_the_first_tokens() -> None:
    speaker = streamer(byte_level(), stop=["b"], min_tokens=2)

    assert text(stream(speaker, [token for each in "bbab" for token in encode(byte_level(), each)])) == "bba"


def test_of_two_stop_strings_the_one_that_ends_first_is_included() -> None:
    tokens = encode(byte_level(), "xabc")

    assert text(stream(streamer(byte_level(), stop=["abc", "ab"], include_stop=True), tokens)) == "xab"


def test_eos_that_is_ignored_has_no_text() -> None:
    end = byte_level().convert_tokens_to_ids(EOS)
    tokens = [*encode(byte_level(), "a"), end, *encode(byte_level(), "b")]

    pieces = stream(streamer(byte_level(), eos=[end], ignore_eos=True), tokens)

    assert (text(pieces), ids(pieces), pieces[-1].finish) == ("ab", tokens, "length")


@pytest.mark.parametrize(("included", "said"), [(False, "a"), (True, "a" + TOOL)])
def test_a_stop_token_is_the_last(included: bool, said: str) -> None:
    tool = byte_level().convert_tokens_to_ids(TOOL)
    tokens = [*encode(byte_level(), "a"), tool, *encode(byte_level(), "b")]

    pieces = stream(streamer(byte_level(), stop_token_ids=(tool,), include_stop=included), tokens)

    assert (text(pieces), ids(pieces), pieces[-1].finish) == (said, tokens[:2], "stop")


def scored(speaker: RequestStreamer, tokens: list[int]) -> list[tuple[str, list[float]]]:
    """The pieces, each with the places of the tokens whose logprobs it has."""
    pieces = []
    for at, token in enumerate(tokens):
        speaker.put(token, TokenLogprob("", b"", at))
        if piece := speaker.take():
            pieces.append(piece)
        if speaker.finish:
            break
    else:
        speaker.end("length")
        pieces.append(speaker.take())  # type: ignore[arg-type]
    return [(piece.text, [each.logprob for each in piece.logprobs]) for piece in pieces]


def letters(text: str) -> list[int]:
    return [token for letter in text for token in encode(byte_level(), letter)]


def test_logprobs_come_with_their_text() -> None:
    assert scored(streamer(byte_level()), letters("ab")) == [("a", [0]), ("b", [1]), ("", [])]


def test_logprobs_of_the_parts_of_a_character_come_together() -> None:
    parts = encode(byte_fallback(), "日")[1:]
    a = encode(byte_fallback(), "a")

    assert scored(streamer(byte_fallback()), [*parts, *a]) == [("日", [0, 1, 2]), (" a", [3]), ("", [])]


def test_logprobs_of_an_unfinished_character_come_last() -> None:
    parts = encode(byte_fallback(), "日")[1:-1]

    assert scored(streamer(byte_fallback()), parts) == [("", [0, 1])]


def test_logprobs_wait_with_text_that_is_held_back() -> None:
    assert scored(streamer(byte_level(), stop=["bcd"]), letters("abcx")) == [("a", [0]), ("bcx", [1, 2, 3]), ("", [])]


def test_logprobs_of_what_a_stop_string_cuts_are_left_out() -> None:
    assert scored(streamer(byte_level(), stop=["bc"]), letters("abcx")) == [("a", [0]), ("", [])]
    assert scored(streamer(byte_level(), stop=["bc"], include_stop=True), letters("abcx")) == [
        ("a", [0]),
        ("bc", [1, 2]),
    ]


def test_eos_has_no_logprob_unless_it_is_ignored() -> None:
    end = byte_level().convert_tokens_to_ids(EOS)

    assert scored(streamer(byte_level(), eos=[end]), [*letters("a"), end]) == [("a", [0]), ("", [])]
    ignoring = streamer(byte_level(), eos=[end], ignore_eos=True)
    assert scored(ignoring, [*letters("a"), end, *letters("b")]) == [("a", [0]), ("b", [1, 2]), ("", [])]
