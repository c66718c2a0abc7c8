"""Loaded once, shared, freed when idle: engines are fakes, the clock is turned by hand."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from services.engine.base import SamplingDefaults
from services.errors import EngineFailed, InvalidRequest, ModelNotFound, Unavailable
from services.model_service import ModelManager, reason
from services.models.config import ModelConfig
from tests.fakes import FakeEngine


class Builder:
    """Counts what it builds; stands still while `gate` is closed, fails while `failure` is set."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.kinds: list[str] = []
        self.engines: list[FakeEngine] = []
        self.threads: set[int] = set()
        self.failure: Exception | None = None
        self.make: Callable[[], FakeEngine] = FakeEngine
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, kind: str, /, *, source: str, **options: object) -> FakeEngine:
        self.built.append(source)
        self.kinds.append(kind)
        self.threads.add(threading.get_ident())
        self.begun.set()
        self.gate.wait()
        if self.failure:
            raise self.failure
        self.engines.append(self.make())
        return self.engines[-1]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CHAT = ModelConfig("chat", "chat-source", required=True)
OTHER = ModelConfig("other", "other-source", required=True)
EMBEDDING = ModelConfig("embedding", "embedding-source", kind="embedding")


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def manager(builder: Builder, clock: Clock) -> AsyncIterator[Callable[..., ModelManager]]:
    managers = []

    def manager(*configs: ModelConfig, **aliases: str) -> ModelManager:
        models = configs or (CHAT, OTHER, EMBEDDING)
        managers.append(ModelManager(models, aliases=aliases, build=builder, clock=clock))
        return managers[-1]

    yield manager
    builder.gate.set()
    for each in managers:
        await each.stop()


NewManager = Callable[..., ModelManager]


class TestLoading:
    async def test_ten_first_requests_load_once(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        engines = await asyncio.gather(*(models.get_model("chat") for _ in range(10)))
        assert builder.built == ["chat-source"]
        assert set(engines) == {builder.engines[0]}
        assert builder.engines[0].starts == 1

    async def test_event_loop_is_not_the_one_that_loads(self, manager: NewManager, builder: Builder) -> None:
        await manager().get_model("chat")
        assert threading.get_ident() not in builder.threads

    async def test_kind_of_model_decides_on_the_kind_of_engine(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        await models.get_model("chat")
        await models.get_model("embedding", "embedding")
        assert builder.kinds == ["chat", "embedding"]

    async def test_tokenizer_is_the_engines(self, manager: NewManager, builder: Builder) -> None:
        assert await manager().get_tokenizer("chat") is builder.engines[0].tokenizer

    async def test_failed_load_reaches_all_waiters_and_is_retried(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        builder.failure = OSError("/secret/path is not there")
        results = await asyncio.gather(*(models.get_model("chat") for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in results] == [EngineFailed] * 3
        assert "secret" not in str(results[0])
        assert len(builder.built) == 1
        builder.failure = None
        assert await models.get_model("chat") is builder.engines[0]

    async def test_failure_in_our_own_words_is_passed_on(self, manager: NewManager, builder: Builder) -> None:
        builder.failure = Unavailable("No connection to fetch the model")
        with pytest.raises(Unavailable, match="No connection"):
            await manager().get_model("chat")

    async def test_waiter_that_leaves_does_not_take_the_load_along(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        builder.gate.clear()
        first, second = (asyncio.create_task(models.get_model("chat")) for _ in range(2))
        await asyncio.to_thread(builder.begun.wait)
        first.cancel()
        await asyncio.wait([first])
        builder.gate.set()
        assert await second is builder.engines[0]
        assert len(builder.built) == 1

    async def test_load_that_nobody_waits_for_goes_on(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        builder.gate.clear()
        only = asyncio.create_task(models.get_model("chat"))
        await asyncio.to_thread(builder.begun.wait)
        only.cancel()
        await asyncio.wait([only])
        builder.gate.set()
        await models.get_model("chat")
        assert len(builder.built) == 1

    async def test_others_answer_while_one_loads(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        await models.get_model("other")
        assert not models.is_loading()
        builder.begun.clear()
        builder.gate.clear()
        loading = asyncio.create_task(models.get_model("chat"))
        await asyncio.to_thread(builder.begun.wait)
        assert models.is_loading()
        assert await models.get_model("other") is builder.engines[0]
        builder.gate.set()
        await loading
        assert not models.is_loading()

    async def test_one_that_is_not_required_loads_beside_a_ready_service(
        self, manager: NewManager, builder: Builder
    ) -> None:
        models = manager(CHAT, EMBEDDING)
        builder.gate.clear()
        loading = asyncio.create_task(models.get_model("embedding", "embedding"))
        await asyncio.to_thread(builder.begun.wait)
        assert models.is_ready()
        builder.gate.set()
        await loading

    async def test_preload_begins_at_the_start(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        models.start(preload=["other"])
        assert models.is_loading()
        await models.get_model("other")
        assert builder.built == ["other-source"]

    async def test_preload_waits_for_its_sign_and_counts_as_loading_meanwhile(
        self, manager: NewManager, builder: Builder
    ) -> None:
        models = manager()
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        models.start(preload=["chat"], after=opened)
        waiting = asyncio.create_task(models.get_model("chat"))
        await asyncio.sleep(0)
        assert (models.is_loading(), builder.built) == (True, [])
        opened.set_result(None)
        assert await waiting is builder.engines[0]

    async def test_a_stop_before_the_sign_loads_nothing(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failures: list[str] = []
        models.start(preload=["chat"], after=opened, on_failure=lambda name, error: failures.append(name))
        await asyncio.sleep(0)
        opened.cancel()
        await models.stop()
        assert (builder.built, failures) == ([], [])

    async def test_a_failed_preload_is_reported(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        builder.failure = OSError("no such architecture\nand more")
        failures: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        models.start(preload=["chat"], on_failure=lambda name, error: failures.set_result((name, reason(error))))
        assert await failures == ("chat", "OSError: no such architecture")

    @pytest.mark.parametrize("required", [True, False])
    async def test_a_required_model_that_failed_is_missed_until_it_loads(
        self, manager: NewManager, builder: Builder, required: bool
    ) -> None:
        models = manager(ModelConfig("chat", "chat-source", required=required))
        assert not models.has_failed()
        builder.failure = OSError("no memory")
        with pytest.raises(EngineFailed):
            await models.get_model("chat")
        assert models.has_failed() is required
        builder.failure = None
        await models.get_model("chat")
        assert not models.has_failed()

    async def test_source_is_located_first(self, builder: Builder) -> None:
        models = ModelManager([CHAT], locate=lambda source: f"/models/{source}", build=builder)
        await models.get_model()
        assert builder.built == ["/models/chat-source"]
        await models.stop()


class TestNames:
    async def resolved(self, models: ModelManager, name: str | None, kind: str = "chat") -> tuple[str, str]:
        async with models.lease(name, kind) as lease:  # type: ignore[arg-type]
            return lease.id, lease.name

    @pytest.mark.parametrize(
        ("requested", "found"),
        [("other", "other"), ("default", "chat"), (None, "chat"), ("gpt", "other"), ("std", "chat")],
    )
    async def test_names_and_aliases(self, manager: NewManager, requested: str | None, found: str) -> None:
        models = manager(gpt="other", std="default")
        assert await self.resolved(models, requested) == (found, requested or found)

    async def test_default_is_the_first_of_its_kind(self, manager: NewManager) -> None:
        assert await self.resolved(manager(), None, "embedding") == ("embedding", "embedding")
        assert await self.resolved(manager(), "default", "embedding") == ("embedding", "default")

    async def test_unknown_name_is_refused(self, manager: NewManager, builder: Builder) -> None:
        with pytest.raises(ModelNotFound, match="gpt-4o") as refused:
            await self.resolved(manager(), "gpt-4o")
        assert refused.value.param == "model"
        assert builder.built == []

    async def test_name_in_a_refusal_is_bounded(self, manager: NewManager) -> None:
        with pytest.raises(ModelNotFound) as refused:
            await self.resolved(manager(), "x" * 100_000)
        assert len(refused.value.message) < 500

    async def test_star_serves_every_unknown_name_but_shadows_no_known_one(self, manager: NewManager) -> None:
        models = manager(**{"*": "other"})
        assert await self.resolved(models, "gpt-4o") == ("other", "gpt-4o")
        assert await self.resolved(models, "chat") == ("chat", "chat")
        assert await self.resolved(models, "default") == ("chat", "default")

    async def test_wrong_kind_is_refused(self, manager: NewManager, builder: Builder) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await self.resolved(manager(), "embedding")
        assert refused.value.param == "model"
        assert builder.built == []

    async def test_no_model_of_that_kind(self, manager: NewManager) -> None:
        with pytest.raises(ModelNotFound):
            await self.resolved(manager(CHAT), None, "embedding")

    async def test_cards_show_loaded_models(self, manager: NewManager) -> None:
        models = manager(gpt="other")
        await models.get_model("other")
        assert [(card.id, card.loaded) for card in models.cards()] == [
            ("chat", False),
            ("other", True),
            ("embedding", False),
        ]
        assert models.card("gpt").id == "other"
        with pytest.raises(ModelNotFound):
            models.card("nothing")


class TestFreeing:
    IDLE = ModelConfig("idle", "idle-source", idle_ttl=60)

    async def test_idle_one_is_freed_after_its_ttl(self, manager: NewManager, builder: Builder, clock: Clock) -> None:
        models = manager(self.IDLE)
        await models.get_model()
        clock.now = 59
        await models.reap()
        assert not builder.engines[0].stopped
        clock.now = 60
        await models.reap()
        assert builder.engines[0].stopped
        assert models.engine("idle") is None

    async def test_freed_one_is_loaded_again(self, manager: NewManager, builder: Builder, clock: Clock) -> None:
        models = manager(self.IDLE)
        await models.get_model()
        clock.now = 60
        await models.reap()
        assert await models.get_model() is builder.engines[1]

    async def test_use_starts_the_time_anew(self, manager: NewManager, builder: Builder, clock: Clock) -> None:
        models = manager(self.IDLE)
        async with models.lease(None):
            clock.now = 50
        clock.now = 100
        await models.reap()
        assert not builder.engines[0].stopped

    async def test_leased_one_is_not_freed(self, manager: NewManager, builder: Builder, clock: Clock) -> None:
        models = manager(self.IDLE)
        async with models.lease(None), models.lease(None):
            clock.now = 1000
            await models.reap()
            assert not builder.engines[0].stopped
        await models.reap()
        assert not builder.engines[0].stopped
        clock.now = 1060
        await models.reap()
        assert builder.engines[0].stopped

    @pytest.mark.parametrize(
        "config", [CHAT, ModelConfig("p", "p", pinned=True, idle_ttl=60)], ids=["no ttl", "pinned"]
    )
    async def test_others_never(self, manager: NewManager, builder: Builder, clock: Clock, config: ModelConfig) -> None:
        models = manager(config)
        await models.get_model()
        clock.now = 10**9
        await models.reap()
        assert not builder.engines[0].stopped

    async def test_freeing_is_not_loading(self, manager: NewManager, builder: Builder, clock: Clock) -> None:
        models = manager(self.IDLE)
        seen: list[bool] = []

        class Watched(FakeEngine):
            async def stop(self) -> None:
                seen.append(models.is_loading())

        builder.make = Watched
        await models.get_model()
        clock.now = 60
        await models.reap()
        assert seen == [False]

    async def test_stop_frees_them_all(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        await models.get_model("chat")
        await models.get_model("other")
        await models.stop()
        assert [engine.stopped for engine in builder.engines] == [True, True]
        assert models.stats() == {}

    async def test_stats_are_of_loaded_ones(self, manager: NewManager) -> None:
        models = manager()
        await models.get_model("other")
        assert list(models.stats()) == ["other"]


class TestLost:
    async def test_a_lost_engine_is_replaced_and_requests_wait_for_it(
        self, manager: NewManager, builder: Builder
    ) -> None:
        models = manager()
        engine = await models.get_model("chat")
        other = await models.get_model("other")
        builder.gate.clear()
        engine.lost = True

        waiting = asyncio.create_task(models.get_model("chat"))
        await asyncio.sleep(0)
        assert models.is_loading()
        assert not waiting.done()
        builder.gate.set()

        assert await waiting is builder.engines[2]
        assert engine.stopped
        await models.reload_lost()
        assert await models.get_model("chat") is builder.engines[2]
        assert await models.get_model("other") is other

    async def test_a_server_looks_for_them_by_itself(
        self, manager: NewManager, builder: Builder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.model_service.WATCH_S", 0.001)
        models = manager()
        models.start()
        engine = await models.get_model("chat")
        builder.begun.clear()
        engine.lost = True
        assert await asyncio.to_thread(builder.begun.wait, 5)

    async def test_a_server_that_stops_loads_none_again(self, manager: NewManager, builder: Builder) -> None:
        models = manager()
        engine = await models.get_model("chat")
        engine.lost = True
        await models.reload_lost()
        await models.stop()
        assert builder.built == ["chat-source"]


class TestSampling:
    """What holds where requests name nothing."""

    def recommend(self, builder: Builder, *configs: ModelConfig, **from_hub: SamplingDefaults) -> ModelManager:
        return ModelManager(configs, build=builder, recommended=from_hub.get)

    async def test_it_is_known_without_a_load(self, builder: Builder) -> None:
        models = self.recommend(builder, ModelConfig("chat", "here"), here=SamplingDefaults(temperature=0.2))
        assert (await models.sampling("chat")).temperature == 0.2
        assert (await models.sampling(None)).temperature == 0.2
        assert builder.built == []

    async def test_what_is_set_comes_first(self, builder: Builder) -> None:
        own, none = (
            ModelConfig(name, "here", sampling=sampling)
            for name, sampling in (("own", SamplingDefaults(top_p=0.5)), ("none", SamplingDefaults()))
        )
        models = self.recommend(builder, own, none, here=SamplingDefaults(temperature=0.2))
        assert await models.sampling("own") == SamplingDefaults(top_p=0.5)
        assert await models.sampling("none") == SamplingDefaults()

    async def test_what_comes_with_the_load_holds_for_its_first_user(self, builder: Builder) -> None:
        from_hub: dict[str, SamplingDefaults] = {}
        models = ModelManager([ModelConfig("chat", "hub")], build=builder, recommended=from_hub.get)
        assert await models.sampling("chat") == SamplingDefaults()
        from_hub["hub"] = SamplingDefaults(top_k=7)
        async with models.lease("chat") as lease:
            assert lease.sampling == SamplingDefaults(top_k=7)
        assert await models.sampling("chat") == SamplingDefaults(top_k=7)
        await models.stop()
