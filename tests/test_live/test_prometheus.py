"""A real Prometheus scrapes a served app, and answers every expression of the dashboard and the alerts."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.apps import Site, post
from tests.databases import free_port
from tests.test_tools import test_deploy

SCRAPE_S = 1
VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "1m"}

pytestmark = pytest.mark.extended


@pytest.fixture
async def prometheus(server: Site, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus")
    target, port = server.client.base_url.netloc.decode(), free_port()
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(test_deploy.RULES)],
        "scrape_configs": [{"job_name": "parley", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    paths = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command = [program, *paths, f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def query(prometheus: httpx2.AsyncClient, expression: str) -> list[object]:
    answer = (await prometheus.get("/api/v1/query", params={"query": expression})).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[object] = answer["data"]["result"]
    return found


async def scraped(prometheus: httpx2.AsyncClient) -> None:
    while True:
        try:
            if await query(prometheus, "parley_request_success_total"):
                return
        except (httpx2.TransportError, ValueError):  # it starts
            pass
        await asyncio.sleep(0.1)


async def test_every_expression_is_answered(server: Site, prometheus: httpx2.AsyncClient) -> None:
    await post(server, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    async with asyncio.timeout(60):
        await scraped(prometheus)
    for expression in test_deploy.TestMonitoring().expressions():
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        await query(prometheus, expression)
    assert len(await query(prometheus, 'sum(up{job="parley"})')) == 1
    rules = (await prometheus.get("/api/v1/rules")).json()["data"]["groups"][0]["rules"]
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert len(rules) == test_deploy.RULES.read_text("utf-8").count("alert:")
