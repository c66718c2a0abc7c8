"""Pydantic AI against the real service and the real model."""

from typing import Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.test_live.service import CHAT

pytestmark = pytest.mark.live

QUESTION = "Write a story about a lighthouse."


class Weather(BaseModel):
    """How the weather is."""

    sky: Literal["clear", "cloudy", "rainy"]
    is_cold: bool


@pytest.fixture
def model(async_client: AsyncOpenAI) -> OpenAIChatModel:
    provider = OpenAIProvider(openai_client=async_client)
    return OpenAIChatModel(CHAT, provider=provider, settings=ModelSettings(temperature=0, max_tokens=24))


async def test_chat_and_stream_say_the_same(model: OpenAIChatModel) -> None:
    agent = Agent(model, instructions="Be brief.")
    whole = await agent.run(QUESTION)
    async with agent.run_stream(QUESTION) as stream:
        texts = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(texts) == whole.output != ""
    assert len(texts) > 10
    assert whole.usage.output_tokens == 24


async def test_structured_output(model: OpenAIChatModel) -> None:
    agent = Agent(model, output_type=NativeOutput(Weather))
    assert isinstance((await agent.run("It rains, and it is freezing.")).output, Weather)


async def test_tools(model: OpenAIChatModel) -> None:
    """Its output is a call that is forced."""
    agent = Agent(model, output_type=Weather, model_settings=ModelSettings(temperature=0, max_tokens=80))
    assert isinstance((await agent.run("It rains, and it is freezing.")).output, Weather)
    async with agent.run_stream("It rains, and it is freezing.") as stream:
        assert isinstance(await stream.get_output(), Weather)
