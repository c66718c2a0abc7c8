import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tests.test_tools.openai_server import ANSWER, FINISH, ROLE, USAGE, Peer, answering, sse, text
from tools import cli
from tools.bench.answer import Answer, read
from tools.bench.command import parse
from tools.bench.exchange import Arrival, Exchange
from tools.bench.figures import add_up, percentile
from tools.bench.load import ChatLoad, EmbeddingLoad, Load
from tools.bench.rounds import Plan, Round, run
from tools.bench.server import Server

ROOT = Path(cli.__file__).parent.parent
CHAT = ChatLoad(streams=1, requests=2, words=20, tokens=4)
GOOD = Answer(seconds=1, first=0.5, gaps=[0.1], units=4, prompt_tokens=7, error=None)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with answering(Peer()) as peer:
        yield peer


def plan(peer: Peer, *loads: Load, targets: Sequence[str] = "a", rounds: int = 1, seconds: float = 60) -> Plan:
    return Plan([Server(name, peer.at(name), "default") for name in targets], loads, rounds, seconds, seed=0)


async def measured(plan: Plan) -> list[Round]:
    return [each async for each in run(plan)]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *arguments], catch_exceptions=False)


def came(*arrivals: tuple[float, bytes], error: str | None = None) -> Answer:
    return read(CHAT, Exchange([Arrival(at, data) for at, data in arrivals], 9.0, error))


# Requests


def test_same_seed_gives_the_same_unique_prompts() -> None:
    bodies = [body for number in range(3) for body in CHAT.bodies(0, number)]
    assert bodies == [body for number in range(3) for body in CHAT.bodies(0, number)]
    prompts = [json.dumps(body["messages"]) for body in [*bodies, *CHAT.bodies(1, 0)]]
    assert len(set(prompts)) == len(prompts)


def test_prompts_have_the_length_and_the_shared_prefix() -> None:
    for body in ChatLoad(streams=1, requests=3, words=20, tokens=4, prefix_words=30).bodies(0, 1):
        system, user = body["messages"]  # type: ignore[misc]
        assert (len(system["content"].split()), len(user["content"].split())) == (30, 20)
    loads = [ChatLoad(streams, 2, 20, 4, prefix_words=30) for streams in (1, 2)]
    assert len({json.dumps(body["messages"][0]) for load in loads for body in load.bodies(0, 1)}) == 1  # type: ignore[index]


def test_fixed_length_is_optional() -> None:
    fixed = ChatLoad(streams=1, requests=1, words=20, tokens=4, fixed_length=True)
    assert {"ignore_eos", "min_tokens"} == next(fixed.bodies(0, 1)).keys() - next(CHAT.bodies(0, 1)).keys()


def test_texts_are_batched_and_of_all_lengths() -> None:
    load = EmbeddingLoad(streams=2, texts=40, batch=16)
    batches = [body["input"] for body in load.bodies(0, 1)]
    assert [len(batch) for batch in batches] == [16, 16, 8]  # type: ignore[arg-type]
    lengths = [len(each.split()) for each in load.inputs(0, 1)]
    assert 5 <= min(lengths) < 40 < 80 < max(lengths) <= 120


async def test_target_may_name_several_models_in_turn(peer: Peer) -> None:
    await measured(Plan([parse(f"a={peer.at('a')}#one,two", {})], [replace(CHAT, requests=4)], 1, 60, seed=0))
    models = [each.body["model"] for each in peer.requests]
    assert sorted(models[-4:]) == ["one", "one", "two", "two"]


async def test_target_may_store_its_answers(peer: Peer) -> None:
    targets = [parse(f"{each}={peer.at(each)}#default{option}", {}) for each, option in (("a", ""), ("b", "+store"))]
    await measured(Plan(targets, [CHAT], rounds=1, seconds=60, seed=0))
    assert {request.target: request.body.get("store") for request in peer.requests} == {"a": None, "b": True}
    with pytest.raises(typer.BadParameter, match="stone"):
        parse("a=http://127.0.0.1#default+stone", {})


# Answers


def test_times_are_of_content_chunks() -> None:
    answer = came((1.0, sse(ROLE)), (2.0, sse(text("a"))), (2.5, sse(text("b"))), (4.0, sse(text("c"), FINISH, USAGE)))
    assert answer == Answer(9.0, first=2.0, gaps=[0.5, 1.5], units=5, prompt_tokens=7, error=None)


def test_chunks_may_be_split_anywhere() -> None:
    data = sse(*ANSWER).replace(b"\n", b"\r\n")
    whole = came((1.0, data))
    assert whole.units == 5
    for place in range(len(data)):
        assert came((1.0, data[:place]), (1.0, data[place:])) == whole


def test_without_usage_chunks_are_counted() -> None:
    assert came((1.0, sse(ROLE, text("a"), text("b"), FINISH))).units == 2


def test_reasoning_and_tool_calls_are_content() -> None:
    deltas: list[dict[str, Any]] = [{"reasoning_content": "a"}, {"reasoning": "b"}, {"tool_calls": [{"index": 0}]}]
    assert came((1.0, sse(*({"choices": [{"delta": delta}]} for delta in deltas), FINISH))).units == 3


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (sse(text("a")), "ended before"),
        (sse(text("a"), {"error": {"message": "too hot"}}), "too hot"),
        (b"data: no json\n\n", "not as OpenAI answers"),
        (b'data: {"choices": 1}\n\n', "not as OpenAI answers"),
        (b"", "ended before"),
    ],
)
def test_errors_in_a_stream_are_errors(data: bytes, error: str) -> None:
    assert error in (came((1.0, data)).error or "")


def test_content_before_an_error_counts() -> None:
    answer = came((1.0, sse(ROLE, text("a"), text("b"))), error="cut off")
    assert (answer.units, answer.error) == (2, "cut off")


# Figures


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_match_numpy(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(numpy.percentile(values, 100 * share)))


def test_empty_list_has_no_percentile() -> None:
    assert percentile([], 0.5) is None


def test_figures_are_medians_without_the_warm_up() -> None:
    seconds = [0.001, 1.0, 4.0, 2.0]
    (found,) = add_up(Round("a", CHAT, number, each, [GOOD]) for number, each in enumerate(seconds))
    assert (found.rounds, found.rate, found.slowest, found.fastest) == (3, 2.0, 1.0, 4.0)
    assert (found.first_p50, found.gap_p95, found.units, found.errors) == (0.5, 0.1, 4, 0)


def test_errors_are_counted_without_their_times() -> None:
    bad = Answer(seconds=9, first=8.0, gaps=[7.0], units=2, prompt_tokens=None, error="no")
    (found,) = add_up([Round("a", CHAT, 1, 2.0, [GOOD, bad])])
    assert (found.errors, found.first_p95, found.gap_p95, found.rate) == (1, 0.5, 0.1, 3.0)


# Runs


async def test_targets_take_turns(peer: Peer) -> None:
    loads = [CHAT, ChatLoad(streams=2, requests=2, words=20, tokens=4)]
    rounds = await measured(plan(peer, *loads, targets="ab", rounds=2))
    assert [name for name, _ in groupby(request.target for request in peer.requests)] == ["a", "b"] * 6
    assert [(each.target, each.number) for each in rounds[:6]] == [(name, n) for n in range(3) for name in "ab"]
    assert [each.load for each in rounds] == [loads[0]] * 6 + [loads[1]] * 6


async def test_targets_get_the_same_requests(peer: Peer) -> None:
    await measured(plan(peer, CHAT, targets="ab"))
    by_a, by_b = ([request.body for request in peer.requests if request.target == name] for name in "ab")
    assert by_a == by_b
    assert by_a[0]["model"] == "default"
    assert by_a[0]["stream_options"] == {"include_usage": True}


async def test_concurrency_is_the_number_of_streams(peer: Peer) -> None:
    barrier = threading.Barrier(3)  # passes three together
    peer.arrived = lambda: barrier.wait(30)
    rounds = await measured(plan(peer, ChatLoad(streams=3, requests=6, words=20, tokens=4)))
    assert [len(each.answers) for each in rounds] == [6, 6]
    assert all(answer.error is None and answer.units == 5 for each in rounds for answer in each.answers)


async def test_error_status_is_an_error(peer: Peer) -> None:
    peer.status = lambda body: 503
    _, counted = await measured(plan(peer, CHAT))
    assert {answer.error for answer in counted.answers} == {'HTTP 503: {"error": {"message": "no"}}'}
    assert add_up([counted])[0].rate == 0


async def test_stopped_server_is_an_error() -> None:
    nowhere = Plan([Server("a", "http://127.0.0.1:9/v1", "default")], [CHAT], 1, 60, 0)
    _, counted = await measured(nowhere)
    assert all("Cannot connect" in (answer.error or "") for answer in counted.answers)


async def test_round_ends_at_its_limit_and_keeps_partial_answers(peer: Peer) -> None:
    peer.held_back = 3
    rounds = await measured(plan(peer, CHAT, seconds=0.5))
    first, second = rounds[1].answers
    assert (first.units, second.units) == (2, 0)
    assert all("cut off" in (answer.error or "") for answer in (first, second))


async def test_embeddings_are_counted_in_texts(peer: Peer) -> None:
    _, counted = await measured(plan(peer, EmbeddingLoad(streams=2, texts=40, batch=16)))
    assert sorted(answer.units for answer in counted.answers) == [8, 16, 16]
    assert all(answer.first == answer.seconds and not answer.error for answer in counted.answers)


# Command


def test_results_are_shown_and_written(peer: Peer, tmp_path: Path) -> None:
    targets = ["--target", f"a={peer.at('a')}", "--target", f"b={peer.at('b')}#a-model"]
    output = tmp_path / "new" / "figures"
    result = bench(*targets, "--streams", "1,2", "--rounds", "2", "--requests", "2", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert {request.body["model"] for request in peer.requests if request.target == "b"} == {"a-model"}
    assert "Ratios to a" in result.output
    report = json.loads(output.with_suffix(".json").read_bytes())
    assert report.keys() == {"machine", "plan", "figures", "rounds"}
    assert report["machine"].keys() == {"cpu", "cores", "memory_gb", "load_average", "system", "versions"}
    assert [(each["load"]["streams"], each["target"]) for each in report["figures"]] == [
        (1, "a"), (1, "b"), (2, "a"), (2, "b"),
    ]  # fmt: skip
    assert len(report["rounds"]) == 12
    assert report["rounds"][0].keys() == {"target", "load", "number", "seconds", "answers"}
    assert report["rounds"][0]["answers"][0].keys() == {
        "seconds", "first", "gaps", "units", "prompt_tokens", "error",
    }  # fmt: skip
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_errors_are_shown(peer: Peer, tmp_path: Path) -> None:
    peer.status = lambda body: 500
    result = bench("--target", f"a={peer.at('a')}", "--rounds", "1", "--streams", "1", "--output", f"{tmp_path}/x")
    assert "a: 4 x: HTTP 500" in result.output
    assert "a: 4 x while warming up: HTTP 500" in result.output


def test_embeddings_have_their_own_load(peer: Peer, tmp_path: Path) -> None:
    options = ["--embeddings", "--texts", "8", "--batch", "4", "--streams", "2", "--rounds", "1"]
    result = bench("--target", f"a={peer.at('a')}", *options, "--output", f"{tmp_path}/x")
    assert "texts/s" in result.output
    assert {len(request.body["input"]) for request in peer.requests} == {4}


def test_unreachable_target_ends_the_run_at_once(tmp_path: Path) -> None:
    result = bench("--target", "a=http://127.0.0.1:9/v1", "--output", f"{tmp_path}/x")
    assert result.exit_code == 1
    assert "a does not answer at http://127.0.0.1:9/v1/models" in result.output.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("--target", "somewhere"),
        ("--target", "=http://127.0.0.1"),
        ("--target", "a=http://127.0.0.1", "--target", "a=http://127.0.0.2"),
        ("--target", "a=sentence-transformers:folder"),
        ("--api-key", "nobody=secret"),
        ("--streams", "1,x"),
        ("--streams", "0"),
    ],
)
def test_invalid_options_are_reported(wrong: tuple[str, ...]) -> None:
    result = bench(*wrong)
    assert result.exit_code == 2
    assert wrong[1].partition("=")[0] in result.output


def test_key_is_sent_to_its_target_only(peer: Peer, tmp_path: Path) -> None:
    targets = ["--target", f"a={peer.at('a')}", "--target", f"b={peer.at('b')}", "--api-key", "b=secret"]
    bench(*targets, "--streams", "1", "--rounds", "1", "--output", f"{tmp_path}/x")
    assert {(request.target, request.key) for request in peer.requests} == {("a", None), ("b", "Bearer secret")}
    assert "secret" not in (tmp_path / "x.json").read_text()


def test_files_keep_their_whole_name(peer: Peer, tmp_path: Path) -> None:
    options = ["--target", f"a={peer.at('a')}", "--streams", "1", "--rounds", "1", "--output", f"{tmp_path}/new/v1.2"]
    assert bench(*options).exit_code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"v1.2.json", "v1.2.png"}


def test_interrupted_run_keeps_its_results(peer: Peer, tmp_path: Path) -> None:
    reached = threading.Event()
    counted = threading.Semaphore(3)  # the warm-up and two rounds; the next one hangs

    def arrived() -> None:
        if not counted.acquire(blocking=False):
            reached.set()
            peer.rest.wait(60)

    peer.arrived = arrived
    options = ["--target", f"a={peer.at('a')}", "--streams", "1", "--requests", "1", "--rounds", "9"]
    # background jobs of a shell ignore the signal
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; import sys; from tools.cli import main; sys.argv[0] = 'parley'; main()"
    command = [sys.executable, "-c", code, "bench", *options, "--output", f"{tmp_path}/x"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert reached.wait(60)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in output
    assert len(json.loads(Path(tmp_path, "x.json").read_bytes())["rounds"]) == 3


def test_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tools.bench", "aiohttp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("tools.bench.command", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = bench()
    assert result.exit_code == 1
    assert "requirements-bench.txt" in str(result.output)


@pytest.mark.parametrize(("command", "package"), [("bench", "bench"), ("reliability", "faults")])
def test_wheel_reports_that_a_checkout_is_needed(command: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"tools.{package}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, f"tools.{package}", None)
    result = CliRunner().invoke(cli.app, [command])
    assert (result.exit_code, "in a checkout" in str(result.output)) == (1, True)
