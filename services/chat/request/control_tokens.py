"""A caller's text stays text: what looks like a control token of the model is one only in the template's own words.

Before a chat template is rendered, each control token in a caller's texts is replaced by a character that stands for
it; the rendered prompt is then encoded around these, and they themselves as plain text. Texts without any are not
touched, nor are their tokens.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from services.chat.formats import chat_format, marks
from services.chat.formats.base import ChatFormat
from services.chat.formats.lark_text import MARKER
from services.chat.request.contents import TEXTS, text
from services.engine.base import Message, Tokenizer
from services.errors import InvalidRequest

STAND_INS = range(0x10_0000, 0x10_FFFE)  # private use: no text means anything by them
USED = re.compile("[\U00100000-\U0010fffd]")
# A tokenizer may treat the beginning of a text in its own way (a space in front): pieces are encoded behind one of
# these, the first that does not become part of a token of the piece.
ANCHORS = ("\n", "0", ";")
OWN_FORMS = ("assistant", "system")  # whose texts may hold the marks of thoughts and calls, but no turns

Change = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Controls:
    special: re.Pattern[str] | None  # what the tokenizer calls special
    every: re.Pattern[str] | None  # and the other marks that the chat template writes, or a response template names

    def of(self, role: str) -> re.Pattern[str] | None:
        return self.special if role in OWN_FORMS else self.every


_known: WeakKeyDictionary[Tokenizer, Controls] = WeakKeyDictionary()


def controls(tokenizer: Tokenizer) -> Controls:
    if tokenizer not in _known:
        _known[tokenizer] = _controls(tokenizer)
    return _known[tokenizer]


def _controls(tokenizer: Tokenizer) -> Controls:
    written = marks(tokenizer)
    # what is one character cannot be written as text in another way; templates hold blanks as text
    added = [
        each
        for each in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if len(each.content) > 1 and not each.content.isspace()
    ]
    own = _call_marks(chat_format(tokenizer))
    return Controls(
        special=_any_of([each.content for each in added if each.special and each.content not in own]),
        every=_any_of([each.content for each in added if each.special or each.content in written]),
    )


def _call_marks(format: ChatFormat) -> set[str]:
    """Those of calls that stand in the content of earlier answers."""
    tools = format.tools
    parts = (*tools.before, *tools.between, *tools.after) if format.calls_as_text else ()
    return {part for part in parts if MARKER.fullmatch(part)}


def _any_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


@dataclass(frozen=True, slots=True)
class Guarded:
    """What a template is rendered with, and how its prompt is encoded."""

    messages: list[Message]
    template: Mapping[str, Any]
    tokenizer: "Tokenizer | Guard"


def guarded(messages: list[Message], template: Mapping[str, Any], tokenizer: Tokenizer) -> Guarded:
    known = controls(tokenizer)
    if known.every is None:
        return Guarded(messages, template, tokenizer)
    names = _Names(known)
    for role, each in _texts(messages, template):
        names.look(role, each)
    if not names.found:
        return Guarded(messages, template, tokenizer)
    return Guarded(
        [_message(each, names.change(each["role"])) for each in messages],
        _changed(template, names.change("")),
        Guard(tokenizer, known, names.tokens),
    )


class _Names:
    """Characters for the control tokens that callers have written."""

    def __init__(self, known: Controls) -> None:
        self._known = known
        self._used: set[str] = set()
        self.found: set[str] = set()

    def look(self, role: str, text: str) -> None:
        self._used.update(USED.findall(text))
        if pattern := self._known.of(role):
            self.found.update(pattern.findall(text))

    @cached_property
    def tokens(self) -> dict[str, str]:
        """By the characters that stand for them, none of which occurs in a text."""
        free = (chr(code) for code in STAND_INS if chr(code) not in self._used)
        named = dict(zip(free, sorted(self.found), strict=False))
        if len(named) < len(self.found):
            raise InvalidRequest("These texts use too many private characters", param="messages")
        return named

    def change(self, role: str) -> Change:
        pattern = self._known.of(role)
        characters = {token: character for character, token in self.tokens.items()}
        return lambda text: pattern.sub(lambda match: characters[match[0]], text) if pattern else text


def _texts(messages: Sequence[Message], template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for message in messages:
        fields = {name: value for name, value in message.items() if name not in ("role", "content")}
        for value in (fields, *(part for part in _parts(message.get("content")) if not _is_image(part))):
            yield from ((message["role"], text) for text in _strings(value))
    yield from (("", text) for text in _strings(template))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _strings(key)
            yield from _strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(each, change) for each in value]
    return value


def _message(message: Message, change: Change) -> Message:
    content = message.get("content")
    parts = [part if _is_image(part) else _changed(part, change) for part in _parts(content)]
    changed: Message = {**_changed(message | {"content": None}, change), "role": message["role"]}
    return changed | ({"content": parts if isinstance(content, list) else parts[0]} if "content" in message else {})


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part["type"] not in TEXTS


def _parts(content: object) -> list[Any]:
    """Texts in a row are one part, for a token may begin in one and end in the next."""
    if not isinstance(content, list):
        return [content]
    parts: list[Any] = []
    for part in content:
        if parts and not _is_image(part) and not _is_image(parts[-1]):
            parts[-1] = {"type": "text", "text": text([parts[-1], part])}
        else:
            parts.append(part)
    return parts


@dataclass(frozen=True, slots=True)
class Guard:
    """Encodes prompts in which characters stand for texts that are not to become control tokens."""

    tokenizer: Tokenizer
    known: Controls
    tokens: Mapping[str, str]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        first, *others = self._pieces(text)
        ids = list(self.tokenizer.encode(first, add_special_tokens=add_special_tokens))
        for piece in filter(None, others):
            ids += self._behind(piece)
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        for piece in re.split(f"([{''.join(self.tokens)}])", text):
            if piece in self.tokens:
                yield from self._broken(self.tokens[piece])
            else:
                yield piece

    def _broken(self, token: str) -> Sequence[str]:
        """In parts that are no control tokens. A switch for this would be the tokenizer's, which threads share."""
        rest = token[1:]
        return list(token) if self.known.every and self.known.every.search(rest) else (token[0], rest)

    def _behind(self, piece: str) -> list[int]:
        for anchor in ANCHORS:
            before = self.tokenizer.encode(anchor, add_special_tokens=False)
            ids = list(self.tokenizer.encode(anchor + piece, add_special_tokens=False))
            if ids[: len(before)] == before and (len(ids) > len(before)):
                return ids[len(before) :]
        return list(self.tokenizer.encode(piece, add_special_tokens=False))
