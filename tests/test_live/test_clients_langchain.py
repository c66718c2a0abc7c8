"""LangChain's client for OpenAI's API against the real service and the real model."""

from typing import Literal

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.test_live.service import CHAT, Service

pytestmark = pytest.mark.live

QUESTION = "Write a story about a lighthouse."


class Weather(BaseModel):
    """How the weather is."""

    sky: Literal["clear", "cloudy", "rainy"]
    is_cold: bool


@pytest.fixture
def chat(service: Service) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{service.url}/v1", api_key="unused", model=CHAT, temperature=0, max_tokens=24)


def test_chat_and_stream_say_the_same(chat: ChatOpenAI) -> None:
    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content != ""
    assert len(chunks) > 10
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] == 24
    assert whole.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]) -> None:
    found = chat.with_structured_output(Weather, method=method).invoke("It rains, and it is freezing.")
    assert isinstance(found, Weather)


def test_tools(chat: ChatOpenAI) -> None:
    asking = chat.bind_tools([Weather], tool_choice="required")
    answer = asking.invoke("How is the weather in Oslo?")
    (call,) = answer.tool_calls
    assert call["name"] == "Weather"
    assert Weather.model_validate(call["args"])
    streamed = None
    for chunk in asking.stream("How is the weather in Oslo?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [(call["name"], call["args"])]


def test_embeddings(service: Service) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{service.url}/v1",
        api_key="unused",
        model="default",
        dimensions=64,
        check_embedding_ctx_length=False,  # it would fetch the tokenizer of a model of OpenAI's
    )
    assert [len(each) for each in embeddings.embed_documents(["a cat", "a dog"])] == [64, 64]
