"""The calls of a response template as one of the formats that are streamed and forced, where its marks are literals
with a name in them, and its contents an object or tags; else as regions that are read as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import regex

from services.chat.formats.base import ToolFormat
from services.chat.formats.gemma_calls import GemmaCalls
from services.chat.formats.json_calls import (
    ARGUMENTS,
    NAME,
    NAME_HERE,
    SPACE,
    TEXT,
    Header,
    JsonCalls,
    letters,
    object_with,
    text_header,
)
from services.chat.formats.lark_text import MARKER
from services.chat.formats.region_calls import NAME as FORMAT
from services.chat.formats.region_calls import Region, RegionCalls
from services.chat.formats.template_patterns import (
    Group,
    Literal,
    Parts,
    Space,
    first_literal,
    literal,
    read_mark,
    read_pattern,
    without_space,
)
from services.chat.formats.xml_calls import KEY_HERE, TAG, XmlCalls
from services.chat.parsing.json_text import call_in

KINDS = ("json", "xml-inline", "kv-lines")
MAX_PATTERN = 2000  # characters
SPECIAL = re.compile(rf"({MARKER.pattern})")
NAMED_TAG = re.compile(rf"<([\w:.-]+)[^<>]*{NAME_HERE}[^<>]*>")


def calls_of(field: Mapping[str, Any]) -> ToolFormat:
    """ValueError: it has no reading."""
    kind = field.get("content", "text")
    if kind not in KINDS:
        raise ValueError(f"its content is {kind!r}")
    calls = _calls(field)
    found = calls and (_json(calls) if kind == "json" else _xml(calls))
    return found or _region(field)


@dataclass(frozen=True, slots=True)
class _Calls:
    """`head`: what comes behind `marker`, up to the content. `close`: in parts of which each is a token, or none."""

    marker: str
    head: Parts
    close: tuple[str, ...]
    between: tuple[str, ...]
    arguments: Mapping[str, Any]  # of the content's parser
    each: bool  # of a list
    function: object  # what of the content is the call

    @property
    def group(self) -> str | None:
        """The tool's name, in what opens the call."""
        return next((each.name for each in self.head if isinstance(each, Group)), None)

    @property
    def has_arguments(self) -> bool:
        """As all of its content."""
        return self.function == {"name": f"{{{self.group}}}", "arguments": "{content}"} and not self.each

    @property
    def keys(self) -> tuple[str, str] | None:
        """Those of a call's name and arguments in its object. None: they do not stand there."""
        if self.function == "{content}" and not self.each:
            return "name", "arguments"
        if not isinstance(self.function, Mapping) or self.function.keys() != {"name", "arguments"}:
            return None
        placeholder = re.compile(r"\{(\w+)\}" if self.each else r"\{content\.(\w+)\}")
        name, arguments = (placeholder.fullmatch(str(self.function[key])) for key in ("name", "arguments"))
        return (name[1], arguments[1]) if name and arguments else None

    def opening(self) -> str:
        return _written(self.head, {self.group or "": NAME_HERE})

    def opening_atoms(self) -> list[str]:
        """As those of a header."""
        atoms = []
        for each in self.head:
            atoms += letters(each.text) if isinstance(each, Literal) else [SPACE if isinstance(each, Space) else NAME]
        return atoms


def _calls(field: Mapping[str, Any]) -> _Calls | None:
    try:
        (opens,), (closes,) = read_mark(field, "open"), read_mark(field, "close")
    except ValueError:  # they are of another kind, or not one
        return None
    first, *rest = without_space(opens)
    close = without_space(closes)
    groups = sum(isinstance(each, Group) for each in (*rest, *close))
    if not isinstance(first, Literal) or not close or groups > 1 or any(isinstance(each, Group) for each in close):
        return None
    mark = SPECIAL.match(first.text)
    marker = mark[0] if mark else first.text
    behind = first.text[len(marker) :]
    transform = field.get("transform", {"function": "{content}"})
    spaces = ("\n",) if isinstance(opens[0], Space) else ()
    return _Calls(
        marker=marker,
        head=((Literal(behind),) if behind else ()) + tuple(rest),
        close=tuple(filter(None, SPECIAL.split(_written(close, {})))),
        between=(*spaces, marker) if field.get("repeats") else (),
        arguments=field.get("content_args") or {},
        each=bool(field.get("transform_each")),
        function=transform.get("function") if isinstance(transform, Mapping) else None,
    )


def _written(parts: Parts, groups: Mapping[str, str]) -> str:
    """As a model may write it."""
    return "".join(
        each.text if isinstance(each, Literal) else "\n" if isinstance(each, Space) else groups[each.name]
        for each in parts
    )


def _json(calls: _Calls) -> ToolFormat | None:
    if calls.arguments:
        return _literals(calls)
    if calls.group:
        return _named_json(calls) if calls.has_arguments else None
    if calls.keys is None or any(isinstance(each, Literal) for each in calls.head):
        return None
    name, arguments = calls.keys
    call = (f'{{"{name}": "{NAME_HERE}", "{arguments}": ', ARGUMENTS, "}")
    return JsonCalls(
        name=FORMAT,
        headers=(object_with(arguments, name),),
        before=(calls.marker, "[") if calls.each else (calls.marker,),
        call=call if calls.each else (*call, *calls.close),
        between=(", ",) if calls.each else calls.between,
        after=("]", *calls.close) if calls.each else (),
        marker=calls.marker,
        end="".join(calls.close),
        text=(TEXT.replace('"name"', f'"{name}"'),),
        text_header=text_header(name),
        reads=partial(call_in, name_key=name, arguments_keys=(arguments,)),
    )


def _named_json(calls: _Calls) -> JsonCalls:
    atoms, opening = calls.opening_atoms(), calls.opening()
    return JsonCalls(
        name=FORMAT,
        headers=(Header.of(*atoms, SPACE, wrapped=False),),
        before=(calls.marker,),
        call=(opening, ARGUMENTS, *calls.close),
        between=calls.between,
        marker=calls.marker,
        end="".join(calls.close),
        text=(f"{opening}\n",),
        text_header=Header.of(*atoms, "\n", wrapped=False, before=""),
    )


def _literals(calls: _Calls) -> GemmaCalls | None:
    """Strings between marks of their own, keys without quotes."""
    (begin, end), *others = calls.arguments.get("string_delims") or [("", " ")]
    if calls.head[:1] != (Literal("call:"),) or len(calls.head) != 2 or not calls.has_arguments:
        return None
    if begin != end or others or not calls.arguments.get("unquoted_keys") or len(calls.arguments) > 2:
        return None
    return GemmaCalls(FORMAT, begin=calls.marker, end="".join(calls.close), quote=begin, stop="")


def _xml(calls: _Calls) -> XmlCalls | None:
    if not calls.group or not calls.has_arguments or calls.arguments.get("merge_duplicates"):
        return None
    try:
        (tag,) = read_pattern(str(calls.arguments.get("tag_pattern", "")))
    except ValueError:
        return None
    if [each.name for each in tag if isinstance(each, Group)] != ["key", "value"]:
        return None
    begin, _, end = _written(without_space(tag), {"key": KEY_HERE, "value": "\0"}).partition("\0")
    opening = calls.opening().rstrip("\n")
    close = _closed(opening, "".join(calls.close))
    if not close or begin.startswith(KEY_HERE) or not end.strip("\n"):
        return None
    line_end = "\n" if any(isinstance(each, Space) for each in tag) else ""
    return XmlCalls(
        name=FORMAT,
        marker=calls.marker,
        before=(calls.marker,),
        between=calls.between,
        call=(opening + line_end, close),
        argument=(begin, end + line_end),
        text_end=TAG.findall(close)[-1],
    )


def _closed(opening: str, close: str) -> str:
    """With the tag that ends what has the call's name, which expressions may leave out. Empty: there is no tag."""
    if not TAG.findall(close):
        return ""
    named = NAMED_TAG.search(opening)
    end = f"</{named[1]}>" if named else ""
    return close if not end or end in close else f"{end}\n{close}"


def _region(field: Mapping[str, Any]) -> RegionCalls:
    if "open_pattern" in field:
        opens = field["open_pattern"]
        marker = first_literal(opens)
    else:
        ((mark,),) = read_mark(field, "open")
        marker = mark.text if isinstance(mark, Literal) else ""
        opens = regex.escape(marker)
    closes = [literal(way) for way in read_mark(field, "close")]
    if not marker or not all(closes):
        raise ValueError("what opens it does not begin with a literal, or what closes it is none")
    if max(len(opens), len(str(field.get("content_args")))) > MAX_PATTERN:
        raise ValueError("its expressions are too long")
    region = Region(
        opens=regex.compile(opens, regex.DOTALL),
        closes=tuple(filter(None, closes)),
        content=field["content"],
        arguments=field.get("content_args") or {},
        transform=field.get("transform"),
        is_list=bool(field.get("transform_each")),
    )
    return RegionCalls(marker, region)
