"""A summary is written by the model, in as many portions as its context needs."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat_service import ChatService
from services.errors import EngineFailed, Overloaded, PromptTooLong
from services.summary_service import SummaryService, SummaryWriter
from tests.agents import apps
from tests.fakes import NotingEngine

PROMPT = SummaryPrompt("fake-chat", max_tokens=256)
ALWAYS_THINKS = apps.THINKS.replace("{% if enable_thinking is false %}<think></think>{% endif %}", "<think>\n")


@pytest.fixture
def engine() -> NotingEngine:
    return NotingEngine(max_length=4_096)


@pytest.fixture
def service(chat: ChatService) -> SummaryService:
    return SummaryService(chat)


async def write(service: SummaryService, transcript: str, prompt: SummaryPrompt = PROMPT) -> SummaryWriter:
    async with aclosing(await service.begin(transcript, prompt, "me")) as summary:
        await summary.start()
        while await summary.write():
            pass
    return summary


async def test_a_summary_is_written(service: SummaryService, engine: NotingEngine) -> None:
    summary = await write(service, "[user]\nHi")
    assert summary.text == "The notes."
    assert "<conversation>\n[user]\nHi\n</conversation>" in engine.prompts[-1]
    assert (summary.finish.prompt_tokens, summary.finish.completion_tokens) == (len(engine.jobs[-1].prompt), 2)


async def test_instructions_are_abridged(service: SummaryService, engine: NotingEngine) -> None:
    await write(service, "[user]\nHi", replace(PROMPT, instructions="Serve tea. " + "x" * 9_000))
    assert "Serve tea." in engine.prompts[-1]


async def test_what_outgrows_the_context_is_read_in_portions(service: SummaryService, engine: NotingEngine) -> None:
    lines = [f"[user]\nLine {number}: {'x' * 50}" for number in range(200)]
    summary = await write(service, "\n\n".join(lines))
    assert len(engine.jobs) > 4
    prompts = "".join(engine.prompts)
    assert [prompts.count(line) for line in lines] == [1] * len(lines)
    assert all("<notes>\nThe notes.\n</notes>" in prompt for prompt in engine.prompts[1:])
    assert all(len(job.prompt) + PROMPT.max_tokens <= engine.max_length for job in engine.jobs)
    assert summary.finish.prompt_tokens == sum(len(job.prompt) for job in engine.jobs)


async def test_a_context_without_room_is_too_short(service: SummaryService, engine: NotingEngine) -> None:
    engine.max_length = 1_000
    with pytest.raises(PromptTooLong):
        await write(service, "[user]\n" + "x" * 5_000)


async def test_later_portions_wait_for_room(
    service: SummaryService, engine: NotingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, refused = engine.submit, iter([False, True, True, *[False] * 9])

    async def sometimes(job: object) -> object:
        if next(refused):
            raise Overloaded("full", retry_after=0)
        return await submit(job)  # type: ignore[arg-type]  # it is a job

    monkeypatch.setattr(engine, "submit", sometimes)
    assert (await write(service, "[user]\n" + "x " * 3_000)).text == "The notes."


async def test_later_portions_wait_for_other_long_texts(
    service: SummaryService, chat: ChatService, engine: NotingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are many enough, at first, for none of the second portion's tokens to be counted."""
    count, refused = chat.prompt_of, iter([True, True])

    async def sometimes(*args: Any, **options: Any) -> tuple[int, ...]:
        if engine.jobs and next(refused, False):
            raise Overloaded("full", retry_after=0)
        return await count(*args, **options)

    monkeypatch.setattr(chat, "prompt_of", sometimes)
    assert (await write(service, "[user]\n" + "x " * 3_000)).text == "The notes."


async def test_the_first_is_refused(service: SummaryService, engine: NotingEngine) -> None:
    engine.refusal = Overloaded("full")
    with pytest.raises(Overloaded):
        await write(service, "[user]\nHi")


async def test_a_model_that_can_does_not_think(service: SummaryService, engine: NotingEngine) -> None:
    engine.tokenizer = apps.Tokenizer(apps.THINKS)
    await write(service, "[user]\nHi", replace(PROMPT, max_thinking_tokens=100))
    assert engine.prompts[-1].rstrip().endswith("<think></think>")
    assert engine.jobs[-1].sampling.max_tokens == PROMPT.max_tokens


async def test_a_thought_is_no_part_of_it(service: SummaryService, engine: NotingEngine) -> None:
    engine.tokenizer = apps.Tokenizer(ALWAYS_THINKS)
    engine.notes = ("I had better", " be short.", "</think>", "The notes.")
    summary = await write(service, "[user]\nHi", replace(PROMPT, max_thinking_tokens=100))
    assert summary.text == "The notes."
    assert engine.jobs[-1].sampling.thinking is not None
    assert engine.jobs[-1].sampling.max_tokens == PROMPT.max_tokens + 100


async def test_a_model_that_writes_none_has_failed(service: SummaryService, engine: NotingEngine) -> None:
    engine.notes = (" \n",)
    with pytest.raises(EngineFailed, match="no summary"):
        await write(service, "[user]\nHi")
