"""A prompt's text -> its token ids, as many of them as there is room for."""

from dataclasses import dataclass
from typing import Protocol

from services.chat.request import long_text
from services.errors import InvalidRequest, PromptTooLong

MAX_TOKENIZE_CHARS = 1_048_576  # where no setting says otherwise
CHARS_PER_TOKEN = 8  # of a model's context that may be counted, whatever the setting is


class Encoder(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Room:
    limit: int | None = None  # tokens; far more are refused before they are all tokenised
    keep: int | None = None  # of the last tokens, instead
    max_chars: int | None = None  # where there is no limit, because tokens are only counted

    @classmethod
    def to_count(cls, max_chars: int, max_length: int, keep: int | None = None) -> "Room":
        return cls(keep=keep, max_chars=max(max_chars, CHARS_PER_TOKEN * max_length))


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: tuple[int, ...]
    cut: int = 0  # tokens in front of them that were left out, about


def encode(text: str, tokenizer: Encoder, room: Room, param: str, *, add_special_tokens: bool = True) -> Encoded:
    """Raises PromptTooLong, and InvalidRequest for more than may be counted."""

    cut = 0
    if room.keep is not None:
        count = _count(tokenizer)
        kept = long_text.tail(text, room.keep, count)
        cut, text = long_text.total(text[: len(text) - len(kept)], count), kept
    check_fits(text, tokenizer, room, param)
    return Encoded(tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens)), cut)


def check_fits(text: str, tokenizer: Encoder, room: Room, param: str) -> None:
    """Refuses what is far too long, whatever comes before and after it."""
    if room.keep is None and room.limit is not None:
        tokens = long_text.overflow(text, room.limit, _count(tokenizer))
        if tokens is not None:
            raise PromptTooLong(tokens, room.limit, param=param, exactly=False)
    check_countable(text, room, param)


def _count(tokenizer: Encoder) -> long_text.Count:
    return lambda part: len(tokenizer.encode(part, add_special_tokens=False))


def check_countable(text: str, room: Room, param: str) -> None:
    if room.max_chars is not None and len(text) > room.max_chars:
        raise InvalidRequest(
            f"'%s' has {len(text)} characters: at most {room.max_chars} are tokenised to be counted "
            "(PARLEY_SERVER__MAX_TOKENIZE_CHARS)",
            param,
        )
