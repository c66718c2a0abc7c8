"""Mistral Small 3.2, Devstral, Ministral: `[TOOL_CALLS]name[ARGS]{…}`."""

from services.chat.formats.json_calls import ARGUMENTS, NAME_HERE, JsonCalls
from services.chat.formats.mistral import HEADERS, short_id


def _detect(template: str) -> bool:
    return "[TOOL_CALLS]" in template and "[ARGS]" in template


MISTRAL_ARGS = JsonCalls(
    name="mistral-args",
    detects=_detect,
    headers=HEADERS,
    before=("[TOOL_CALLS]",),
    call=(NAME_HERE, "[ARGS]", ARGUMENTS),
    between=("[TOOL_CALLS]",),
    marker="[TOOL_CALLS]",
    ids=short_id,
)
