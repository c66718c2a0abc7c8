"""Mistral up to Nemo: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`."""

import hashlib

from services.chat.formats.json_calls import ARGUMENTS, NAME, SPACE, Header, JsonCalls, object_with

NAMED = Header.of(NAME, r"\[", *"ARGS", r"\]", SPACE, wrapped=False)  # f[ARGS]
NUMBERED = Header.of(NAME, r"\[", *"CALL_ID", r"\]", "[a-zA-Z0-9_-]*", r"\[", *"ARGS", r"\]", SPACE, wrapped=False)
HEADERS = (object_with("arguments"), NAMED, NUMBERED)  # models of either generation write both forms


def short_id(id: str, name: str, place: int) -> str:
    """Nine letters and digits, which is all that templates take: the same for the same id, whoever made it."""
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def _detect(template: str) -> bool:
    return "[TOOL_CALLS]" in template and "[ARGS]" not in template


MISTRAL = JsonCalls(
    name="mistral",
    detects=_detect,
    headers=HEADERS,
    before=("[TOOL_CALLS]", "["),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]",),
    marker="[TOOL_CALLS]",
    ids=short_id,
)
