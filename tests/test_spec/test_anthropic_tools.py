"""Anthropic's tools and hints: what is offered is left aside and named, what is forced and not there is refused."""

from typing import Any

import pytest

from tests.apps import NewSite, Site
from tests.fakes import FakeEngine

OWN = {"name": "look", "input_schema": {"type": "object"}}
HOSTED = [
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 100},
    {"type": "computer_20250124", "name": "computer", "display_width_px": 1, "display_height_px": 1},
    {"type": "memory_20250818", "name": "memory"},
    {"type": "mcp_toolset", "mcp_server_name": "s"},
]


async def post(site: Site, path: str = "/v1/messages", **more: Any) -> Any:
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], **more}
    return await site.client.post(path, json=body | ({} if path.endswith("tokens") else {"max_tokens": 9}))


def ignored(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers.get("x-parley-ignored", ""))


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("tool", HOSTED, ids=lambda tool: tool["type"])
async def test_a_hosted_tool_is_named_and_the_others_are_shown(
    site: Site, engine: FakeEngine, tool: dict[str, Any], path: str
) -> None:
    assert ignored(await post(site, path, tools=[tool, OWN])) == f"tools.0.{tool['type']}"
    if engine.jobs:
        assert "look" in engine.prompts[0]
        assert "web_search" not in engine.prompts[0]


async def test_no_tool_is_left_to_choose_from(site: Site, engine: FakeEngine) -> None:
    answer = await post(site, tools=HOSTED[:1], tool_choice={"type": "auto"})
    assert ignored(answer) == "tools.0.web_search_20250305"
    assert engine.prompts == ["<user>hi\n<assistant>\n"]


@pytest.mark.parametrize(
    ("choice", "tools", "named"),
    [
        ({"type": "tool", "name": "web_search"}, HOSTED[:1], "tool_choice.name"),
        ({"type": "tool", "name": "web_search"}, [*HOSTED[:1], OWN], "tool_choice.name"),
        ({"type": "any"}, HOSTED, "tool_choice.type"),
    ],
    ids=["tool", "tool-beside-own", "any"],
)
async def test_a_hosted_tool_cannot_be_forced(
    site: Site, choice: dict[str, str], tools: list[dict[str, Any]], named: str
) -> None:
    answer = await post(site, tools=tools, tool_choice=choice)
    assert answer.status_code == 400, answer.text
    assert f"'{named}'" in answer.json()["error"]["message"]


async def test_any_forces_one_of_those_that_are_there(site: Site, engine: FakeEngine) -> None:
    engine.script = ('{"name": "look", "arguments": {}}',)
    answer = await post(site, tools=[*HOSTED, OWN], tool_choice={"type": "any"})
    assert answer.json()["content"][0]["name"] == "look"


async def test_hints_inside_a_tool_are_named_but_for_those_that_hold(site: Site) -> None:
    hints = {"defer_loading": True, "input_examples": [{}], "allowed_callers": ["direct"]}
    held = {"strict": True, "eager_input_streaming": True, "cache_control": {"type": "ephemeral"}}
    named = "tools.0.allowed_callers, tools.0.defer_loading, tools.0.input_examples"
    assert ignored(await post(site, tools=[{**OWN, **hints, **held}])) == named


@pytest.mark.parametrize(
    ("hint", "named"),
    [
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking, thinking.budget_tokens"),
        ({"thinking": {"type": "disabled"}}, ""),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"speed": "fast", "service_tier": "standard_only"}, "speed"),
    ],
    ids=str,
)
async def test_hints_to_a_model_without_the_switch_are_named(site: Site, hint: dict[str, Any], named: str) -> None:
    assert ignored(await post(site, **hint)) == named


async def test_a_strict_server_refuses_them(new_site: NewSite) -> None:
    strict = await new_site(strict=True)
    for hint in ({"tools": HOSTED[:1]}, {"output_config": {"effort": "high"}}, {"context_management": {}}):
        assert (await post(strict, **hint)).status_code == 400
