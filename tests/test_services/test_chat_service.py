"""One pipeline, two modes, and what is remembered of it."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from database.session import Database
from schemas.chat_schema import ChatCompletionRequest
from services.chat import items
from services.chat.events import Reply, reply_of
from services.chat_service import ChatContext, ChatService
from services.conversation_service import ConversationService, StoredMessage
from services.engine.base import Job
from services.errors import (
    Conflict,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    Unavailable,
    UnsupportedParameter,
)
from services.history.turn import TurnRequest
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models.config import ModelConfig
from services.turn_service import IdempotencyKey, TurnService
from tests.apps import MODEL
from tests.databases import free_port
from tests.fakes import FakeEngine, FakeStream, Pause


def request(content: str = "hi", **fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [{"content": content}], **fields})


async def streamed(chat: ChatService, chat_request: ChatCompletionRequest, owner: str = "me") -> str:
    chunks = [chunk async for chunk in chat.stream(chat_request, owner)]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def plain(chat: ChatService, chat_request: ChatCompletionRequest, owner: str = "me") -> str:
    return (await chat.create(chat_request, owner)).choices[0].message.content or ""


BOTH = pytest.mark.parametrize("answer", [plain, streamed])


class Memory:
    """A conversation of one turn, and a look at what is stored of it."""

    def __init__(self, service: ConversationService, id: str) -> None:
        self.id = id
        self._service = service

    async def messages(self) -> list[StoredMessage]:
        return (await self._service.messages("me", self.id, limit=100)).data

    async def rows(self) -> list[tuple[str, object, str]]:
        return [(each.role, each.content, each.status) for each in await self.messages()]


async def begun(chat: ChatService, turns: TurnService, chat_request: ChatCompletionRequest) -> Reply:
    input_items = items.from_messages(chat_request.messages)
    turn = await turns.new_turn(TurnRequest(owner="me", input=input_items, create=True))
    return await reply_of(chat.run(chat_request, "me", ChatContext(turn)))


@pytest.fixture
async def memory(conversations: ConversationService, chat: ChatService, turns: TurnService) -> Memory:
    reply = await begun(chat, turns, request("first"))
    assert reply.head
    assert reply.head.conversation_id
    return Memory(conversations, reply.head.conversation_id)


FIRST = [("user", "first", "completed"), ("assistant", "Hello, world!", "completed")]


class TestAnswers:
    @BOTH
    async def test_answer_is_the_engines_output(self, chat: ChatService, answer) -> None:
        assert await answer(chat, request()) == "Hello, world!"

    @given(pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8))
    @settings(max_examples=30)
    async def test_stream_and_plain_answer_are_equal(
        self, chat: ChatService, engine: FakeEngine, pieces: list[str]
    ) -> None:
        engine.script = tuple(pieces)
        assert await streamed(chat, request()) == await plain(chat, request()) == "".join(pieces)

    async def test_usage_counts_prompt_and_answer(self, chat: ChatService, engine: FakeEngine) -> None:
        usage = (await chat.create(request(), "me")).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(engine.jobs[0].prompt), 3)
        assert usage.total_tokens == usage.prompt_tokens + 3

    async def test_answers_have_ids_of_their_own(self, chat: ChatService) -> None:
        first, second = await chat.create(request(), "me"), await chat.create(request(), "me")
        assert first.id != second.id
        assert first.id.startswith("chatcmpl-")
        assert first.system_fingerprint == second.system_fingerprint

    async def test_length_is_reported(self, chat: ChatService, engine: FakeEngine) -> None:
        engine.finish = "length"
        assert (await chat.create(request(), "me")).choices[0].finish_reason == "length"

    async def test_the_requested_name_is_answered(self, engine: FakeEngine, turns: TurnService) -> None:
        models = ModelManager([ModelConfig(MODEL, MODEL)], aliases={"gpt-4o": "default"}, build=engine.builder())
        chat = ChatService(models, turns, Metrics())
        assert (await chat.create(request(model="gpt-4o"), "me")).model == "gpt-4o"
        assert (await chat.create(request(), "me")).model == MODEL
        await models.stop()

    async def test_settings_fill_what_a_request_leaves_open(
        self, models: ModelManager, turns: TurnService, engine: FakeEngine
    ) -> None:
        chat = ChatService(models, turns, Metrics(), system_prompt="be brief", max_new_tokens=5)
        await chat.create(request(), "me")
        assert engine.prompts == ["<system>be brief\n<user>hi\n<assistant>\n"]
        assert engine.jobs[0].sampling.max_tokens == 5

    async def test_metadata_comes_back(self, chat: ChatService) -> None:
        assert (await chat.create(request(metadata={"a": "b"}), "me")).metadata == {"a": "b"}

    async def test_model_in_use_is_not_freed(self, engine: FakeEngine, turns: TurnService) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        config = ModelConfig(MODEL, MODEL, idle_ttl=1)
        now = iter(range(0, 10_000, 100))
        models = ModelManager([config], build=engine.builder(), clock=lambda: float(next(now)))
        chat = ChatService(models, turns, Metrics())
        answering = asyncio.create_task(plain(chat, request()))
        await pause.reached.wait()
        await models.reap()
        pause.go.set()
        assert await answering == "Hello"
        await models.reap()
        assert engine.stopped


class TestChoices:
    async def test_each_has_a_seed_of_its_own_and_the_prompt_counts_once(
        self, chat: ChatService, engine: FakeEngine
    ) -> None:
        answer = await chat.create(request(n=3, seed=7), "me")
        assert [(each.index, each.message.content) for each in answer.choices] == [
            (index, "Hello, world!") for index in range(3)
        ]
        assert [job.sampling.seed for job in engine.jobs] == [7, 8, 9]
        assert len({job.prompt for job in engine.jobs}) == 1
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(engine.jobs[0].prompt), 9)

    async def test_one_that_is_refused_takes_the_others_with_it(
        self, chat: ChatService, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submit = engine.submit

        async def submit_two(job: Job) -> FakeStream:
            if len(engine.running) == 2:
                raise Overloaded("full")
            return await submit(job)

        monkeypatch.setattr(engine, "submit", submit_two)
        with pytest.raises(Overloaded):
            await chat.create(request(n=3), "me")
        assert len(engine.jobs) == 2
        assert not engine.running

    async def test_a_conversation_goes_on_with_one(self, chat: ChatService, memory: Memory) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await chat.create(request(n=2, conversation=memory.id), "me")
        assert refused.value.param == "n"


async def test_priority_reaches_the_engine_with_every_choice(chat: ChatService, engine: FakeEngine) -> None:
    await chat.create(request(priority=-3, n=2), "me")
    assert [job.priority for job in engine.jobs] == [-3, -3]


async def test_a_prompt_is_counted_whether_or_not_it_fits(chat: ChatService, engine: FakeEngine) -> None:
    await plain(chat, request())
    assert await chat.count(request(), "me") == len(engine.jobs[0].prompt)
    assert await chat.count(request("x" * 100 * engine.max_length), "me") > engine.max_length


async def test_owner_and_salt_reach_the_engine_with_every_choice(chat: ChatService, engine: FakeEngine) -> None:
    await chat.create(request(cache_salt="salt", n=2), "me")
    assert [(job.owner, job.cache_salt) for job in engine.jobs] == [("me", "salt")] * 2


@pytest.mark.parametrize("keep", [None, 12])
async def test_what_is_cut_off_a_prompt_is_not_what_is_public(
    models: ModelManager, turns: TurnService, engine: FakeEngine, keep: int | None
) -> None:
    chat = ChatService(models, turns, Metrics(), system_prompt="Be kind.")
    await chat.create(request(truncate_prompt_tokens=keep), "me")
    (job,) = engine.jobs
    assert bytes(job.prompt[: job.num_public]).decode() == ("<" if keep else "<system>Be kind.\n<user>")


class TestRefusals:
    @BOTH
    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"model": "nothing"}, ModelNotFound),
            ({"functions": [{"name": "f"}]}, UnsupportedParameter),
            ({"conversation": "conv_" + "0" * 32}, NotFound),
            ({"conversation": "nonsense"}, NotFound),
        ],
        ids=["model", "parameter", "conversation", "no id"],
    )
    async def test_nothing_is_loaded_for_it(
        self, chat: ChatService, engine: FakeEngine, answer, fields: dict[str, object], error: type[ServiceError]
    ) -> None:
        with pytest.raises(error):
            await answer(chat, request(**fields))
        assert engine.starts == 0

    @BOTH
    @pytest.mark.parametrize("error", [Overloaded("full"), PromptTooLong(9, 8), EngineFailed("broken")], ids=type)
    async def test_nothing_is_stored_for_it(
        self, chat: ChatService, engine: FakeEngine, memory: Memory, answer, error: ServiceError
    ) -> None:
        engine.refusal = error
        with pytest.raises(type(error)):
            await answer(chat, request(conversation=memory.id))
        assert await memory.rows() == FIRST

    async def test_no_conversation_is_made_for_it(
        self, chat: ChatService, turns: TurnService, engine: FakeEngine, conversations: ConversationService
    ) -> None:
        engine.refusal = Overloaded("full")
        with pytest.raises(Overloaded):
            await begun(chat, turns, request())
        assert (await conversations.messages("me", None, limit=10)).data == []

    async def test_unknown_keys_are_named(self, chat: ChatService) -> None:
        assert chat.unknown_keys(request(zebra=1)) == ["zebra"]


class TestConversations:
    @BOTH
    async def test_turn_is_stored_whole(self, chat: ChatService, memory: Memory, answer) -> None:
        await answer(chat, request("second", conversation=memory.id))
        assert await memory.rows() == [
            *FIRST,
            ("user", "second", "completed"),
            ("assistant", "Hello, world!", "completed"),
        ]
        reply = (await memory.messages())[-1]
        assert (reply.finish_reason, reply.model) == ("stop", MODEL)

    @BOTH
    async def test_history_comes_in_front(self, chat: ChatService, memory: Memory, engine: FakeEngine, answer) -> None:
        await answer(chat, request("second", conversation={"id": memory.id}))
        assert engine.prompts[-1] == "<user>first\n<assistant>Hello, world!\n<user>second\n<assistant>\n"

    async def test_content_parts_come_back_from_history_unchanged(
        self, chat: ChatService, memory: Memory, engine: FakeEngine
    ) -> None:
        parts = [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]
        chat_request = request(
            messages=[{"role": "developer", "content": parts}, {"content": "x"}], conversation=memory.id
        )
        await chat.create(chat_request, "me")
        await chat.create(request("third", conversation=memory.id), "me")
        assert "<system>second\n<user>x\n" in engine.prompts[-1]
        assert (await memory.messages())[2].content == parts

    async def test_server_prompt_is_not_remembered(
        self, models: ModelManager, turns: TurnService, engine: FakeEngine, memory: Memory
    ) -> None:
        chat = ChatService(models, turns, Metrics(), system_prompt="be brief")
        await chat.create(request("second", conversation=memory.id), "me")
        assert engine.prompts[-1].startswith("<system>be brief\n<user>first")
        assert [role for role, _, _ in await memory.rows()] == ["user", "assistant"] * 2

    @BOTH
    async def test_somebody_elses_is_not_found(self, chat: ChatService, memory: Memory, answer) -> None:
        with pytest.raises(NotFound) as refused:
            await answer(chat, request(conversation=memory.id), "somebody else")
        assert refused.value.param == "conversation"

    @BOTH
    async def test_without_one_nothing_is_stored(
        self, chat: ChatService, conversations: ConversationService, answer
    ) -> None:
        await answer(chat, request())
        assert (await conversations.messages("me", None, limit=10)).data == []

    @BOTH
    async def test_failure_midway_keeps_the_output(
        self, chat: ChatService, memory: Memory, engine: FakeEngine, answer
    ) -> None:
        engine.script = ("Hel", EngineFailed("broken"), "lo")
        with pytest.raises(EngineFailed):
            await answer(chat, request("second", conversation=memory.id))
        assert (await memory.rows())[2:] == [("user", "second", "completed"), ("assistant", "Hel", "incomplete")]
        assert not engine.running

    async def test_incomplete_answer_is_history_too(
        self, chat: ChatService, memory: Memory, engine: FakeEngine
    ) -> None:
        engine.script = ("Hel", EngineFailed("broken"))
        with pytest.raises(EngineFailed):
            await plain(chat, request("second", conversation=memory.id))
        engine.script = ("ok",)
        await plain(chat, request("go on", conversation=memory.id))
        assert engine.prompts[-1].endswith("<user>second\n<assistant>Hel\n<user>go on\n<assistant>\n")

    async def test_reader_that_leaves_ends_the_answer(
        self, chat: ChatService, memory: Memory, engine: FakeEngine
    ) -> None:
        engine.script = ("Hel", Pause())
        async with aclosing(chat.stream(request("second", conversation=memory.id), "me")) as chunks:
            assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "Hel"]
        assert not engine.running
        assert (await memory.rows())[-1] == ("assistant", "Hel", "incomplete")

    @BOTH
    async def test_cancelled_caller_keeps_the_output(
        self, chat: ChatService, memory: Memory, engine: FakeEngine, answer
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        answering = asyncio.create_task(answer(chat, request("second", conversation=memory.id)))
        await pause.reached.wait()
        answering.cancel()
        await asyncio.wait([answering])
        assert not engine.running
        assert (await memory.rows())[-1] == ("assistant", "Hel", "incomplete")

    async def test_reader_that_leaves_after_the_finish_has_a_complete_answer(
        self, chat: ChatService, memory: Memory
    ) -> None:
        async with aclosing(chat.stream(request("second", conversation=memory.id), "me")) as chunks:
            async for chunk in chunks:
                if chunk.choices[0].finish_reason:
                    break
        assert (await memory.rows())[-1] == ("assistant", "Hello, world!", "completed")

    async def test_two_writers_do_not_mix(self, chat: ChatService, memory: Memory, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        answering = asyncio.create_task(plain(chat, request("second", conversation=memory.id)))
        await pause.reached.wait()
        with pytest.raises(Conflict):
            await plain(chat, request("meanwhile", conversation=memory.id))
        pause.go.set()
        assert await answering == "Hello"
        assert len(engine.running) == 0
        assert [content for _, content, _ in await memory.rows()] == ["first", "Hello, world!", "second", "Hello"]

    async def test_storing_is_refused_while_the_database_is_away_and_nothing_else(
        self, models: ModelManager, engine: FakeEngine
    ) -> None:
        away = Database(f"postgresql://parley@127.0.0.1:{free_port()}/parley")
        chat = ChatService(models, TurnService(away, writer="a-host:1"), Metrics())
        idempotency_key = IdempotencyKey("key", "digest")
        assert (await chat.create(request(), "me", idempotency_key)).choices[0].message.content == "Hello, world!"
        for chat_request in (request(store=True), request(conversation="conv_" + "0" * 32)):
            with pytest.raises(Unavailable):
                await chat.create(chat_request, "me", idempotency_key)
            with pytest.raises(Unavailable):
                await chat.create(chat_request, "me")
        assert not engine.running
        await away.close()

    @BOTH
    async def test_answer_is_given_though_it_cannot_be_stored_yet(
        self,
        chat: ChatService,
        turns: TurnService,
        memory: Memory,
        engine: FakeEngine,
        sqlite_url: str,
        answer,
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        answering = asyncio.create_task(answer(chat, request("second", conversation=memory.id)))
        await pause.reached.wait()
        other = Database(sqlite_url)
        async with other.write() as session:
            await session.execute(text("ALTER TABLE turns RENAME TO away"))
        pause.go.set()
        assert await answering == "Hello"
        async with other.write() as session:
            await session.execute(text("ALTER TABLE away RENAME TO turns"))
        await other.close()
        await turns.checkpoints.checkpoint()
        assert (await memory.rows())[-1] == ("assistant", "Hello", "completed")
