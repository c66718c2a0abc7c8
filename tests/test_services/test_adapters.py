"""LoRA adapters are models of their own by name, on the engine of the model that they change."""

from typing import Any

import pytest

from services.engine.base import Job
from services.engine.loading.unusable import UnusableModel
from services.errors import EngineFailed, InvalidRequest, ModelNotFound
from services.model_service import ModelManager
from services.models.config import ModelConfig
from tests.fakes import FakeEngine


class AdaptableEngine(FakeEngine):
    """Reads no folders; one called `broken` cannot be applied."""

    broken: tuple[str, ...] = ("broken",)

    def __init__(self) -> None:
        super().__init__("said")
        self.adapters: dict[str, str] = {}

    async def load_adapter(self, name: str, folder: str) -> None:
        if folder in self.broken:
            raise UnusableModel("broken has no weights")
        self.adapters[name] = folder

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]


def manager(engine: type[FakeEngine] = AdaptableEngine, adapters: dict[str, str] | None = None) -> ModelManager:
    def build(kind: str, /, **options: Any) -> FakeEngine:
        return engine()

    base = ModelConfig("base", "source", adapters={"sql": "sql-folder"} if adapters is None else adapters)
    return ModelManager([base, ModelConfig("embedding", "source", kind="embedding")], build=build)


async def test_jobs_carry_the_adapter_that_the_request_names() -> None:
    models = manager()
    fingerprints = set()
    for name, adapter in (("sql", "sql"), ("base", None), (None, None)):
        async with models.lease(name) as lease:
            assert (lease.id, lease.name) == ("base", name or "base")
            fingerprints.add(lease.fingerprint)
            async with lease.submitted([Job("job", (1,))]):
                assert lease.engine.jobs[-1].adapter == adapter
    assert len(fingerprints) == 2


async def test_adapters_are_listed_with_their_model() -> None:
    models = manager()
    assert [(card.id, card.parent) for card in models.cards()] == [("base", None), ("sql", "base"), ("embedding", None)]
    assert models.card("sql").parent == "base"
    assert not models.card("sql").loaded
    await models.get_model("sql")
    assert models.card("sql").loaded
    assert models.engine("sql") is models.engine("base") is not None


async def test_adapters_come_and_go() -> None:
    models = manager()
    await models.load_adapter("more", "more-folder")
    engine = await models.get_model("more")
    assert engine.adapters == {"sql": "sql-folder", "more": "more-folder"}
    with pytest.raises(InvalidRequest, match="is loaded already: 'load_inplace' replaces it"):
        await models.load_adapter("more", "other-folder")
    await models.load_adapter("more", "other-folder", in_place=True)
    assert engine.adapters["more"] == "other-folder"
    assert models.unload_adapter("more")
    assert not models.unload_adapter("more")
    assert not models.unload_adapter("base")
    with pytest.raises(ModelNotFound):
        models.check("more", "chat")


async def test_an_adapter_cannot_have_a_models_name() -> None:
    models = manager()
    with pytest.raises(InvalidRequest, match="'lora_name' is the name of another model"):
        await models.load_adapter("embedding", "folder")
    with pytest.raises(InvalidRequest, match="not a model for chat"):
        await models.load_adapter("more", "folder", "embedding")
    with pytest.raises(ValueError, match="two models are called 'base'"):
        manager(adapters={"base": "folder"})


async def test_an_engine_without_adapters_says_so() -> None:
    models = manager(FakeEngine, {})
    with pytest.raises(InvalidRequest, match="takes no LoRA adapters"):
        await models.load_adapter("more", "folder")


async def test_a_configured_adapter_that_cannot_be_applied_fails_the_model(caplog: pytest.LogCaptureFixture) -> None:
    models = manager(adapters={"sql": "broken"})
    with pytest.raises(EngineFailed):
        await models.get_model()
    assert models.has_failed() is False  # the model is not required here
    assert "ADAPTERS['sql']: broken has no weights" in caplog.text
    assert models.engine("base") is None


async def test_adapters_return_with_their_model(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a request has loaded and that is no longer there costs the others nothing."""
    models = manager()
    await models.load_adapter("more", "more-folder")
    await models.load_adapter("gone", "gone-folder")
    await models.unload("base")
    monkeypatch.setattr(AdaptableEngine, "broken", ("broken", "gone-folder"))
    assert (await models.get_model()).adapters == {"sql": "sql-folder", "more": "more-folder"}
    assert "adapter gone is no longer served" in caplog.text
    assert [card.id for card in models.cards()] == ["base", "sql", "more", "embedding"]
