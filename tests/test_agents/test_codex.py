"""Codex over Responses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_agents.agent import Agent
from tests.test_agents.programs import CODEX
from tests.test_agents.says import call, thinking
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents

CONFIG = ".codex/config.toml"
# there is no sandbox in a sandbox
ONCE = ("exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
PATCH = """\
*** Begin Patch
*** Add File: hello.txt
+Hello from Codex
*** End Patch
"""


@pytest.fixture
def agent(service: Service, tmp_path: Path) -> Agent:
    agent = Agent(CODEX, service, tmp_path)
    agent.configure("codex-config.toml", CONFIG)
    return agent


def items(printed: str) -> list[dict[str, Any]]:
    """What it has shown, in this order."""
    events = map(json.loads, printed.splitlines())
    return [event["item"] for event in events if event["type"] == "item.completed"]


def test_it_runs_a_command(service: Service, agent: Agent) -> None:
    asked = service.play(
        "codex-command",
        thinking("A file is wanted.", call("exec_command", cmd="echo Hello from Codex > hello.txt; cat hello.txt")),
        "The file is there.",
    )
    shown = items(agent.run(*ONCE, asked))
    assert shown[-1]["text"] == "The file is there."
    assert (agent.work / "hello.txt").read_text() == "Hello from Codex\n"
    assert "Hello from Codex" in service.record("codex-command")[-1]["prompt"].rpartition("<tool_response>")[2]
    assert service.refused() == []
