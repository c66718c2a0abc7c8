"""What stands before a call and between calls: markers and white space."""

import re
from collections.abc import Iterable

from services.chat.formats.base import Step
from services.chat.parsing.scanner import Scanner


class CallGap:
    """Is kept until a call comes, for it is content if none does; after one it is dropped.

    `ends`: what may come after a call only. `blank`: a character that may come anywhere.
    """

    def __init__(self, scanner: Scanner, marker: str, ends: Iterable[str], blank: re.Pattern[str]) -> None:
        self._scanner = scanner
        self._marker = marker
        self._ends = tuple(each for each in ends if each)
        self._blank = blank
        self._passed: str | None = ""  # None: a call came

    def open(self, marker: str) -> None:
        self._passed = marker

    def close(self) -> None:
        """A call came."""
        self._passed = None

    def rejected(self) -> str:
        passed, self._passed = self._passed or "", ""
        return passed

    def step(self) -> Step | None:
        """None: what comes now is a call, or none."""
        scanner = self._scanner
        after_call = self._passed is None
        markers = [each for each in (self._marker, *(self._ends if after_call else ())) if each]
        for marker in markers:
            if scanner.text.startswith(marker):
                self._take(len(marker), is_kept=marker == self._marker)
                return Step.GO_ON
        if any(scanner.may_become(marker) for marker in markers):
            return Step.WAIT
        if after_call and scanner.is_over and any(each.startswith(scanner.text) for each in self._ends):
            scanner.take(len(scanner.text))  # the answer was cut in it
            return Step.WAIT
        if self._blank.match(scanner.text):
            self._take(1, is_kept=not after_call)
            return Step.GO_ON
        return None

    def _take(self, size: int, *, is_kept: bool) -> None:
        taken = self._scanner.take(size)
        if is_kept:
            self._passed = (self._passed or "") + taken
