"""What a chat completion's parameters are called elsewhere."""

import pytest

from services.errors import InvalidRequest, PromptTooLong
from services.parameter_names import renamed, translate_error

NAMES = {
    "effort": "config.effort",
    "format": "config.format.",
    "tools.*.function": "tools.*",
    "tools.*.function.parameters": "tools.*.input_schema",
    "tools.1": "tools.3",
    "messages.2": "messages.1.content.0.",
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("effort", "config.effort"),
        ("efforts", "efforts"),
        ("format.json_schema.schema", "config.format"),
        ("tools.0.function.parameters", "tools.0.input_schema"),
        ("tools.0.function.name", "tools.0.name"),
        ("tools.1.function.name", "tools.1.name"),
        ("tools.1.type", "tools.3.type"),
        ("messages.2.content.0.image_url.url", "messages.1.content.0"),
        ("messages.0.content", "messages.0.content"),
    ],
)
def test_the_longest_beginning_decides(path: str, name: str) -> None:
    assert renamed(path, NAMES) == name


def test_messages_have_it_too() -> None:
    error = InvalidRequest("'%s' must be 'none' where '%s' is 5%%", "effort", "tools.0.function.name")
    translated = translate_error(error, NAMES)
    assert (translated.message, translated.param) == (
        "'config.effort' must be 'none' where 'tools.0.name' is 5%",
        "config.effort",
    )


def test_prompt_too_long_has_the_protocols_message() -> None:
    translated = translate_error(PromptTooLong(9, 8, param="messages"), NAMES, "{tokens} > {limit}")
    assert (translated.message, type(translated)) == ("9 > 8", PromptTooLong)
