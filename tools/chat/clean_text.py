"""Removes control characters and escape sequences: what a server sends must not control the terminal."""

import re

# ECMA-48. What is longer than these bounds is text whose introducer is removed.
CSI = r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,16}"
STRING = r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{0,1024}"  # OSC, DCS, SOS, PM, APC
ESCAPE = r"\x1b[ -/]{0,16}"

TOKEN = re.compile(
    rf"{CSI}[@-~]|{STRING}(?:\x07|\x1b\\|\x9c)|{ESCAPE}[0-OQ-WYZ\\`-~]"
    rf"|(?P<open>(?:{CSI}|{STRING}\x1b?|{ESCAPE})\Z)"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters but tab and newline
)


def clean(text: str) -> str:
    return TextCleaner().feed(text)


def clean_line(text: str) -> str:
    """With all white space as single spaces."""
    return " ".join(clean(text).split())


class TextCleaner:
    """Cleans a stream: a sequence may be cut between its pieces. One that is never completed is dropped."""

    def __init__(self) -> None:
        self._open = ""

    def feed(self, text: str) -> str:
        text, self._open = self._open + text, ""
        return TOKEN.sub(self._remove, text)

    def _remove(self, token: re.Match[str]) -> str:
        self._open = token["open"] or ""
        return ""
