"""Ollama's API, asked by its official client."""

import json
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
from ollama import AsyncClient

from services.engine.base import Piece, Times
from services.errors import EngineFailed, Overloaded
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def client(server: Site) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(str(server.client.base_url)) as client:
        yield client


async def post(site: Site, path: str = "/api/chat", **fields: Any) -> Any:
    return await site.client.post(path, json={**HI, **fields} if path == "/api/chat" else fields)


class TestChat:
    async def test_plain(self, client: AsyncClient) -> None:
        answer = await client.chat(**HI)
        assert (answer.message.role, answer.message.content) == ("assistant", "Hello, world!")
        assert (answer.model, answer.done, answer.done_reason) == (MODEL, True, "stop")
        assert (answer.prompt_eval_count, answer.eval_count) == (21, 3)
        assert answer.total_duration
        assert answer.created_at

    async def test_streamed(self, client: AsyncClient) -> None:
        *lines, last = [line async for line in await client.chat(**HI, stream=True)]
        assert [line.message.content for line in lines] == ["Hello", ", ", "world!"]
        assert not any(line.done for line in lines)
        assert (last.message.content, last.done, last.done_reason, last.eval_count) == ("", True, "stop", 3)

    async def test_stream_is_the_default_and_lines_of_json(self, site: Site) -> None:
        answer = await site.client.post("/api/chat", content=json.dumps(HI))  # as curl sends it: of no type
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["done"] for line in lines] == [False, False, False, True]
        assert set(lines[0]) == {"model", "created_at", "message", "done"}

    async def test_durations_are_the_engines(self, client: AsyncClient, engine: FakeEngine) -> None:
        last = Piece("Hello", (1,), "length", times=Times(queued=0.25, prefill=0.5, decode=2))
        engine.script, engine.finish = (last,), None
        answer = await client.chat(**HI)
        assert (answer.prompt_eval_duration, answer.eval_duration) == (500_000_000, 2_000_000_000)
        assert answer.load_duration is not None
        assert answer.done_reason == "length"

    async def test_options(self, client: AsyncClient, engine: FakeEngine) -> None:
        options = {"num_predict": 5, "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 7, "stop": "x"}
        options |= {"repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25}
        await client.chat(**HI, options=options)
        params = engine.jobs[0].sampling
        assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (5, 0, 3, 0.5)
        assert (params.min_p, params.seed, params.stop) == (0.1, 7, ("x",))
        assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.2, 0.5, 0.25)

    async def test_missing_options_take_the_models_defaults(self, client: AsyncClient, engine: FakeEngine) -> None:
        await client.chat(**HI, options={"seed": -1, "num_predict": -1})
        params = engine.jobs[0].sampling
        assert (params.temperature, params.top_k, params.top_p) == (1.0, None, 1.0)
        assert (params.seed, params.max_tokens) == (None, None)

    async def test_tag_behind_a_name_is_taken_off(self, client: AsyncClient) -> None:
        answer = await client.chat(**{**HI, "model": f"{MODEL}:latest"})
        assert answer.model == f"{MODEL}:latest"

    async def test_an_empty_request_loads_the_model(self, site: Site, engine: FakeEngine) -> None:
        answer = (await post(site, messages=[])).json()
        assert (answer["done"], answer["done_reason"], answer["message"]["content"]) == (True, "load", "")
        assert (engine.starts, engine.jobs) == (1, [])
        answer = (await post(site, "/api/generate", model=MODEL)).json()
        assert (answer["done_reason"], answer["response"]) == ("load", "")


class TestGenerate:
    async def test_plain(self, client: AsyncClient, engine: FakeEngine) -> None:
        answer = await client.generate(MODEL, "hi", system="be brief")
        assert (answer.response, answer.done, answer.done_reason) == ("Hello, world!", True, "stop")
        assert engine.prompts == ["<system>be brief\n<user>hi\n<assistant>\n"]

    async def test_streamed(self, client: AsyncClient) -> None:
        lines = [line async for line in await client.generate(MODEL, "hi", stream=True)]
        assert [line.response for line in lines] == ["Hello", ", ", "world!", ""]
        assert [line.done for line in lines] == [False, False, False, True]


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
            ({"messages": [{"role": "tool", "content": "x", "tool_name": "f"}]}, "messages.0.tool_name"),
            ({"format": "yaml"}, "format"),
            ({"options": {"temperature": -1}}, "options.temperature"),
            ({"options": {"mirostat": 1}}, "options.mirostat"),
            ({"context": [1, 2]}, "context"),
        ],
        ids=str,
    )
    async def test_name_what_is_wrong(self, site: Site, fields: dict[str, Any], named: str) -> None:
        answer = await post(site, **fields)
        assert answer.status_code == 400
        assert list(answer.json()) == ["error"]
        assert f"'{named}'" in answer.json()["error"]

    @pytest.mark.parametrize(
        "fields", [{"raw": True}, {"template": "x"}, {"suffix": "x"}, {"system": "x", "suffix": "x"}], ids=str
    )
    async def test_name_what_generate_does_not_do(self, site: Site, fields: dict[str, Any]) -> None:
        answer = await post(site, "/api/generate", prompt="hi", **fields)
        assert answer.status_code == 400
        assert f"'{next(iter(fields))}'" in answer.json()["error"]

    async def test_operator_options_are_named_in_a_header(self, site: Site, new_site: NewSite) -> None:
        hints = {"keep_alive": "5m", "options": {"num_ctx": 4096, "num_gpu": 1}}
        answer = await post(site, **hints, stream=False)
        assert answer.headers["x-parley-ignored"] == "keep_alive, options.num_ctx, options.num_gpu"
        strict = await new_site(strict=True)
        assert (await post(strict, **hints)).status_code == 400

    async def test_have_the_clients_class(self, client: AsyncClient, engine: FakeEngine) -> None:
        engine.refusal = Overloaded("full")
        with pytest.raises(ollama.ResponseError) as refused:
            await client.chat(**HI)
        assert (refused.value.status_code, refused.value.error) == (429, "full")
        with pytest.raises(ollama.ResponseError) as refused:
            await client.chat(**{**HI, "model": "llama"})
        assert refused.value.status_code == 404

    async def test_after_the_first_byte_they_are_lines(self, client: AsyncClient, engine: FakeEngine) -> None:
        engine.script = ("Hello", EngineFailed("out of luck"))
        lines = await client.chat(**HI, stream=True)
        assert (await anext(aiter(lines))).message.content == "Hello"
        with pytest.raises(ollama.ResponseError) as broken:
            await anext(aiter(lines))
        assert broken.value.error == "out of luck"

    async def test_models_are_not_made(self, client: AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError, match="/api/create"):
            await client.create("llama")

    async def test_key(self, new_site: NewSite) -> None:
        site = await new_site(api_keys=["key"])
        answer = await post(site)
        assert (answer.status_code, answer.json()) == (401, {"error": "You did not provide an API key"})


class TestModels:
    async def test_are_listed(self, client: AsyncClient) -> None:
        assert [each.model for each in (await client.list()).models] == [MODEL, "fake-embedding"]

    async def test_loaded_models_have_their_length(self, client: AsyncClient, engine: FakeEngine) -> None:
        assert (await client.ps()).models == []
        await client.chat(**HI)
        (loaded,) = (await client.ps()).models
        assert (loaded.model, loaded.context_length) == (MODEL, engine.max_length)

    async def test_are_shown(self, client: AsyncClient) -> None:
        shown = await client.show(MODEL)
        assert "completion" in (shown.capabilities or [])
        assert shown.modelinfo
        assert shown.modelinfo["general.basename"] == MODEL
        assert (await client.show("fake-embedding")).capabilities == ["embedding"]
        with pytest.raises(ollama.ResponseError) as refused:
            await client.show("llama")
        assert refused.value.status_code == 404

    async def test_version(self, site: Site) -> None:
        assert (await site.client.get("/api/version")).json()["version"]


class TestTools:
    async def test_are_called_and_their_results_handed_back(self, client: AsyncClient, engine: FakeEngine) -> None:
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        engine.script = ('{"name": "wea', 'ther", "arguments": {"city": "Pa', 'ris"}}')
        plain = await client.chat(**HI, tools=[tool])
        assert plain.message.tool_calls
        (call,) = plain.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
        lines = [line async for line in await client.chat(**HI, tools=[tool], stream=True)]
        streamed = [each.function for line in lines for each in line.message.tool_calls or ()]
        assert streamed == [call.function]
        turn = [plain.message, {"role": "tool", "content": "rain", "tool_name": "weather"}]
        engine.script = ("It rains",)
        reply = await client.chat(MODEL, [*HI["messages"], *turn], tools=[tool])
        assert reply.message.content == "It rains"
        assert "rain" in engine.prompts[-1]

    @pytest.mark.parametrize("form", ["json", {"type": "object"}], ids=str)
    async def test_a_format_is_held(self, client: AsyncClient, engine: FakeEngine, form: Any) -> None:
        await client.chat(**HI, format=form)
        assert engine.jobs[0].sampling.grammar
