"""Whole answers of a model that knows nothing but Qwen3's tokens and template: whatever it draws, the form holds."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from schemas.chat_schema import ChatCompletionRequest
from schemas.tool_schema import CustomToolCall, MessageToolCall
from services.chat_service import ChatService
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Loaded
from services.engine.local import LocalEngine
from services.model_service import ModelManager
from services.models.config import ModelConfig
from tests.npm_packages import tokenizer

BUDGET = 12
SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SEEDS = range(4)


def engine(kind: str, /, **options: object) -> LocalEngine:
    qwen = tokenizer("qwen3")
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}
    config = AutoConfig.for_model("qwen3", vocab_size=len(qwen), **shape, **heads)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    end = frozenset([qwen.eos_token_id])
    loaded = Loaded(model, qwen, end, 1024, torch.device("cpu"), torch.float32, len(qwen))
    runner = build_runner(model, num_slots=4, length=1024, budget=100_000_000)
    return LocalEngine(loaded, LocalExecutor(runner), max_num_batched_tokens=512, max_queue=8)


@pytest.fixture
async def models() -> AsyncIterator[ModelManager]:
    models = ModelManager([ModelConfig("qwen", "qwen")], build=engine)
    yield models
    await models.stop()


def request(**fields: Any) -> ChatCompletionRequest:
    body = {"messages": [{"content": "How warm is it?"}], "max_tokens": 200, "thinking_token_budget": BUDGET}
    return ChatCompletionRequest.model_validate({**body, **fields})


def is_valid(text: str) -> bool:
    arguments = json.loads(text)
    return arguments["unit"] in ("celsius", "fahrenheit") and arguments["days"] in range(1, 8) and len(arguments) == 2


async def test_the_tool_is_called_after_thinking_that_keeps_its_budget(chat: ChatService) -> None:
    begins = {str(tokenizer("qwen3").convert_tokens_to_ids("<think>")): 100}
    for seed in SEEDS:
        chat_request = request(tools=[TOOL], tool_choice=NAMED, seed=seed, logit_bias=begins)
        answer = await chat.create(chat_request, "me")
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or []
        assert isinstance(call, MessageToolCall)
        assert is_valid(call.function.arguments)
        assert choice.message.reasoning_content
        # with its mark, and perhaps without white space at its end
        assert BUDGET - 2 <= answer.usage.completion_tokens_details.reasoning_tokens <= BUDGET + 1


async def test_the_stream_adds_up_to_the_plain_answer(chat: ChatService) -> None:
    for seed in SEEDS:
        chat_request = request(tools=[TOOL], tool_choice="required", seed=seed, parallel_tool_calls=False)
        message = (await chat.create(chat_request, "me")).choices[0].message
        deltas = [chunk.choices[0].delta async for chunk in chat.stream(chat_request, "me")]
        assert "".join(delta.reasoning_content or "" for delta in deltas) == (message.reasoning_content or "")
        arguments = [call.function.arguments for delta in deltas for call in delta.tool_calls]
        assert "".join(arguments) == "".join(call.function.arguments for call in message.tool_calls or [])


async def test_what_has_a_form_comes_after_thinking(chat: ChatService) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    for seed in SEEDS:
        message = (await chat.create(request(response_format=form, seed=seed), "me")).choices[0].message
        assert message.content
        assert is_valid(message.content)


async def test_thinking_that_is_off_leaves_the_call(chat: ChatService) -> None:
    chat_request = request(
        tools=[TOOL], tool_choice="required", enable_thinking=False, seed=1, parallel_tool_calls=False
    )
    message = (await chat.create(chat_request, "me")).choices[0].message
    assert message.tool_calls
    assert message.reasoning_content is None


async def test_answers_that_are_free_or_calls(chat: ChatService) -> None:
    for seed in SEEDS:
        chat_request = request(tools=[TOOL], seed=seed, max_tokens=40, parallel_tool_calls=False, enable_thinking=False)
        (choice,) = (await chat.create(chat_request, "me")).choices
        assert choice.message.content or choice.message.tool_calls


async def test_custom_tools_are_held_to_their_grammars(chat: ChatService) -> None:
    lark = 'start: "*** Begin\\n" line+ "*** End"\nline: ("+" | "-") /[^\\n]{0,9}/ LF\n%import common.LF'
    for syntax, definition, whole in (
        ("lark", lark, r"\*\*\* Begin\n([+-][^\n]{0,9}\n)+\*\*\* End"),
        ("regex", r'[a-z]{3}"\d\n', r'[a-z]{3}"\d\n'),
    ):
        format = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
        tool = {"type": "custom", "custom": {"name": "patch", "format": format}}
        choice = {"type": "custom", "custom": {"name": "patch"}}
        ends = {str(tokenizer("qwen3").convert_tokens_to_ids("***")): 5}
        for seed in SEEDS[:2]:
            chat_request = request(tools=[tool], tool_choice=choice, seed=seed, enable_thinking=False, logit_bias=ends)
            (call,) = (await chat.create(chat_request, "me")).choices[0].message.tool_calls or []
            assert isinstance(call, CustomToolCall)
            assert re.fullmatch(whole, call.custom.input), call.custom.input
