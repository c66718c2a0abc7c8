"""opencode over chat completions."""

from pathlib import Path

import pytest

from tests.test_agents.agent import Agent
from tests.test_agents.programs import OPENCODE
from tests.test_agents.says import call, thinking
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents


def test_it_writes_a_file_and_runs_a_command(service: Service, tmp_path: Path) -> None:
    agent = Agent(OPENCODE, service, tmp_path, {"OPENCODE_DISABLE_MODELS_FETCH": "1"})
    agent.configure("opencode.json", ".config/opencode/opencode.json")
    written = call("write", filePath=str(agent.work / "hello.txt"), content="Hello from opencode\n")
    asked = service.play(
        "opencode",
        thinking("A file is wanted.", written),
        call("bash", command="wc -c hello.txt > size.txt; cat size.txt", description="Counts"),
        "The file is there.",
    )
    assert "The file is there." in agent.run("run", asked)
    assert (agent.work / "hello.txt").read_text() == "Hello from opencode\n"
    assert (agent.work / "size.txt").read_text() == "20 hello.txt\n"
    prompts = [each["prompt"] for each in service.record("opencode") if "<tools>" in each["prompt"]]
    assert "<think>\nA file is wanted.\n</think>" in prompts[1]
    assert "<tool_response>\n20 hello.txt" in prompts[2]
    assert service.refused() == []
