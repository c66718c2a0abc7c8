"""Messages' contents as a chat template takes them, and the places that it leaves for images.

Most templates take strings; those of vision-language models take lists of parts, and some of them nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any
from weakref import WeakKeyDictionary

from services.engine.base import Image, ImageReader, Message, PlacedImage, Tokenizer
from services.errors import InvalidRequest

TEXTS = ("text", "refusal")
PROBE = "parley"
PLACEHOLDER = "A text contains what stands for an image in this model's prompts"

ContentPart = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    strings: bool
    parts: bool


STRINGS = Form(strings=True, parts=False)
_forms: WeakKeyDictionary[Tokenizer, Form] = WeakKeyDictionary()


def form(tokenizer: Tokenizer) -> Form:
    """Found by trying, once: no template says what it takes."""
    if not tokenizer.chat_template:
        return STRINGS
    if tokenizer not in _forms:
        parts = _shows(tokenizer, [{"type": "text", "text": PROBE}])
        _forms[tokenizer] = Form(strings=not parts or _shows(tokenizer, PROBE), parts=parts)
    return _forms[tokenizer]


def _shows(tokenizer: Tokenizer, content: object) -> bool:
    try:
        text = str(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    except Exception:  # whatever a template may throw at what it does not expect
        return False
    return PROBE in text and "'text'" not in text  # a list that is only printed is not understood


def text(content: str | Sequence[ContentPart] | None) -> str:
    """Content as one string; images have none."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part[part["type"]] for part in content if part["type"] in TEXTS)


def kept(content: str | Sequence[ContentPart] | None) -> str | list[ContentPart]:
    """One string wherever that says all of it."""
    if content is None or isinstance(content, str) or all(part["type"] in TEXTS for part in content):
        return text(content)
    return list(content)


def shaped(messages: Sequence[Message], taken: Form, placeholder: str = "") -> list[Message]:
    return [each | {"content": _shaped(each.get("content"), taken, placeholder)} for each in messages]


def _shaped(content: str | Sequence[ContentPart] | None, taken: Form, placeholder: str) -> object:
    if content is None or (isinstance(content, str) and taken.strings):
        return content
    parts: Sequence[ContentPart] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if taken.parts:
        return [
            {"type": "text", "text": text([part])} if part["type"] in TEXTS else {"type": "image"} for part in parts
        ]
    return "".join(text([part]) if part["type"] in TEXTS else f"{placeholder}\n" for part in parts)


@dataclass(frozen=True, slots=True)
class Illustration:
    """The images of a prompt, in order."""

    images: Sequence[Image]
    reader: ImageReader

    def fill(self, text: str) -> str:
        """With each placeholder replaced by what stands for its image."""
        pieces = text.split(self.reader.placeholder)
        if len(pieces) - 1 > len(self.images):
            raise InvalidRequest(PLACEHOLDER, param="messages")
        if len(pieces) - 1 < len(self.images):
            raise InvalidRequest("The model's chat template leaves out images of these messages", param="messages")
        return "".join(chain.from_iterable(zip_longest(pieces, (image.text for image in self.images), fillvalue="")))

    def placed(self, ids: Sequence[int]) -> tuple[PlacedImage, ...]:
        """Which of the tokens stand for which image."""
        found = [position for position, token in enumerate(ids) if token == self.reader.token]
        if len(found) != sum(image.num_tokens for image in self.images):  # a tokenizer may read more as that token
            raise InvalidRequest(PLACEHOLDER, param="messages")
        positions = iter(found)
        return tuple(PlacedImage(image, tuple(islice(positions, image.num_tokens))) for image in self.images)
