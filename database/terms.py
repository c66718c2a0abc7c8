"""The words by which a text is found, the same for both databases, whose own ideas of a word differ.

Chinese, Japanese and Korean are written without spaces: there each character is a word, and several are a phrase.
"""

import re
import unicodedata
from collections.abc import Iterator

LENGTH = 100_000  # of what is indexed of one text; PostgreSQL's limit is not far above
WORD_LENGTH = 64
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
ASCII_WORD = re.compile("[a-z0-9]+")  # the same, four times as fast


def indexed(owner: str, text: str) -> str:
    """The owner's name is the first word: an index then needs not look at what others have said."""
    return " ".join([token(owner), *words(text)])[:LENGTH]


def token(owner: str) -> str:
    return "owner" + "".join(words(owner))


def words(text: str) -> Iterator[str]:
    word = ASCII_WORD if text.isascii() else WORD
    for found in word.findall(plain(text[:LENGTH])):
        yield found[:WORD_LENGTH]


def plain(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFC", "".join(each for each in composed if not unicodedata.combining(each)))


def phrases(query: str) -> list[str]:
    """What is to be found, all of it: the words of the query, or phrases where it has no spaces."""
    return [" ".join(found) for part in query.split() if (found := list(words(part)))]


def snippet(text: str, query: str, before: int = 60, after: int = 140) -> str:
    """What stands around the first of the words that are looked for, in what is indexed of the text."""
    wanted = {phrase.partition(" ")[0] for phrase in phrases(query)}
    found = next(
        (match.start() for match in WORD.finditer(text, 0, LENGTH) if plain(match[0])[:WORD_LENGTH] in wanted), 0
    )
    start, end = max(0, found - before), found + after
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"
