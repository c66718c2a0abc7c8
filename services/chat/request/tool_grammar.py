"""What an answer must look like that calls tools, or may: a Lark grammar, assembled from the tool format's rules."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.chat.formats.base import CallRule, ToolFormat
from services.chat.formats.lark_text import lark, marker, pattern
from services.chat.request.tool_selection import ToolSelection
from services.engine.base import GrammarSpec
from services.errors import InvalidRequest

MAX_CALLS = 16  # in one answer: a small model would else call for ever


def tool_grammar(
    selection: ToolSelection, format: ToolFormat, answer: GrammarSpec | None = None, content: tuple[str, ...] = ()
) -> GrammarSpec | None:
    """None: the model is free to call as it likes. `answer`: what it must look like where nothing is called.

    `content`: what begins the content, where the format marks it.
    """
    grammar = _Grammar(selection, format)
    if selection.must:
        return _spec(selection, [f"start: {grammar.block(format.before)}", *grammar.rules()])
    if answer is None and selection.parallel and not any(each.strict for each in selection.callable):
        return None
    if answer is not None:
        return _answer_or_calls(selection, format, answer, content)
    return _spec(selection, [f"start: {grammar.free(content)}", *grammar.rules()])


def _answer_or_calls(
    selection: ToolSelection, format: ToolFormat, answer: GrammarSpec, content: tuple[str, ...]
) -> GrammarSpec:
    if answer.kind != "json_schema":
        raise InvalidRequest("'%s' of this kind goes without '%s'", answer.param, "tools")
    grammar = _Grammar(selection, format)
    # a call without a marker could not be distinguished from the answer by its first letters
    block = grammar.block(format.before or ((format.marker,) if format.marker else ()))
    start = f"start: {lark(content)} answer | {block}"
    spec = _spec(selection, [start, f"answer: %json {answer.source}", *grammar.rules()])
    return replace(spec, param=answer.param)


@dataclass(frozen=True, slots=True)
class _Grammar:
    selection: ToolSelection
    format: ToolFormat

    def free(self, content: tuple[str, ...]) -> str:
        """Any text, or text up to a call, and calls from there on."""
        if content:
            return f"{lark(content)} /(?s:.*)/ | {self.block(self.format.before)}"
        if self.format.bare:
            text = r"/(?s:\s*[^\s\[{].*)?/"
            begin = f"{marker(self.format.marker)}? " if self.format.marker else ""
            return f"{text} | {begin}{self.block(self.format.before)}"
        begin, *before = self.format.before
        text_pattern = f"/(?s:.*)/ & ~/(?s:.*){pattern(begin)}(?s:.*)/"
        return f"TEXT | ...{marker(begin)} {self.block(tuple(before))}\nTEXT: {text_pattern}"

    def block(self, before: tuple[str, ...]) -> str:
        """One call, or several. A text that nothing ends but the answer is the last."""
        begin, between, after = lark(before), lark(self.format.between), lark(self.format.after)
        several = self.selection.parallel and self._is_followed and bool(self.format.between)
        blocks = []
        if self._is_followed:
            more = f"({between} call){{0,{MAX_CALLS - 1}}}" if several else ""
            blocks.append([begin, "call", more, after])
        if self.selection.grammars:
            earlier = f"(call {between}){{0,{MAX_CALLS - 1}}}" if several else ""
            blocks.append([begin, earlier, "text-call"])
        texts = [" ".join(filter(None, each)) for each in blocks]
        return texts[0] if len(texts) == 1 else f"({' | '.join(texts)})"

    @property
    def _is_followed(self) -> bool:
        """Some calls have an end of their own."""
        return bool(self.format.text_end) or len(self.selection.grammars) < len(self.selection.callable)

    def rules(self) -> list[str]:
        calls, texts, rules = [], [], []
        for rule in self._each():
            if not rule.text:
                calls.append(rule.name)
                rules += self.format.call_rules(rule)
                continue
            texts.append(rule.name)
            rules += self.format.text_rules(rule)
            if self.format.text_end:
                calls.append(f"{rule.name}-ended")
                rules.append(f"{rule.name}-ended: {rule.name} {self._text_end}")
        ways = {"call": calls, "text-call": texts}
        return [*(f"{name}: {' | '.join(each)}" for name, each in ways.items() if each), *rules]

    @property
    def _text_end(self) -> str:
        end = self.format.text_end
        return "" if end in self.format.between else lark([end])  # that of the next call is enough

    def _each(self) -> Iterator[CallRule]:
        for place, (function, param) in enumerate(zip(self.selection.callable, self.selection.params, strict=True)):
            grammar = self.selection.grammars.get(function.name)
            yield CallRule(f"text-call-{place}" if grammar else f"call-{place}", function, param, grammar)


def _spec(selection: ToolSelection, lines: list[str]) -> GrammarSpec:
    strict = [param for param, each in zip(selection.params, selection.callable, strict=True) if each.strict]
    named = strict if strict else selection.params  # those of which something can be wrong
    return GrammarSpec("lark", "\n".join(lines), param=named[0] if len(named) == 1 else "tools")
