"""Arguments that are written as literals of another notation than JSON, as JSON text while they come."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from services.chat.formats.literal_values import CUT_OFF, ESCAPE, json_of_bare, quoted, unescaped
from services.chat.parsing.scanner import Scanner
from services.engine.stop_strings import overlap

CLOSERS, OPENERS = ")]}", "([{"
BRACKETS = re.compile(r"[,()\[\]{}]")
BARE_KEY = {  # by what is between it and its value
    "=": re.compile(r"[^\s=:,(){}\[\]'\"]+"),
    ":": re.compile(r"[^\s:,(){}\[\]'\"][^:,(){}\[\]'\"]*"),
}


@dataclass(frozen=True, slots=True)
class Quote:
    """What begins a string, what ends it, and whether backslashes in it mean something."""

    begin: str
    end: str
    has_escapes: bool = True
    is_raw: bool = False  # a quote behind a backslash does not end it


@dataclass(slots=True)
class _Open:
    """An object (`assign` is between key and value) or a list."""

    close: str
    assign: str = ""
    json_end: str = ""
    size: int = 0


class LiteralReader:
    """Reads the members of one object, up to `close`, and writes them as a JSON object.

    What is no literal is a string. `names`: of arguments that come without one. Text that has been written stays valid
    JSON, as far as it goes, whatever comes.
    """

    def __init__(
        self,
        scanner: Scanner,
        write: Callable[[str], None],
        quotes: Sequence[Quote],
        assign: str,
        close: str,
        names: Sequence[str] = (),
    ) -> None:
        self._scanner = scanner
        self._write = write
        self._quotes = sorted(quotes, key=lambda each: len(each.begin), reverse=True)
        self._names = names
        self._stack = [_Open(close, assign, "}")]
        self._out = ["{"]
        self._quote: Quote | None = None
        self._key: list[str] | None = None  # of a key in quotes, as it comes
        self._seen, self._depth = 0, 0  # of what comes without quotes
        self._step: Callable[[], bool] = self._member

    def read(self) -> bool:
        """Whether the end has come."""
        while self._stack and self._step():
            pass
        if self._out:
            self._write("".join(self._out))
            self._out = []
        return not self._stack

    def _go(self, step: Callable[[], bool]) -> bool:
        self._step = step
        return True

    # --- steps: each says whether to go on at once ---

    def _member(self) -> bool:
        """Where a key, an element or the end is."""
        scanner = self._scanner
        if not scanner.skip_blank():
            return False
        if scanner.text[0] in CLOSERS:
            return self._close()
        if scanner.text[0] == ",":
            scanner.take(1)
            return True
        top = self._stack[-1]
        if not top.assign:
            self._separate()
            return self._go(self._value)
        return self._name(top)

    def _name(self, top: _Open) -> bool:
        scanner = self._scanner
        if top.assign == "=" and (found := re.match(r"\*\*\s*\{", scanner.text)):
            scanner.take(found.end())
            self._stack.append(_Open("}", ":", size=top.size))
            return True
        if top.assign == "=" and not scanner.is_over and re.fullmatch(r"\*\*?\s*", scanner.text):
            return False
        if (quote := self._opened()) is None:
            return False
        if quote and top.assign != "=":
            self._key = []
            return self._begin_string(quote)
        found = BARE_KEY[top.assign].match(scanner.text)
        rest = scanner.text[found.end() :].lstrip() if found else scanner.text
        if not rest and not scanner.is_over:
            return False
        if found and rest.startswith(top.assign):
            scanner.take(found.end())
            self._write_key(found[0].rstrip())
            return self._go(self._assign)
        self._write_key(self._names[top.size] if top.size < len(self._names) else str(top.size))
        return self._go(self._value)

    def _assign(self) -> bool:
        scanner = self._scanner
        if not scanner.skip_blank():
            return False
        if scanner.text.startswith(self._stack[-1].assign):
            scanner.take(1)
        return self._go(self._value)

    def _value(self) -> bool:
        scanner = self._scanner
        if not scanner.skip_blank():
            return False
        if (quote := self._opened()) is None:
            return False
        if quote:
            self._out.append('"')
            return self._begin_string(quote)
        if scanner.text[0] in OPENERS:
            return self._open(scanner.take(1))
        self._seen, self._depth = 0, 0
        return self._go(self._bare)

    def _opened(self) -> Quote | Literal[False] | None:
        """What begins a string here; False: nothing does; None: more text will tell."""
        scanner = self._scanner
        if not scanner.is_over and any(
            len(each.begin) > len(scanner.text) and scanner.may_become(each.begin) for each in self._quotes
        ):
            return None
        return next((each for each in self._quotes if scanner.text.startswith(each.begin)), False)

    def _begin_string(self, quote: Quote) -> bool:
        self._scanner.take(len(quote.begin))
        self._quote = quote
        return self._go(self._string)

    def _string(self) -> bool:
        assert self._quote
        scanner, quote = self._scanner, self._quote
        if scanner.text.startswith(quote.end):
            return self._closing(quote)
        if quote.has_escapes and scanner.text.startswith("\\"):
            return self._escape(quote)
        ends = (quote.end, "\\") if quote.has_escapes else (quote.end,)
        places = [place for each in ends if (place := scanner.text.find(each)) >= 0]
        held = 0 if scanner.is_over else overlap(scanner.text, (quote.end,))
        size = min(places, default=len(scanner.text) - held)
        self._add(quoted(scanner.take(size)))
        return bool(places)

    def _closing(self, quote: Quote) -> bool:
        """A quote ends a string if what can follow one does: models leave out escapes, as some templates do."""
        behind = self._scanner.text[len(quote.end) :].lstrip()
        if not behind and quote.has_escapes and not self._scanner.is_over:
            return False
        followers = (",", *CLOSERS) if self._key is None else (":",)
        if behind and quote.has_escapes and not behind.startswith(followers):
            self._add(quoted(self._scanner.take(1)))
            return True
        self._scanner.take(len(quote.end))
        return self._end_string()

    def _escape(self, quote: Quote) -> bool:
        scanner = self._scanner
        if quote.is_raw:
            if len(scanner.text) < 2 and not scanner.is_over:
                return False
            self._add(quoted(scanner.take(2)))
            return bool(scanner.text)
        if not scanner.is_over and CUT_OFF.fullmatch(scanner.text):
            return False
        found = ESCAPE.match(scanner.text)
        self._add(unescaped(scanner.take(found.end() if found else 1)))
        return True

    def _add(self, text: str) -> None:
        (self._out if self._key is None else self._key).append(text)

    def _end_string(self) -> bool:
        if self._key is None:
            self._out.append('"')
            return self._go(self._after)
        key, self._key = "".join(self._key), None
        self._write_key(key, is_quoted=True)
        return self._go(self._assign)

    def _open(self, letter: str) -> bool:
        if letter == "{":
            self._stack.append(_Open("}", ":", "}"))
        else:
            self._stack.append(_Open(CLOSERS[OPENERS.index(letter)], json_end="]"))
        self._out.append("{" if letter == "{" else "[")
        return self._go(self._member)

    def _bare(self) -> bool:
        """A number, a word, or what is neither: up to a comma or a bracket that was opened before it."""
        scanner = self._scanner
        for found in BRACKETS.finditer(scanner.text, self._seen):
            if self._depth == 0 and found[0] not in OPENERS:
                self._out.append(json_of_bare(scanner.take(found.start()).strip()))
                return self._go(self._after)
            self._depth += (found[0] in OPENERS) - (found[0] in CLOSERS)
        self._seen = len(scanner.text)
        if scanner.is_over:
            self._out.append(json_of_bare(scanner.take(self._seen).strip()))
        return False

    def _after(self) -> bool:
        scanner = self._scanner
        if not scanner.skip_blank():
            return False
        if scanner.text[0] in CLOSERS:
            return self._close()
        scanner.take(1)  # a comma
        return self._go(self._member)

    def _close(self) -> bool:
        """Also those inside that were left open. What closes none of them ends the outermost, or is dropped inside."""
        letter = self._scanner.text[0]
        if letter not in (each.close for each in self._stack) and len(self._stack) > 1:
            self._scanner.take(1)
            return self._go(self._after)
        top = self._stack.pop()
        self._out.append(top.json_end)
        if not top.json_end:
            self._stack[-1].size = top.size
        if letter == top.close:
            self._scanner.take(1)
        return self._go(self._after)

    # --- what they write ---

    def _separate(self) -> None:
        top = self._stack[-1]
        if top.size:
            self._out.append(", ")
        top.size += 1

    def _write_key(self, key: str, *, is_quoted: bool = False) -> None:
        self._separate()
        self._out.append(f'"{key if is_quoted else quoted(key)}": ')
