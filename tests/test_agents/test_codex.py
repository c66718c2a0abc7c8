"""Codex over Responses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_agents.agent import Agent
from tests.test_agents.programs import CODEX
from tests.test_agents.says import call, custom_call, thinking
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents

CONFIG = ".codex/config.toml"
MCP = Path(__file__).with_name("mcp_server.py")
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


def test_it_patches_a_file_with_a_custom_tool(service: Service, agent: Agent) -> None:
    """Which it offers to models whose names it knows, with the grammar of a patch."""
    asked = service.play("codex-patch", custom_call("apply_patch", PATCH), "The file is there.")
    shown = items(agent.run(*ONCE, "--model", "gpt-5.5", asked))
    assert (agent.work / "hello.txt").read_text() == "Hello from Codex\n"
    assert shown[-1]["text"] == "The file is there."
    assert "*** Add File: hello.txt" in service.record("codex-patch")[-1]["prompt"]
    assert service.refused() == []


def test_it_calls_a_tool_of_its_own_mcp_server(service: Service, agent: Agent) -> None:
    """A namespace: Codex finds the tool only where name and namespace come apart."""
    with (agent.home / CONFIG).open("a") as config:
        config.write(f"\n[mcp_servers.keys]\ncommand = {json.dumps(sys.executable)}\nargs = [{json.dumps(str(MCP))}]\n")
    asked = service.play("codex-mcp", call("mcp__keys__lookup", key="brass"), "It opens the cellar.")
    shown = items(agent.run(*ONCE, asked))
    assert shown[-1]["text"] == "It opens the cellar."
    assert "The key brass opens the cellar." in service.record("codex-mcp")[-1]["prompt"]
    assert service.refused() == []


@pytest.mark.parametrize(
    ("provider", "wish"), [("Parley", "CONTEXT CHECKPOINT COMPACTION"), ("OpenAI", "<conversation>")]
)
def test_it_makes_a_long_session_shorter_and_goes_on(service: Service, agent: Agent, provider: str, wish: str) -> None:
    """By a summary that it asks for itself; where the provider is called OpenAI it asks for a `compaction` item."""
    name = f"codex-long-{provider.lower()}"
    config = agent.home / CONFIG
    config.write_text(config.read_text().replace('name = "Parley"', f'name = "{provider}"'))
    count = call("exec_command", cmd="seq 100000 100700")
    after = service.play(f"{name}-later", "I went on from there.")
    asked = service.play(name, count, count, count, count)
    service.play(f"{name}-summary", f"Numbers were counted. {after}")
    shown = items(agent.run(*ONCE, "-c", "model_auto_compact_token_limit=16000", asked))
    assert shown[-1]["text"] == "I went on from there."
    assert [wish in each["prompt"] for each in service.record(name) if each["said"].startswith("Numbers")] == [True]
    prompt = service.record(f"{name}-later")[-1]["prompt"]
    assert "Numbers were counted." in prompt
    assert "100700" not in prompt
    assert service.refused() == []


def test_it_shows_a_thought_and_sends_it_back(service: Service, agent: Agent) -> None:
    asked = service.play(
        "codex-thought",
        thinking("The folder may be empty.", call("exec_command", cmd="ls")),
        "It is empty.",
    )
    shown = items(agent.run(*ONCE, asked))
    assert "The folder may be empty." in [each.get("text") for each in shown if each["type"] == "reasoning"]
    assert "<think>\nThe folder may be empty.\n</think>" in service.record("codex-thought")[-1]["prompt"]
    assert service.refused() == []
