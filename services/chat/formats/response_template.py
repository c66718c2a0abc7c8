"""`response_template` of a tokenizer: transformers' description, as data, of what stands in an answer.

Each field is what is between two marks. Those of thoughts become `ThinkingTags`, those of calls a tool format. What
belongs to other fields is content, marks and all: no text is lost.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import regex

from services.chat.formats.base import ThinkingTags, ToolFormat
from services.chat.formats.response_calls import calls_of
from services.chat.formats.template_patterns import Literal, literal, read_mark

logger = logging.getLogger(__name__)

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # what templates call them

Value = TypeVar("Value")
Field = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """What is read of one."""

    tools: ToolFormat | None = None
    thinking: ThinkingTags | None = None
    content_marks: tuple[str, ...] = ()
    literals: tuple[str, ...] = ()  # of all its marks


def response_template(source: object) -> ResponseTemplate:
    """What of it cannot be read is left out, with a line in the log."""
    fields = source.get("fields") if isinstance(source, Mapping) else None
    if not isinstance(source, Mapping) or not isinstance(fields, Mapping) or source.get("version", 1) != 1:
        logger.warning("The tokenizer's response_template is left aside: it has no fields, or is of another version")
        return ResponseTemplate()
    known = {name: each for name, each in fields.items() if isinstance(each, Mapping)}
    thoughts = next((each for each in THOUGHTS if each in known), "")
    return ResponseTemplate(
        tools=_read(known, "tool_calls", calls_of),
        thinking=_read(known, thoughts, _thinking),
        content_marks=_read(known, "content", _content_marks) or (),
        literals=tuple(dict.fromkeys(text for each in known.values() for text in _literals(each))),
    )


def _read(fields: Mapping[str, Field], name: str, read: Callable[[Field], Value]) -> Value | None:
    if name not in fields:
        return None
    try:
        return read(fields[name])
    except (ValueError, TypeError, AttributeError, KeyError, regex.error) as error:
        logger.warning("The field %r of the tokenizer's response_template is left aside: %s", name, error)
        return None


def _literals(field: Field) -> Iterator[str]:
    for key in ("open", "close"):
        try:
            parts = [each for way in read_mark(field, key) for each in way]
        except ValueError:
            continue
        yield from (each.text for each in parts if isinstance(each, Literal))


def _thinking(field: Field) -> ThinkingTags:
    begin, end = _only(field, "open"), _only(field, "close")
    if not end:
        raise ValueError("nothing closes it")
    return ThinkingTags(begin, end, again=bool(begin))


def _only(field: Field, key: str) -> str:
    """The literal that its mark is; empty: it has none."""
    ways = read_mark(field, key)
    if not ways:
        return ""
    found = literal(ways[0])
    if len(ways) > 1 or not found:
        raise ValueError(f"what {key}s it is not one literal")
    return found


def _content_marks(field: Field) -> tuple[str, ...]:
    found = [literal(way) for key in ("open", "close") for way in read_mark(field, key)]
    if not all(found):
        raise ValueError("its marks are not literals")
    return tuple(dict.fromkeys(filter(None, found)))
