"""Mistral up to Nemo: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`."""

from services.chat.formats.json_calls import ARGUMENTS, NAME, SPACE, Header, JsonCalls, object_with

NAMED = Header.of(NAME, r"\[", *"ARGS", r"\]", SPACE, wrapped=False)  # f[ARGS]
NUMBERED = Header.of(NAME, r"\[", *"CALL_ID", r"\]", "[a-zA-Z0-9_-]*", r"\[", *"ARGS", r"\]", SPACE, wrapped=False)
HEADERS = (object_with("arguments"), NAMED, NUMBERED)  # models of either generation write both forms


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
    short_ids=True,
)
