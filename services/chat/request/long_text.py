"""Texts that may be far longer than a model takes: found out, or cut, before all of them is tokenised.

A tokenizer needs some 200 bytes for each character, and seconds for a few million of them. So where a text is so long
that it hardly fits, its tokens are counted chunk by chunk until there are far too many. The sum differs from that of
the whole by the words that the seams go through; what might fit is therefore always tokenised as a whole.
"""

from collections.abc import Callable, Iterator

CHUNK = 65_536  # characters: ten milliseconds, and 12 MB
USUAL = 8  # characters a token has at most in what is no attack; longer texts are looked at
SAMPLES = 16  # chunks
SEAM = 64  # tokens by which a chunk may differ from its part of the whole

Count = Callable[[str], int]  # a text's tokens, without special ones


def overflow(text: str, limit: int, count: Count) -> int | None:
    """About how many tokens it has, if these are far more than `limit`."""
    if len(text) <= _unsuspicious(limit):
        return None
    counted = 0
    for number, chunk in enumerate(_chunks(text), 1):
        counted += count(chunk)
        if counted > limit + limit // 4 + SEAM * number:
            return counted * len(text) // min(len(text), number * CHUNK)
    return None


def head(text: str, keep: int, count: Count) -> str:
    """A beginning that has the same first `keep` tokens as the whole."""
    size = _unsuspicious(keep + SEAM)
    while size < len(text):
        if count(text[:size]) >= keep + SEAM:
            return text[:size]
        size *= 2
    return text


def tail(text: str, keep: int, count: Count) -> str:
    """An end that has the same last `keep` tokens as the whole."""
    size = _unsuspicious(keep + SEAM)
    while size < len(text):
        if count(text[-size:]) >= keep + SEAM:
            return text[-size:]
        size *= 2
    return text


def total(text: str, count: Count) -> int:
    """About how many tokens it has, by some of its chunks where it has more than these."""
    chunks = list(_chunks(text))
    looked_at = chunks[:: -(-len(chunks) // SAMPLES)] if chunks else []
    return sum(map(count, looked_at)) * len(text) // max(1, sum(map(len, looked_at)))


def _unsuspicious(limit: int) -> int:
    return max(CHUNK, USUAL * limit)


def _chunks(text: str) -> Iterator[str]:
    return (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))
