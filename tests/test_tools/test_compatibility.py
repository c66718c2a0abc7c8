"""docs/compatibility.md is generated from the code and complete."""

from operator import attrgetter
from typing import Any

import pytest
from openai import OpenAI
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tools import compatibility


@pytest.fixture(scope="module")
def page() -> str:
    return compatibility.current()


def test_the_page_is_up_to_date(page: str) -> None:
    assert compatibility.PAGE.read_text() == page, "run: python -m tools.compatibility"


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("CreateChatCompletionRequest", chat_create_params.CompletionCreateParamsStreaming),
        ("CompletionRequest", completion_create_params.CompletionCreateParamsStreaming),
        ("EmbeddingRequest", embedding_create_params.EmbeddingCreateParams),
        ("ResponseRequest", response_create_params.ResponseCreateParamsStreaming),
    ],
)
def test_every_parameter_of_the_official_client_is_in_it(page: str, name: str, contract: Any) -> None:
    table = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert [each for each in contract.__annotations__ if f"| `{each}` |" not in table] == []


def test_every_named_method_exists_in_the_client(page: str) -> None:
    client = OpenAI(api_key="none")
    for route, methods in compatibility.CALLED_BY.items():
        assert f"| `{route}` |" in page
        first, *others = methods.split(", ")
        for method in [first, *(first.rpartition(".")[0] + other for other in others)]:
            assert callable(attrgetter(method)(client))
