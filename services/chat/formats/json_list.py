"""A JSON list of calls and nothing else, for models whose template shows no format that is known here."""

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with

JSON_LIST = JsonCalls(
    name="json",
    detects=lambda template: False,
    headers=(object_with("arguments"), object_with("parameters")),
    before=("[",),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]",),
    bare=True,
)
