"""A server's batches as a benchmark target, on the app itself."""

import pytest
import typer

from services.errors import EngineFailed
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine
from tests.test_app.test_bombs import CoarseTokenizer, FakeEmbedder
from tools.bench.batch import Batches
from tools.bench.command import parse
from tools.bench.load import ChatLoad, EmbeddingLoad, Load
from tools.bench.rounds import Plan, Round, run

CHAT = ChatLoad(streams=2, requests=5, words=16, tokens=8, fixed_length=True)


async def rounds_of(server: Site, load: Load, seconds: float = 60.0, model: str = "") -> list[Round]:
    target = parse(f"batch=batch:{server.client.base_url}/v1{model}", {})
    assert isinstance(target, Batches)
    await target.check()
    return [each async for each in run(Plan([target], [load], 1, seconds, seed=0))]


async def test_a_round_is_a_batch(server: Site, engine: FakeEngine) -> None:
    warm_up, counted = await rounds_of(server, CHAT)
    assert [len(each.answers) for each in (warm_up, counted)] == [5, 5]
    assert {(each.units > 0, each.first, each.error) for each in counted.answers} == {(True, None, None)}
    assert counted.seconds > 0
    batches = (await server.client.get("/v1/batches")).json()["data"]
    assert [each["request_counts"] for each in batches] == [{"total": 5, "completed": 5, "failed": 0}] * 2
    assert len(set(engine.prompts)) == 10


async def test_embeddings_are_counted_in_texts(new_server: NewSite) -> None:
    engine = FakeEmbedder("Hello", max_length=4096)
    engine.tokenizer = CoarseTokenizer()  # type: ignore[assignment]
    site = await new_server(build=engine.builder())
    _, counted = await rounds_of(site, EmbeddingLoad(streams=2, texts=8, batch=4), model="#fake-embedding")
    assert sorted(each.units for each in counted.answers) == [4, 4]


async def test_failed_lines_are_errors(new_server: NewSite) -> None:
    site = await new_server(build=FakeEngine(EngineFailed("broken")).builder())
    _, counted = await rounds_of(site, CHAT)
    assert len(counted.answers) == 5
    assert all(each.error and not each.units for each in counted.answers)


async def test_a_round_ends_at_its_limit(server: Site) -> None:
    _, counted = await rounds_of(server, CHAT, seconds=1e-9)
    assert [each.error for each in counted.answers] == ["cut off at the end of its round's time"]


async def test_a_server_without_files_is_an_error(server: Site) -> None:
    target = Batches("batch", f"{server.client.base_url}/nowhere", "default")
    played = [each async for each in run(Plan([target], [CHAT], 1, 60.0, seed=0))]
    assert [answer.error is not None for each in played for answer in each.answers] == [True, True]


@pytest.mark.parametrize("target", ["a=batch:nowhere", "a=batch:http://127.0.0.1:9/v1#m+store"])
def test_invalid_targets_are_reported(target: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"NAME=URL|\+store"):
        parse(target, {})
