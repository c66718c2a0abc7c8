from hypothesis import given
from hypothesis import strategies as st

from database import terms


@given(st.text(st.characters(codec="ascii"), max_size=200))
def test_ascii_fast_path_finds_the_same_words(text: str) -> None:
    assert [*terms.words(text), "e"] == list(terms.words(text + " é"))
    assert terms.plain(text) + "e" == terms.plain(text + "é")


def test_words_are_limited_and_without_case_accents_and_signs() -> None:
    assert list(terms.words("Ça_va? 42 " + "X" * 100)) == ["ca", "va", "42", "x" * terms.WORD_LENGTH]
    assert list(terms.words("Hi_THERE, " + "X" * 100)) == ["hi", "there", "x" * terms.WORD_LENGTH]
