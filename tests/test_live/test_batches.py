"""Batches of real processes that are killed: no line is lost, answered twice or counted twice."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch
from sqlalchemy import text

from database.session import Database
from tests.test_live.service import MODELS, Service, running, until
from tests.test_live.test_responses import client_of
from tools.faults import tiny_model

pytestmark = pytest.mark.live

LINES = 100
BODY = {"messages": [{"role": "user", "content": "Count to three."}], "max_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"), MODELS / "SmolLM2-135M-Instruct")


def settings_of(model: Path, database_url: str) -> dict[str, str]:
    return {"DATABASE__URL": database_url, "MODEL__NAME": str(model), "ENGINE__MAX_NUM_SEQS": "4"}


def create(client: OpenAI) -> str:
    requests = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": BODY}
        for number in range(LINES)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    window: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.batches.create(input_file_id=file.id, **window).id


def has_done(client: OpenAI, batch_id: str, lines: int) -> bool:
    counts = client.batches.retrieve(batch_id).request_counts
    return counts is not None and counts.completed >= lines


def ended(client: OpenAI, batch_id: str) -> Batch:
    def found() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status.endswith("ed") else None

    return until(found)


def tokens_of(client: OpenAI, batch: Batch) -> int:
    """Of its answers, of which there is one for each line."""
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.output_file_id
    output = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(int(each["custom_id"]) for each in output) == [*range(LINES)]
    return sum(each["response"]["body"]["usage"]["completion_tokens"] for each in output)


@contextmanager
def standing_still(service: Service) -> Iterator[None]:
    service.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        service.process.send_signal(signal.SIGCONT)


async def check(client: OpenAI, batch: Batch, database_url: str) -> None:
    await check_all(client, [batch], database_url)


async def check_all(client: OpenAI, batches: Sequence[Batch], database_url: str) -> None:
    """All batches that there are."""
    tokens = sum(tokens_of(client, each) for each in batches)
    database = Database(database_url)
    async with database.read() as session:
        query = text("SELECT sum(requests), sum(completion_tokens) FROM usage_hours")
        assert (*(await session.execute(query)).one(),) == (len(batches) * LINES, tokens)
        assert await session.scalar(text("SELECT count(*) FROM batch_results")) == 0
    await database.close()


async def test_a_batch_goes_on_after_each_kill(model: Path, folder: Path, database_url: str) -> None:
    settings = settings_of(model, database_url)
    with running(folder, **settings) as service, client_of(service) as client:
        batch_id = create(client)
        until(lambda: has_done(client, batch_id, 5))
        service.kill()
    with running(folder, **settings) as service, client_of(service) as client:
        until(lambda: has_done(client, batch_id, 50))
        service.kill()
    with running(folder, **settings) as service, client_of(service) as client:
        await check(client, ended(client, batch_id), database_url)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_another_process_takes_it_over(model: Path, folder: Path, database_url: str) -> None:
    settings = settings_of(model, database_url)
    with running(folder, **settings) as one, client_of(one) as client:
        batch_id = create(client)
        with running(folder, **settings) as other, client_of(other) as reading:
            until(lambda: has_done(reading, batch_id, 10))
            one.kill()
            await check(reading, ended(reading, batch_id), database_url)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_a_process_that_was_taken_for_dead_repeats_nothing(model: Path, folder: Path, database_url: str) -> None:
    """It stands still until another has taken its batch over, and goes on in the middle of its requests."""
    settings = settings_of(model, database_url)
    with running(folder, **settings) as one, client_of(one) as client:
        batch_id = create(client)
        with running(folder, **settings) as other, client_of(other) as reading:
            until(lambda: has_done(reading, batch_id, 10))
            with standing_still(one):
                counts = reading.batches.retrieve(batch_id).request_counts
                assert counts is not None
                until(lambda: has_done(reading, batch_id, min(counts.completed + 5, LINES)))
            await check(reading, ended(reading, batch_id), database_url)


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_batches_of_several_processes_outlive_each_of_them(model: Path, folder: Path, database_url: str) -> None:
    settings = settings_of(model, database_url)
    with (
        running(folder, **settings) as one,
        client_of(one) as to_one,
        running(folder, **settings) as other,
        client_of(other) as to_other,
    ):
        ids = [create(client) for client in (to_one, to_other)]
        until(lambda: all(has_done(to_other, each, 5) for each in ids))
        one.kill()
        batches = [ended(to_other, each) for each in ids]
        await check_all(to_other, batches, database_url)
