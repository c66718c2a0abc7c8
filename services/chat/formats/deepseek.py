"""DeepSeek V3 and R1, and as V3.1 has it without the type and the fences:

`<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name` and the arguments in a block of Markdown.
"""

from services.chat.formats.json_calls import ARGUMENTS, NAME, NAME_HERE, SPACE, Header, JsonCalls, letters

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
TYPE, FENCE, FENCE_END = "function", "\n```json\n", "\n```"

# a line end, and no arguments in a block, is what a custom tool's input is behind
_TYPED = (*letters(CALL), SPACE, *TYPE, *letters(SEPARATOR), NAME)
_NAMED = (*letters(CALL), SPACE, NAME, *letters(SEPARATOR))
FENCED = Header.of(*_TYPED, SPACE, *"```json", SPACE, wrapped=False)
PLAIN = Header.of(*_NAMED, "[ \t]*", wrapped=False)
HEADERS = (PLAIN, FENCED)  # models of either generation write both

DEEPSEEK_V3 = JsonCalls(
    name="deepseek-v3",
    detects=lambda template: SEPARATOR in template and "```json" in template,
    headers=HEADERS,
    before=(BEGIN, CALL),
    call=(TYPE, SEPARATOR, f"{NAME_HERE}{FENCE}", ARGUMENTS, FENCE_END, CALL_END),
    between=("\n", CALL),
    after=(END,),
    marker=BEGIN,
    end=CALL_END,
    closing=("```",),
    text=(TYPE, SEPARATOR, f"{NAME_HERE}\n"),
    text_header=Header.of(*_TYPED, "\n", wrapped=False, before=""),
)
DEEPSEEK_V3_1 = JsonCalls(
    name="deepseek-v3.1",
    detects=lambda template: SEPARATOR in template and "```json" not in template,
    headers=HEADERS,
    before=(BEGIN, CALL),
    call=(NAME_HERE, SEPARATOR, ARGUMENTS, CALL_END),
    between=(CALL,),
    after=(END,),
    marker=BEGIN,
    end=CALL_END,
    closing=("```",),
    text=(NAME_HERE, SEPARATOR, "\n"),
    text_header=Header.of(*_NAMED, "\n", wrapped=False, before=""),
)
