"""Llama 3: `{"name": …, "parameters": {…}}`, sometimes behind `<|python_tag|>`."""

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with


def _detect(template: str) -> bool:
    return "ipython" in template and '"parameters' in template


LLAMA = JsonCalls(
    name="llama",
    detects=_detect,
    headers=(object_with("parameters"), object_with("arguments")),
    call=('{"name": "NAME", "parameters": ', ARGUMENTS, "}"),
    between=("; ",),
    marker="<|python_tag|>",
    bare=True,
)
