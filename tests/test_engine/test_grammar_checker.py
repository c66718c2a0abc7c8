"""Grammars that take too long, and what is done about them while others ask for theirs."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.engine.base import GrammarSpec
from services.engine.grammar.checker import GrammarChecker
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.token_texts import TokenTexts
from services.errors import InvalidRequest, Unavailable
from tests.test_engine.tiny_tokenizers import EOS, byte_level

SLOW = "(a|b)?" * 40_000  # takes 24 s if it is let
HOSTILE = [
    GrammarSpec("regex", SLOW),
    GrammarSpec("lark", "start: /" + "\\/" * 32_000),
    GrammarSpec("lark", 'start: "' + '\\"' * 32_000),
    GrammarSpec("lark", 'start: <"' + '\\"' * 32_000),
    GrammarSpec("lark", 'x ::= "a"' + "\n" * 16_000),
    GrammarSpec("lark", "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(5_000)) + 'r5000 ::= "a"'),
]
HELD_S = 2.0  # the loop was held for 10 s and more; a busy machine alone holds it for some tenths


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processor_time(pid: int) -> int:
    """In hundredths of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)


def made(cpu_s: float = 0.2) -> GrammarCompiler:
    tokenizer = byte_level()
    return GrammarCompiler(TokenTexts(tokenizer), 400, frozenset([tokenizer.convert_tokens_to_ids(EOS)]), cpu_s)


@pytest.fixture
async def grammars() -> AsyncIterator[GrammarCompiler]:
    made_ones = made()
    await made_ones.matcher(GrammarSpec("regex", "a"))
    yield made_ones
    await made_ones.stop()


async def busy(pid: int) -> int:
    """The child that has used processor time: it is in the middle of a grammar."""
    while True:
        for child in children(pid):
            if processor_time(child) >= 5:
                return child
        await asyncio.sleep(0.01)


async def longest_pause(ended: asyncio.Event) -> float:
    longest, last = 0.0, time.monotonic()
    while not ended.is_set():
        await asyncio.sleep(0.01)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda spec: spec.source[:12])
async def test_others_are_answered_meanwhile_and_the_loop_is_not_held(
    grammars: GrammarCompiler, spec: GrammarSpec
) -> None:
    ended = asyncio.Event()
    pause = asyncio.create_task(longest_pause(ended))
    hostile = [asyncio.create_task(grammars.matcher(_numbered(spec, number), "alpha")) for number in range(4)]
    await asyncio.sleep(0)

    await grammars.matcher(GrammarSpec("lark", 'start: "yes" | "no"'), "beta")

    if spec.source == SLOW:
        assert not any(task.done() for task in hostile)
    refusals = await asyncio.gather(*hostile, return_exceptions=True)
    assert all(isinstance(each, InvalidRequest) for each in refusals)
    ended.set()
    assert await pause < HELD_S


def _numbered(spec: GrammarSpec, number: int) -> GrammarSpec:
    return GrammarSpec(spec.kind, spec.source + (" " if spec.kind == "lark" else "c") * number)


async def test_a_refusal_is_remembered_and_costs_nothing_again(grammars: GrammarCompiler) -> None:
    refused = [GrammarSpec("regex", SLOW), GrammarSpec("regex", "("), GrammarSpec("lark", "start: other")]
    reasons = [await refusal(grammars, spec) for spec in refused]
    assert grammars.checker.pid is not None
    os.kill(grammars.checker.pid, signal.SIGSTOP)  # nobody could answer

    assert [await refusal(grammars, spec) for spec in refused] == reasons
    os.kill(grammars.checker.pid, signal.SIGCONT)


async def refusal(grammars: GrammarCompiler, spec: GrammarSpec) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await grammars.matcher(spec)
    return refused.value.message


@pytest.mark.parametrize("victim", ["process", "child", "both"])
async def test_what_is_killed_by_hand_is_replaced(victim: str) -> None:
    grammars = made(cpu_s=0.5)
    slow = asyncio.create_task(grammars.matcher(GrammarSpec("regex", SLOW)))
    await grammars.matcher(GrammarSpec("regex", "a"), "beta")
    pid = grammars.checker.pid
    assert pid is not None
    child = await busy(pid)
    for each in {"process": [pid], "child": [child], "both": [pid, child]}[victim]:
        os.kill(each, signal.SIGKILL)

    await grammars.matcher(GrammarSpec("regex", "b"), "beta")
    with pytest.raises(InvalidRequest, match="takes too long"):
        await slow

    assert (grammars.checker.pid == pid) == (victim == "child")
    await grammars.stop()


async def test_nothing_is_left_after_stop_whatever_is_being_checked() -> None:
    grammars = made(cpu_s=60)
    await grammars.matcher(GrammarSpec("regex", "a"))
    slow = asyncio.create_task(grammars.matcher(GrammarSpec("regex", SLOW)))
    pid = grammars.checker.pid
    assert pid is not None
    await busy(pid)
    pids = [pid, *children(pid)]

    await grammars.stop()

    with pytest.raises(Unavailable):
        await slow
    for each in pids:
        wait_for_end(each)
    assert grammars.checker.pid is None
    assert [each.name for each in threading.enumerate() if each.name.startswith("grammar")] == []


def test_it_ends_with_its_server_however_that_ends() -> None:
    code = (
        "import sys, time\n"
        "from services.engine.base import GrammarSpec\n"
        "from services.engine.grammar.check import Vocabulary\n"
        "from services.engine.grammar.checker import GrammarChecker\n"
        "vocabulary = Vocabulary((b'a', b'b', b'end'), (2,), (2,), {})\n"
        "checker = GrammarChecker(lambda: vocabulary, 60)\n"
        "checker.check(GrammarSpec('regex', 'a'))\n"
        "print(checker.pid, flush=True)\n"
        "checker.check(GrammarSpec('regex', '(a|b)?' * 40_000))\n"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        pids = [pid, *children(pid)]
        server.kill()
    for each in pids:
        wait_for_end(each)


def test_a_process_that_always_dies_is_not_begun_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    checker = GrammarChecker(lambda: made().vocabulary)

    with pytest.raises(Unavailable):
        checker.check(GrammarSpec("regex", "a"))
    checker.stop()
