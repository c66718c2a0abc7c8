"""What a JSON schema says of a string, as regular expressions: for formats whose strings have no escapes of JSON."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import regex_to_lark

COMBINED = {"allOf", "anyOf", "oneOf", "not", "if"}
FREE = "(?s:.*)"
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "email": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,8}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
ATOMIC = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # of regular expressions: escapes and classes
MAX_PATTERN = 2000  # characters
NOT_REGULAR = re.compile(r"[$^]|\(\?[=!<]")  # beside those
REFERENCE = re.compile(r"\\[1-9bBkAZ]")


def expressions(known: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Keywords of the schema, each with what it demands. None: it cannot be enforced."""
    least, most = _length(known.get("minLength")) or 0, _length(known.get("maxLength"))
    if least or most is not None:
        yield "maxLength" if most is not None else "minLength", f"(?s:.{{{least},{'' if most is None else most}}})"
    if "pattern" in known:
        yield "pattern", _expression(known["pattern"])
    if "format" in known:
        yield "format", FORMATS.get(str(known["format"]))
    for keyword in sorted(COMBINED & known.keys()):
        yield keyword, None


def _length(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _expression(source: object) -> str | None:
    """Matches texts in which a JSON schema's pattern is found. None: it is no regular language, or not seen to be."""
    text = str(source)
    if len(text) > MAX_PATTERN:
        return None
    begins, ends = text.startswith("^"), re.search(r"(?<!\\)(?:\\\\)*\$$", text) is not None
    inner = text[begins : len(text) - ends]
    bare = ATOMIC.sub("", inner)
    is_plain = not NOT_REGULAR.search(bare) and not any(map(REFERENCE.match, ATOMIC.findall(inner)))
    if not is_plain or ((begins or ends) and _has_alternatives(bare)):
        return None
    try:
        re.compile(inner)
    except (re.error, RecursionError, OverflowError):
        return None
    return f"{'' if begins else FREE}({regex_to_lark(inner, 'd')}){'' if ends else FREE}"


def _has_alternatives(bare: str) -> bool:
    """Of which an anchor would belong to one only."""
    depth = 0
    for letter in bare:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            return True
    return False
