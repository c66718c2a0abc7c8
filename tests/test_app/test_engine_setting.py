"""An engine of one's own: one file and one setting, behind every protocol."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.common import model_configs
from app.common.settings import Settings
from services.engine import build
from services.engine.base import UpstreamAddress
from services.engine.loading.unusable import UnusableModel
from services.models import sources
from tests.apps import NewSite, Site, refusal
from tests.fakes import FakeEngine

ECHO = "examples.echo_engine:EchoEngine"
HI = "Hello there"
WHOLE = {"stream": False}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HI}]


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site(build=build, model={"engine": ECHO, "preload": False}, engine={"max_model_len": 64})


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, lambda answer: answer["choices"][0]["message"]["content"]),
        ("/v1/completions", {"prompt": HI, "max_tokens": 99}, lambda answer: answer["choices"][0]["text"]),
        ("/v1/responses", {"input": HI}, lambda answer: answer["output"][0]["content"][0]["text"]),
        ("/v1/messages", {"messages": MESSAGES[1:], "max_tokens": 99}, lambda answer: answer["content"][0]["text"]),
        (
            "/api/chat",
            {"model": "default", "messages": MESSAGES, "stream": False},
            lambda answer: answer["message"]["content"],
        ),
        ("/predict", {"input": HI}, lambda answer: answer["output"]),
        ("/chat/new/message/", {"prompt": HI}, lambda answer: answer["response"]),
    ],
)
async def test_answers_every_protocol(site: Site, path: str, body: dict[str, Any], answer: Any) -> None:
    got = await site.client.post(path, json=body)
    assert got.status_code == 200, got.text
    assert answer(got.json()) == HI


async def test_streams_and_keeps_to_its_limits(site: Site) -> None:
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 5}
    got = (await site.client.post("/v1/chat/completions", json=body)).text
    assert got.count('"content":') == 6
    assert '"finish_reason":"length"' in got
    assert (await site.client.post("/v1/completions", json={"prompt": "a" * 64})).status_code == 400


async def test_what_it_cannot_do_is_refused_by_name(site: Site) -> None:
    for fields, param in (({"response_format": {"type": "json_object"}}, "response_format"), ({"stop": "e"}, "stop")):
        assert await refusal(site, "/v1/chat/completions", messages=MESSAGES, **fields) == param


def test_is_built_without_torch() -> None:
    code = f"import sys; from services.engine import build; build('chat', source='', engine={ECHO!r}); "
    code += "sys.exit(any(each in sys.modules for each in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_its_own_options_are_its_parameters(caplog: pytest.LogCaptureFixture) -> None:
    assert build("chat", source="", engine=ECHO, max_model_len=9).max_length == 9
    with pytest.raises(ValueError, match="has no option 'color'"):
        build("chat", source="", engine=ECHO, color="red")
    assert build("chat", source="", engine=ECHO, settings={"max_model_len": 8, "block_size": 2}).max_length == 8
    assert "left aside: block_size" in caplog.text


@pytest.mark.parametrize("engine", ["nobody", "examples.echo_engine:Nobody", "no.such.module:Engine"])
def test_name_of_none_is_refused_at_the_start(engine: str) -> None:
    settings = Settings(_env_file=None, model={"engine": engine})
    with pytest.raises(ValueError, match=engine):
        sources.check(model_configs.configs(settings))


def test_remote_engine_is_given_its_upstreams_and_what_is_set() -> None:
    upstreams = ["http://gpu1:8000/v1", {"url": "http://gpu2:8000/v1", "key": "k", "kind": "vllm", "model": "m"}]
    model = {"name": "default", "engine": "remote", "upstreams": upstreams, "engine_options": {"timeout_s": 9}}
    config = model_configs.configs(Settings(_env_file=None, model=model, engine={"max_model_len": 64}))[0]
    assert config.source == "SmolLM2-135M-Instruct"
    assert config.settings == {"max_model_len": 64}
    assert config.options == {
        "upstreams": [
            UpstreamAddress("http://gpu1:8000/v1"),
            UpstreamAddress("http://gpu2:8000/v1", "k", "vllm", "m"),
        ],
        "timeout_s": 9,
    }


def test_remote_engine_needs_a_tokenizer_and_no_weights(tmp_path: Path) -> None:
    model = {"name": str(tmp_path), "engine": "remote", "upstreams": ["http://gpu1/v1"]}
    settings = Settings(_env_file=None, model=model)
    with pytest.raises(UnusableModel, match="tokenizer"):
        sources.check(model_configs.configs(settings))
    (tmp_path / "tokenizer.json").write_text("{}")
    sources.check(model_configs.configs(settings))


def test_one_of_another_package_is_given_what_is_set() -> None:
    settings = Settings(
        _env_file=None, model={"engine": ECHO, "engine_options": {"color": "red"}}, engine={"max_model_len": 64}
    )
    config = model_configs.configs(settings)[0]
    assert (config.source, config.settings, config.options) == ("default", {"max_model_len": 64}, {"color": "red"})


async def test_chat_template_of_the_operator_takes_the_place_of_the_models(
    new_site: NewSite, engine: FakeEngine, tmp_path: Path
) -> None:
    """Also where formats are detected in it: this one shows how thoughts are marked."""
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% for each in messages %}[{{ each.role }}] {{ each.content }}\n{% endfor %}[assistant]{# </think> #}"
    )
    site = await new_site(model={"name": "fake-chat", "preload": False, "chat_template": file})
    engine.script = ("<think>Hm.</think>", "Hi")
    got = await site.client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert engine.prompts == [f"[system] Be brief.\n[user] {HI}\n[assistant]"]
    message = got.json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hi")
