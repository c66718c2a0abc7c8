"""Models of the settings that come, go and change while others answer."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.errors import ModelNotFound
from services.model_service import ModelManager
from services.models.config import ModelConfig
from services.models.entry import ModelChanges
from tests.fakes import FakeEngine

CHAT, OTHER = ModelConfig("chat", "chat-source"), ModelConfig("other", "other-source")
CHANGED = replace(CHAT, source="another-source")


class Engine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def stop(self) -> None:
        await super().stop()
        self.ended.set()


class Builder:
    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.built: list[str] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, kind: str, /, *, source: str, **options: object) -> Engine:
        self.built.append(source)
        self.begun.set()
        self.gate.wait()
        self.engines[source] = Engine()
        return self.engines[source]


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
async def models(builder: Builder) -> AsyncIterator[ModelManager]:
    models = ModelManager([CHAT, OTHER], build=builder)
    yield models
    builder.gate.set()
    await models.stop()


def names(models: ModelManager) -> list[str]:
    return [card.id for card in models.cards()]


async def test_what_is_as_it_was_stays_loaded(models: ModelManager, builder: Builder) -> None:
    engine = await models.get_model("chat")
    assert models.reconfigure([replace(CHAT), OTHER], {}) == ModelChanges([], [], [])
    assert await models.get_model("chat") is engine
    assert not engine.stopped


async def test_one_is_added_and_one_removed(models: ModelManager, builder: Builder) -> None:
    removed = await models.get_model("other")
    new = ModelConfig("new", "new-source")
    assert models.reconfigure([new, CHAT], {"alias": "new"}) == ModelChanges(["new"], [], ["other"])
    assert names(models) == ["new", "chat"]
    with pytest.raises(ModelNotFound):
        models.check("other", "chat")
    await removed.ended.wait()
    assert models.default().name == "new"  # the first
    assert await models.get_model("alias") is builder.engines["new-source"]


async def test_an_answer_is_made_to_its_end_by_the_engine_it_began_with(models: ModelManager, builder: Builder) -> None:
    async with models.lease("chat") as before:
        assert models.reconfigure([CHANGED, OTHER], {}) == ModelChanges([], ["chat"], [])
        async with models.lease("chat") as after:
            assert after.engine is builder.engines["another-source"]
            assert after.engine is not before.engine
        assert not before.engine.stopped
    await before.engine.ended.wait()
    assert not after.engine.stopped


async def test_one_that_is_being_loaded_answers_those_who_wait_for_it(models: ModelManager, builder: Builder) -> None:
    builder.gate.clear()
    waiting = asyncio.create_task(models.get_model("chat"))
    await asyncio.to_thread(builder.begun.wait)
    models.reconfigure([CHANGED, OTHER], {})
    builder.gate.set()
    assert await waiting is builder.engines["chat-source"]
    await builder.engines["chat-source"].ended.wait()
    assert await models.get_model("chat") is builder.engines["another-source"]
    assert builder.built == ["chat-source", "another-source"]


async def test_preloaded_ones_are_loaded_at_once(models: ModelManager, builder: Builder) -> None:
    engine = await models.get_model("other")
    builder.begun.clear()
    models.reconfigure([CHANGED, OTHER], {}, preload=["chat", "other"])
    await asyncio.to_thread(builder.begun.wait)
    assert builder.built == ["other-source", "another-source"]
    assert await models.get_model("other") is engine


async def test_pulled_ones_stay(models: ModelManager) -> None:
    pulled = ModelConfig("pulled", "pulled-source")
    models.add(pulled)
    assert models.reconfigure([CHAT], {}) == ModelChanges([], [], ["other"])
    assert names(models) == ["chat", "pulled"]
    await models.remove("pulled")  # it is not one of the settings


async def test_one_name_for_two_changes_nothing(models: ModelManager) -> None:
    twice = replace(OTHER, adapters={"chat": "folder"})
    with pytest.raises(ValueError, match="two models are called 'chat'"):
        models.reconfigure([CHAT, twice], {})
    assert names(models) == ["chat", "other"]


async def test_a_stop_ends_those_that_are_still_used(models: ModelManager) -> None:
    async with models.lease("chat") as lease:
        models.reconfigure([OTHER], {})
        await models.stop()
        assert lease.engine.stopped
