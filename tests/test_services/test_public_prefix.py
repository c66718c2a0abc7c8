"""What of a prompt is the server's own: never a token of a caller's."""

import pytest

from services.chat.request import prompt
from services.chat.request.public_prefix import num_public, public_prefix
from tests.fakes import FakeTokenizer
from tests.test_engine.tiny_tokenizers import smollm

SYSTEM = "You are Parley."
DATED = "{% if messages[0].role == 'system' %}{{ messages[0].content }}|{% endif %}{{ messages[-1].content }}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        (None, None, ""),
        (None, SYSTEM, f"System: {SYSTEM}\nUser: "),
        (DATED, None, ""),
        (DATED, SYSTEM, f"{SYSTEM}|"),
        (REFUSES, SYSTEM, ""),
    ],
)
def test_it_ends_where_the_callers_text_begins(template: str | None, system: str | None, expected: str) -> None:
    tokenizer = FakeTokenizer(template)

    assert tokenizer.decode(list(public_prefix(tokenizer, system))) == expected


def test_the_default_model_has_a_system_prompt_of_its_own() -> None:
    tokenizer = smollm()
    own = tokenizer.decode(public_prefix(tokenizer, None))
    given = tokenizer.decode(public_prefix(tokenizer, SYSTEM))

    assert own.startswith("<|im_start|>system\n")
    assert own.endswith("<|im_end|>\n<|im_start|>user\n")
    assert given == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"


def test_a_prompt_is_public_as_far_as_it_is_the_servers() -> None:
    tokenizer = smollm()
    public = public_prefix(tokenizer, SYSTEM)

    def rendered(system: str) -> tuple[int, ...]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "a secret"}]
        return prompt.encoded(messages, tokenizer, {"add_generation_prompt": True}).ids

    assert num_public(rendered(SYSTEM), public) == len(public)
    assert tokenizer.decode(rendered("You are Bob.")[: num_public(rendered("You are Bob."), public)]) == (
        "<|im_start|>system\nYou are"
    )
    assert num_public(public[:3], public) == 3
    assert num_public((), public) == 0
