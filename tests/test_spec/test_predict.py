"""POST /predict."""

import json
from typing import Any

import httpx2
import pytest

from services.errors import EngineFailed
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine


async def predict(site: Site, **fields: Any) -> httpx2.Response:
    return await site.client.post("/predict", json=fields)


@pytest.mark.parametrize("name", ["input", "prompt"])
async def test_output_is_the_answer(site: Site, engine: FakeEngine, name: str) -> None:
    answer = await predict(site, **{name: "hi"})
    assert (answer.status_code, answer.json()) == (200, {"output": "Hello, world!"})
    assert engine.prompts == ["<user>hi\n<assistant>\n"]


async def test_body_of_any_content_type(site: Site) -> None:
    answer = await site.client.post("/predict", content=json.dumps({"input": "hi"}))
    assert answer.json() == {"output": "Hello, world!"}


async def test_streamed_it_is_lines(site: Site) -> None:
    answer = await predict(site, input="hi", stream=True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["output"] for line in answer.text.splitlines()] == ["Hello", ", ", "world!"]


async def test_sampling_reaches_the_engine(site: Site, engine: FakeEngine) -> None:
    await predict(site, input="hi", model=MODEL, max_tokens=5, temperature=0, top_p=0.5, top_k=3, seed=4, stop="x")
    params = engine.jobs[0].sampling
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (5, 0, 0.5, 3)
    assert (params.seed, params.stop) == (4, ("x",))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": "hi", "prompt": "hi"}, "input"),
        ({"input": ""}, "input"),
        ({"input": 4.0}, "input"),
        ({"input": "hi", "temperature": 3}, "temperature"),
        ({"input": "hi", "stop": [""]}, "stop.0"),
        ({"input": "hi", "model": "other"}, "model"),
    ],
    ids=str,
)
async def test_refusals(site: Site, fields: dict[str, Any], param: str) -> None:
    answer = await predict(site, **fields)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


async def test_unknown_key_is_named(site: Site) -> None:
    assert (await predict(site, input="hi", top=1)).headers["x-parley-ignored"] == "top"


async def test_error_on_the_way_is_the_last_line(site: Site, engine: FakeEngine) -> None:
    engine.script = ("one", EngineFailed("out of luck"))
    answer = await predict(site, input="hi", stream=True)
    *_, last = map(json.loads, answer.text.splitlines())
    assert last["error"]["message"] == "out of luck"


async def test_path_is_a_setting(new_site: NewSite) -> None:
    site = await new_site(server={"predict_path": "/v1/predict"})
    assert (await site.client.post("/v1/predict", json={"input": "hi"})).status_code == 200
    assert (await predict(site, input="hi")).status_code == 404
    site = await new_site(server={"predict_path": ""})
    assert (await predict(site, input="hi")).status_code == 404


async def test_what_is_too_long_is_its_input(site: Site, engine: FakeEngine) -> None:
    engine.max_length = 10
    answer = await site.client.post("/predict", json={"input": "hi"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "input", "context_length_exceeded")
