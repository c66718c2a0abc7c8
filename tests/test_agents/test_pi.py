"""pi over chat completions and over Responses."""

import json
from pathlib import Path

import pytest

from tests.test_agents.agent import Agent
from tests.test_agents.programs import PI
from tests.test_agents.says import call, thinking
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents

MODELS = ".pi/agent/models.json"


@pytest.mark.parametrize("api", ["openai-completions", "openai-responses", "anthropic-messages"])
def test_it_writes_a_file_and_runs_a_command(service: Service, tmp_path: Path, api: str) -> None:
    agent = Agent(PI, service, tmp_path, {"PI_OFFLINE": "1"})
    agent.configure("pi-models.json", MODELS)
    configuration = json.loads((agent.home / MODELS).read_text())
    provider = configuration["providers"]["parley"]
    provider["api"] = api
    if api == "anthropic-messages":
        provider["baseUrl"] = service.url
    (agent.home / MODELS).write_text(json.dumps(configuration))
    name = f"pi-{api}"
    asked = service.play(
        name,
        thinking("A file is wanted.", call("write", path="hello.txt", content="Hello from pi\n")),
        call("bash", command="wc -c hello.txt > size.txt; cat size.txt"),
        "The file is there.",
    )
    assert "The file is there." in agent.run("--print", "--provider", "parley", "--model", "default", asked)
    assert (agent.work / "hello.txt").read_text() == "Hello from pi\n"
    assert (agent.work / "size.txt").read_text() == "14 hello.txt\n"
    _, second, third = (each["prompt"] for each in service.record(name))
    assert "<think>\nA file is wanted.\n</think>" in second
    assert "<tool_response>\n14 hello.txt" in third
    assert service.refused() == []
