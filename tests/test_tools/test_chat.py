"""`parley chat` with pipes, and interactively in a pseudo-terminal, against the app on a port."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.apps import NewSite, Site
from tests.databases import free_port
from tests.fakes import FakeEngine, Pause
from tests.test_tools.terminal import ALT_ENTER, CTRL_C, ENTER, Terminal, chat, terminal
from tools.chat.commands import COMMANDS


def url(site: Site) -> str:
    return f"--url={site.client.base_url}"


@pytest.fixture
async def typed(server: Site, tmp_path: Path) -> AsyncIterator[Terminal]:
    """An interactive chat that reads its first line."""
    async with terminal(tmp_path, url(server)) as opened:
        yield opened


async def tree(site: Site) -> list[dict[str, Any]]:
    """The nodes of the newest conversation."""
    conversations = (await site.client.get("/v1/conversations")).json()["data"]
    page = (await site.client.get(f"/v1/conversations/{conversations[0]['id']}/tree")).json()
    return list(page["data"])


class Relay:
    """A connection to the server that can be cut."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def cut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, there_writer]
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


# --- one question ---


async def test_a_prompt_is_answered_in_plain_text(server: Site, tmp_path: Path) -> None:
    run = await chat(tmp_path, url(server), "Hi", "there")
    assert (run.code, run.output, run.errors) == (0, "Hello, world!\n", "")
    question, answer = await tree(server)
    assert question["item"]["content"][0]["text"] == "Hi there"
    assert answer["item"]["content"][0]["text"] == "Hello, world!"


async def test_what_is_piped_in_goes_with_the_prompt(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    run = await chat(tmp_path, url(server), "Review this", piped="+ a line\n", FORCE_COLOR="1")
    assert (run.code, run.output) == (0, "Hello, world!\n")
    assert engine.prompts == ["<user>Review this\n\n+ a line\n<assistant>\n"]


async def test_json_has_answer_usage_and_conversation(server: Site, tmp_path: Path) -> None:
    facts = json.loads((await chat(tmp_path, url(server), "Hi", "--json")).output)
    listed = (await server.client.get("/v1/conversations")).json()["data"]
    assert facts["conversation_id"] == listed[0]["id"]
    assert (facts["answer"], facts["usage"]["output_tokens"]) == ("Hello, world!", 3)


async def test_continue_goes_on_with_the_last_conversation(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    await chat(tmp_path, url(server), "-s", "Be brief.", "One")
    await chat(tmp_path, url(server), "-c", "Two")
    assert engine.prompts[1] == "<system>Be brief.\n<user>One\n<assistant>Hello, world!\n<user>Two\n<assistant>\n"
    facts = json.loads((await chat(tmp_path, url(server), "Other", "--json")).output)
    await chat(tmp_path, url(server), "--conversation", facts["conversation_id"], "Three")
    assert engine.prompts[3] == "<user>Other\n<assistant>Hello, world!\n<user>Three\n<assistant>\n"


async def test_options_reach_the_engine(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    await chat(tmp_path, url(server), "--temperature=0.5", "--top-p=0.25", "--max-tokens=7", "Hi")
    (job,) = engine.jobs
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.max_tokens) == (0.5, 0.25, 7)


async def test_the_key_comes_from_the_environment(new_server: NewSite, tmp_path: Path) -> None:
    site = await new_server(api_keys=["a-key"])
    refused = await chat(tmp_path, url(site), "Hi")
    assert (refused.code, refused.output, refused.errors.count("\n")) == (1, "", 1)
    assert refused.errors.startswith("Error: ")
    assert (await chat(tmp_path, url(site), "Hi", PARLEY_API_KEY="a-key")).output == "Hello, world!\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=none", "Hi"], "none"),
        (["--image=none.png", "Hi"], "none.png: No such file or directory"),
        (["--conversation=conv_none", "Hi"], "conv_none"),
        (["--json"], "no question"),
    ],
)
async def test_errors_are_one_line(server: Site, tmp_path: Path, arguments: list[str], message: str) -> None:
    run = await chat(tmp_path, url(server), *arguments)
    assert (run.code, run.output, run.errors.count("\n")) == (1, "", 1)
    assert message in run.errors


async def test_an_image_is_sent_as_it_is(server: Site, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(b"no image at all")
    run = await chat(tmp_path, url(server), "-i", "dot.png", "What is it?")
    assert (run.code, "image" in run.errors) == (1, True)  # the fake model takes text only


async def test_escape_sequences_do_not_reach_the_output(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    engine.script = ("a\x1b]0;ti", "tle\x07b", "\x1b[", "2Jc\x9b31m", "d\r\x08\n")
    assert (await chat(tmp_path, url(server), "Hi")).output == "abcd\n"


async def test_a_failure_in_the_middle_is_an_error(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    engine.script = ("Hel", RuntimeError("boom"))
    run = await chat(tmp_path, url(server), "Hi")
    assert (run.code, run.output) == (1, "Hel\n")
    assert run.errors.startswith("Error: ")


async def test_a_loading_model_is_waited_for(new_server: NewSite, engine: FakeEngine, tmp_path: Path) -> None:
    loaded = threading.Event()

    def build(*given: object, **options: object) -> FakeEngine:
        loaded.wait()
        return engine

    site = await new_server(build=build, model={"name": "fake-chat", "preload": True})
    try:
        async with terminal(tmp_path, url(site)) as typed:
            typed.type("Hi" + ENTER)
            await typed.see("The model is loading")
            loaded.set()
            await typed.see("Hello, world!")
    finally:
        loaded.set()


# --- a server of its own ---


async def test_an_own_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    run = await chat(tmp_path, f"--url=http://127.0.0.1:{free_port()}", "-m", "no/such/folder", "Hi")
    assert run.code == 1
    assert run.errors.splitlines()[-1].startswith("Error: The server did not start: ")


async def test_an_own_server_ends_with_the_chat(tmp_path: Path) -> None:
    port = free_port()
    run = await chat(
        tmp_path,
        f"--url=http://127.0.0.1:{port}",
        "Hello",
        PARLEY_MODEL__ENGINE="examples.echo_engine:EchoEngine",
        PARLEY_API_KEY="of-another-server",
    )
    assert (run.code, run.output) == (0, "Hello\n"), run.errors
    with socket.create_server(("127.0.0.1", port)):  # nobody listens there any more
        pass
    assert (tmp_path / "state" / "parley" / "parley.db").exists()
    assert not (tmp_path / "parley.db").exists()


# --- interactively ---


async def test_a_question_is_streamed(typed: Terminal, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("# Title\n\nSome **bold** text.\n\nThe ", "rest", pause, " of it")
    typed.type("Hi" + ALT_ENTER + "there" + ENTER)
    await typed.see("bold")
    await typed.see("The rest")
    assert engine.prompts == ["<user>Hi\nthere\n<assistant>\n"]
    pause.go.set()
    await typed.see("The rest of it")
    await typed.ready()
    assert b"**" not in typed.raw
    assert await typed.leave() == 0


async def test_ctrl_c_ends_the_answer_and_not_the_program(server: Site, typed: Terminal, engine: FakeEngine) -> None:
    engine.script = ("Hel", Pause())
    typed.type("Hi" + ENTER)
    await typed.see("Hel")
    typed.type(CTRL_C)
    await typed.see("Stopped.")
    await typed.ready()
    await engine.idle.wait()
    assert b"^C" not in typed.raw  # an echo would displace the lines that are drawn
    engine.script = ("All of it",)
    typed.type("Again" + ENTER)
    await typed.see("All of it")
    await typed.ready()
    assert engine.prompts[1] == "<user>Hi\n<assistant>Hel\n<user>Again\n<assistant>\n"
    assert await typed.leave() == 0


async def test_regen_and_edit_make_branches(server: Site, typed: Terminal, engine: FakeEngine) -> None:
    await typed.ask("One")
    await typed.ask("Two")
    engine.script = ("Again",)
    await typed.ask("/regen")
    assert engine.prompts[2] == engine.prompts[1]
    typed.type("/edit" + ENTER)
    await typed.ready()  # the question is a draft
    await typed.ask(" and more")
    assert engine.prompts[3].endswith("<user>Two and more\n<assistant>\n")
    nodes = await tree(server)
    parents = [each["parent_item"] for each in nodes]
    first, second = nodes[1]["item"]["id"], nodes[2]["item"]["id"]
    assert parents[2:] == [first, second, second, first, nodes[5]["item"]["id"]]
    typed.type("/branch" + ENTER)
    await typed.see("* 3")
    await typed.ready()
    await typed.ask("/branch 1")
    await typed.ask("Three")
    assert "<user>Two\n<assistant>Hello, world!\n<user>Three\n" in engine.prompts[4]


async def test_edit_uses_the_editor(server: Site, engine: FakeEngine, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "Edited" > "$1"\n')
    editor.chmod(0o700)
    async with terminal(tmp_path, url(server), EDITOR=str(editor)) as typed:
        await typed.ask("One")
        await typed.ask("/edit")
    assert engine.prompts[1] == "<user>Edited\n<assistant>\n"


async def test_search_finds_and_open_goes_on(server: Site, typed: Terminal, engine: FakeEngine) -> None:
    await typed.ask("Where is the needle?")
    conversation = (await server.client.get("/v1/conversations")).json()["data"][0]["id"]
    await typed.ask("/new")
    typed.type("/search needle" + ENTER)
    await typed.see(conversation)
    await typed.ready()
    await typed.ask(f"/open {conversation}")
    await typed.ask("Go on")
    assert engine.prompts[-1].startswith("<user>Where is the needle?\n<assistant>Hello, world!\n<user>Go on\n")


async def test_the_system_prompt_and_the_model_change(typed: Terminal, engine: FakeEngine) -> None:
    await typed.ask("One")
    await typed.ask("/system Be kind.")
    typed.type("/model none" + ENTER)
    await typed.see("There is no model none: fake-chat")
    await typed.ready()
    await typed.ask("/model fake-chat")
    await typed.ask("Two")
    assert engine.prompts[1].startswith("<system>Be kind.\n<user>One\n")


async def test_a_branch_is_saved(typed: Terminal, tmp_path: Path) -> None:
    await typed.ask("Hi")
    await typed.ask("/save chat.md")
    await typed.ask("/save chat.json")
    typed.type("/save chat.md" + ENTER)
    await typed.see("chat.md: File exists")
    await typed.ready()
    assert (tmp_path / "chat.md").read_text() == "## You\n\nHi\n\n## Assistant\n\nHello, world!\n"
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [each["role"] for each in saved["items"]] == ["user", "assistant"]


async def test_a_line_typed_during_an_answer_is_the_next_question(typed: Terminal, engine: FakeEngine) -> None:
    pause = Pause()
    engine.script = ("Hel", pause)
    typed.type("One" + ENTER)
    await typed.see("Hel")
    typed.type("Two" + ENTER)
    pause.go.set()
    await typed.ready()
    await typed.ready()
    assert engine.prompts[1].endswith("<user>Two\n<assistant>\n")


async def test_help_shows_all_commands(typed: Terminal) -> None:
    typed.type("/help" + ENTER)
    for name in COMMANDS:
        await typed.see(name)
    await typed.ready()
    typed.type("/thought" + ENTER)
    await typed.see("There was no thought")
    await typed.ready()
    assert await typed.leave() == 0


async def test_unknown_commands_are_named(typed: Terminal) -> None:
    typed.type("/nothing" + ENTER)
    await typed.see("There is no command /nothing")
    await typed.ready()


async def test_a_refused_question_can_be_sent_again(typed: Terminal, engine: FakeEngine) -> None:
    engine.script = (RuntimeError("boom"),)
    await typed.ask("Hi")
    engine.script = ("Now",)
    await typed.ask("")
    assert engine.prompts[1] == "<user>Hi\n<assistant>\n"


async def test_a_question_can_be_sent_again_after_a_lost_connection(
    server: Site, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.script = ("Hel", Pause())
    relay = Relay(server.client.base_url.port or 0)
    await relay.open()
    async with terminal(tmp_path, f"--url=http://127.0.0.1:{relay.port}") as typed:
        typed.type("Hi" + ENTER)
        await typed.see("Hel")
        await relay.cut()
        await typed.see("connection to the server is lost")
        await typed.ready()
        await relay.open()
        engine.script = ("Now",)
        typed.type(ENTER)
        await typed.see("Now")
        await typed.ready()
    await relay.cut()
    assert engine.prompts == ["<user>Hi\n<assistant>\n"] * 2


async def test_control_characters_do_not_reach_the_terminal(typed: Terminal, engine: FakeEngine) -> None:
    engine.script = ("one\x1b]0;title\x07\x1b[8", "m <b>two</b> &#27;[9m", "\n\n```\n\x1b[5mthree\n```\n")
    await typed.ask("Hi")
    for sequence in (b"\x1b]0", b"\x1b[8m", b"\x1b[9m", b"\x1b[5m", b"\x07"):
        assert sequence not in typed.raw
    await typed.ask("/open \x16\x1b[6mx")
    assert b"\x1b[6m" not in typed.raw


async def test_the_history_is_kept_for_the_user_alone(typed: Terminal, tmp_path: Path) -> None:
    await typed.ask("Hi")
    file = tmp_path / "state" / "parley" / "chat_history"
    assert "+Hi" in file.read_text()
    assert (file.stat().st_mode & 0o077, file.parent.stat().st_mode & 0o077) == (0, 0)
