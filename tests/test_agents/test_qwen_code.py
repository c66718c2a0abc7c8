"""Qwen Code over chat completions."""

from pathlib import Path

import pytest

from tests.test_agents.agent import Agent
from tests.test_agents.programs import QWEN_CODE
from tests.test_agents.says import call, thinking
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents


def test_it_writes_a_file_and_runs_a_command(service: Service, tmp_path: Path) -> None:
    agent = Agent(QWEN_CODE, service, tmp_path)
    agent.configure("qwen-code-settings.json", ".qwen/settings.json")
    written = call("write_file", file_path=str(agent.work / "hello.txt"), content="Hello from Qwen Code\n")
    asked = service.play(
        "qwen-code",
        thinking("A file is wanted.", written),
        call("run_shell_command", command="wc -c hello.txt > size.txt; cat size.txt", is_background=False),
        "The file is there.",
    )
    assert "The file is there." in agent.run("--yolo", asked)
    assert (agent.work / "hello.txt").read_text() == "Hello from Qwen Code\n"
    assert (agent.work / "size.txt").read_text() == "21 hello.txt\n"
    prompts = [each["prompt"] for each in service.record("qwen-code") if "<tools>" in each["prompt"]]
    assert "<think>\nA file is wanted.\n</think>" in prompts[1]
    # not what it printed: Qwen Code stops reading when the command exits, and on a busy machine that is too early
    assert "Exit Code: 0" in prompts[2].rpartition("<tool_response>")[2]
    assert service.refused() == []
