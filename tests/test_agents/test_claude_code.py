"""Claude Code over Anthropic's Messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import encoded
from tests.test_agents.agent import Agent
from tests.test_agents.programs import CLAUDE_CODE
from tests.test_agents.says import call, thinking
from tests.test_agents.scripted import PAD
from tests.test_agents.service import Service

pytestmark = pytest.mark.agents

ONCE = ("--print", "--output-format", "json", "--allowedTools", "Bash Write Read")


THOUGHT = "The folder may be empty."


@pytest.fixture
def agent(service: Service, tmp_path: Path) -> Agent:
    agent = Agent(CLAUDE_CODE, service, tmp_path)
    agent.configure("claude-code-settings.json", ".claude/settings.json")
    return agent


def transcript(agent: Agent) -> list[dict[str, Any]]:
    """The blocks of the answers that it has kept of its session."""
    (file,) = (agent.home / ".claude" / "projects").glob("*/*.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return [block for line in lines if line["type"] == "assistant" for block in line["message"]["content"]]


def test_it_writes_a_file_and_runs_a_command(service: Service, agent: Agent) -> None:
    asked = service.play(
        "claude-code",
        thinking(
            "A file is wanted.",
            call("Write", file_path=str(agent.work / "hello.txt"), content="Hello from Claude Code\n"),
        ),
        call("Bash", command="wc -c hello.txt > size.txt; cat size.txt", description="Counts"),
        "The file is there.",
    )
    said = json.loads(agent.run(*ONCE, "--", asked))
    assert said["result"] == "The file is there."
    assert (agent.work / "hello.txt").read_text() == "Hello from Claude Code\n"
    assert (agent.work / "size.txt").read_text() == "23 hello.txt\n"
    prompts = [each["prompt"] for each in service.record("claude-code") if "<tools>" in each["prompt"]]
    assert "<tool_response>\n23 hello.txt" in prompts[2]
    assert service.refused() == []


@pytest.mark.parametrize(
    ("display", "asks", "text"),
    [
        ("omitted", ("json",), ""),
        ("updates", ("stream-json", "--verbose"), ""),
        ("summarized", ("json", "--thinking-display", "summarized"), THOUGHT),
    ],
    ids=["omitted", "updates", "summarized"],
)
def test_it_keeps_a_thought_and_sends_it_back(
    service: Service, agent: Agent, display: str, asks: tuple[str, ...], text: str
) -> None:
    """Unless it is told to show thoughts, all it has of one is the signature."""
    name = f"claude-code-thought-{display}"
    asked = service.play(name, thinking(THOUGHT, call("Bash", command="ls", description="Lists")), "It is empty.")
    agent.run("--print", "--output-format", *asks, "--allowedTools", "Bash", "--", asked)
    kept = [block for block in transcript(agent) if block["type"] == "thinking"]
    assert [(block["thinking"], bool(block["signature"])) for block in kept] == [(text, True)]
    assert f"<think>\n{THOUGHT}\n</think>" in service.record(name)[-1]["prompt"]
    assert service.refused() == []


def test_it_shows_an_image_to_a_model_that_sees(service: Service, agent: Agent) -> None:
    (agent.work / "red.png").write_bytes(encoded(size=(3, 2)))
    asked = service.play(
        "claude-code-image", call("Read", file_path=str(agent.work / "red.png")), "It is a small red picture."
    )
    said = json.loads(agent.run("--model", "sees", *ONCE, "--", asked))
    assert said["result"] == "It is a small red picture."
    assert 6 * PAD in service.record("claude-code-image")[-1]["prompt"]
    assert service.refused() == []


def test_it_makes_a_long_session_shorter_and_goes_on(service: Service, agent: Agent) -> None:
    after = service.play("claude-code-later", *3 * ["I went on from there."])  # its last calls may be kept behind it
    count = call("Bash", command="seq 100000 100700", description="Counts")
    asked = service.play("claude-code-long", count, count, count)
    service.play("claude-code-long-summary", f"<summary>Numbers were counted. {after}</summary>")
    said = json.loads(agent.run("--model", "short", *ONCE, "--", asked))
    assert said["result"] == "I went on from there."
    assert "Numbers were counted." in service.record("claude-code-later")[-1]["prompt"]
    assert len(service.refused()) == 1  # the prompt that was too long
