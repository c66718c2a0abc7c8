"""A remote engine among servers that refuse, fail, hang and come back."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services import rendezvous
from services.engine import build
from services.engine.base import Job, UpstreamAddress
from services.engine.remote import answer, router
from services.engine.remote.engine import RemoteEngine
from services.engine.remote.upstream import Upstream
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable
from tests.databases import free_port
from tests.test_engine.fakes import END, PATIENCE, job
from tests.test_engine.test_remote.engines import KEY, engine_at, engine_of, read, text_of
from tests.test_engine.test_remote.servers import (
    VLLM_PAGES,
    WIRES,
    Cut,
    Hold,
    WireServer,
    completions,
    event,
    models,
)
from tests.test_engine.tiny_tokenizers import SMOLLM

KINDS = pytest.mark.parametrize("kind", WIRES)
ANSWER = completions([3], [4], [END])
HELD = 4  # steps before a server of `holding` waits


def vllm(steps: Sequence[Any] = ANSWER, **options: Any) -> WireServer:
    return WireServer(VLLM_PAGES, steps, **options)


async def in_time(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


def keyed(number: int) -> Job:
    return replace(job("abc", name=f"job-{number}"), affinity=f"conversation {number}")


# --- ending a request at its server ---


@KINDS
async def test_closing_ends_the_request_at_the_server(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, [*speak([3], [4], [5])[:2], Hold()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        assert (await anext(pieces)).text == "d"
        await pieces.aclose()
        await in_time(server.requests[0].left)
        await engine.settle()
        assert engine.stats().running == engine.stats().upstreams[0].running == 0


async def test_dropping_it_does_so_too() -> None:
    server = vllm([*ANSWER[:1], Hold()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        assert (engine.stats().running, engine.stats().waiting) in ((0, 1), (1, 0))
        del pieces
        await in_time(server.requests[0].left)


async def test_stop_string_ends_the_request_at_the_server() -> None:
    server = vllm([*completions([3], [4], [5, 6], [7])[:3], Hold()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc", stop=("ef",))))
        assert (text_of(pieces), pieces[-1].finish, pieces[-1].stop) == ("d", "stop", "ef")
        await in_time(server.requests[0].left)


async def test_token_that_only_this_server_takes_for_an_end_does_so_within_two_events() -> None:
    server = vllm([*completions([3], [END], [4], [5], [6])[:4], Hold()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc")))
        assert (text_of(pieces), pieces[-1].finish) == ("d", "stop")
        await in_time(server.requests[0].left)


async def test_cancelled_submit_ends_the_request_at_the_server() -> None:
    hold = Hold()
    server = vllm([hold])
    server.pages = {**VLLM_PAGES}
    async with server.serving(), engine_at(server) as engine:
        submitting = asyncio.ensure_future(_read_one(engine))
        await in_time(server.arrived)
        submitting.cancel()
        await in_time(server.requests[0].left)
        await engine.settle()


async def _read_one(engine: RemoteEngine) -> None:
    pieces = await engine.submit(job("abc"))
    try:
        await anext(pieces)
    finally:
        await pieces.aclose()


async def test_slow_server_is_waited_for_after_the_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "ADMISSION_S", 0)
    hold = Hold()
    server = vllm([hold, *ANSWER])
    async with server.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        await in_time(hold.reached)
        assert engine.stats().waiting == 1
        hold.go.set()
        assert text_of(await read(pieces)) == "de"


async def test_refusal_that_comes_late_is_an_error_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "ADMISSION_S", 0)
    server = vllm(status=429)
    async with server.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        with pytest.raises(Overloaded):
            await anext(pieces)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "Invalid grammar specification", "type": "BadRequestError", "code": 400}, InvalidRequest),
        ({"message": "boom", "code": 503}, Unavailable),
        ({"message": "boom", "type": "service_unavailable_error", "code": None}, Unavailable),
        ({"message": "boom", "code": 429}, Overloaded),
        ("boom", Unavailable),
    ],
    ids=str,
)
async def test_first_event_may_be_the_refusal(error: Any, expected: type[ServiceError]) -> None:
    server = vllm([event({"error": error})])
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(expected) as refused:
            await engine.submit(job("abc"))
        assert_silent(refused.value, server)


async def test_choices_of_one_request_do_not_wait_for_each_other() -> None:
    hold = Hold()
    server = vllm([*ANSWER[:1], hold, *ANSWER[1:]])
    async with server.serving(), engine_at(server) as engine:
        choices = [await engine.submit(job("abc", name="one")) for _ in range(3)]
        hold.go.set()
        assert [text_of(await read(choice)) for choice in choices] == ["de"] * 3


async def test_stopping_ends_what_runs() -> None:
    server = vllm([*ANSWER[:1], Hold()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        await anext(pieces)
        await engine.stop()
        with pytest.raises(Unavailable):
            await anext(pieces)
        with pytest.raises(Unavailable):
            await engine.submit(job("abc"))


async def test_connections_serve_again() -> None:
    """The server answers several requests on one connection."""
    server = vllm()
    async with server.serving(), engine_at(server) as engine:
        for _ in range(3):
            await read(await engine.submit(job("abc")))
            await engine.settle()
        assert len({request.headers["host"] for request in server.requests}) == 1
        assert not any(request.left.is_set() for request in server.requests)


# --- errors ---


@pytest.mark.parametrize(
    ("status", "body", "expected", "param"),
    [
        (429, {"error": {"message": "wait"}}, Overloaded, None),
        (500, {"error": {"message": "boom"}}, Unavailable, None),
        (503, b"<html>", Unavailable, None),
        (401, {"error": {"message": "bad key"}}, EngineFailed, None),
        (404, {"detail": "Not Found"}, EngineFailed, None),
        (400, {"error": {"message": "This model's maximum context length is 9 tokens"}}, PromptTooLong, "messages"),
        (400, {"error": {"message": "request exceeds the available context size"}}, PromptTooLong, "messages"),
        (400, {"error": {"message": "no", "param": "top_p"}}, InvalidRequest, "top_p"),
        (400, {"error": {"message": "min_new_tokens must be in range"}}, InvalidRequest, "min_tokens"),
        (400, b"what?", InvalidRequest, None),
        (422, {"detail": []}, InvalidRequest, None),
    ],
    ids=str,
)
async def test_statuses(status: int, body: Any, expected: type[ServiceError], param: str | None) -> None:
    server = vllm(status=status, error=body, headers={"retry-after": "7"})
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(expected) as error:
            await engine.submit(job("abc"))
        assert error.value.param == param
        assert getattr(error.value, "retry_after", 7) == 7
        assert_silent(error.value, server)
        await engine.settle()
        assert engine.stats().upstreams[0].failures == (expected is Unavailable)


def assert_silent(error: ServiceError, server: WireServer) -> None:
    for secret in (KEY, str(server.port), "127.0.0.1", "boom", "html"):
        assert secret not in error.message


async def test_grammar_that_the_server_refuses_is_named() -> None:
    from services.engine.base import GrammarSpec

    server = vllm(status=400, error={"error": {"message": "Invalid grammar specification"}})
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(InvalidRequest) as error:
            await engine.submit(job("abc", grammar=GrammarSpec("regex", "a", "guided_regex")))
        assert error.value.param == "guided_regex"


async def test_nobody_listens() -> None:
    engine = engine_of(UpstreamAddress(f"http://127.0.0.1:{free_port()}/v1", KEY))
    with pytest.raises(Unavailable) as error:
        await engine.submit(job("abc"))
    assert error.value.retry_after > 0
    assert "127.0.0.1" not in error.value.message
    assert engine.stats().stalled
    await engine.stop()


async def test_server_that_says_nothing_in_time() -> None:
    server = vllm([Hold()])
    async with server.serving(), engine_at(server, timeout_s=0.2) as engine:
        with pytest.raises(Unavailable):
            await engine.submit(job("abc"))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([*ANSWER[:1], Cut()], Unavailable),
        ([*ANSWER[:1]], Unavailable),
        ([*ANSWER[:1], b"data: {nonsense\n\n"], EngineFailed),
        ([*ANSWER[:1], event(["a", "list"])], EngineFailed),
        ([*ANSWER[:1], event({"choices": [{"token_ids": ["x"]}]})], EngineFailed),
        ([*ANSWER[:1], event({"error": {"message": "boom", "code": 500}})], Unavailable),
        ([*ANSWER[:1], event({"error": {"message": "boom", "code": 404}})], EngineFailed),
        ([*ANSWER[:1], event({"error": {"type": "service_unavailable_error"}})], Unavailable),
        ([*completions([3], [4], finish="abort")], Unavailable),
    ],
    ids=["cut", "short", "no JSON", "no object", "no ids", "error", "another error", "unavailable", "aborted"],
)
async def test_answer_that_breaks_off(steps: list[Any], expected: type[ServiceError]) -> None:
    server, other = vllm(steps), vllm()
    async with server.serving(), other.serving(), engine_at(server) as engine:
        pieces = await engine.submit(job("abc"))
        assert (await anext(pieces)).text == "d"
        with pytest.raises(expected) as error:
            await read(pieces)
        assert_silent(error.value, server)
        assert not other.requests


async def test_what_breaks_behind_the_last_token_costs_nothing() -> None:
    server = vllm([*completions([3], [END])[:2], Cut()])
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc")))
        assert (text_of(pieces), pieces[-1].finish) == ("d", "stop")


async def test_what_no_server_needs_to_be_asked() -> None:
    server = vllm()
    async with server.serving(), engine_at(server, max_model_len=10) as engine:
        for wrong, param in (
            (job(""), "messages"),
            (job("abc", logit_bias={99: 1.0}), "logit_bias"),
            (job("abc", stop_token_ids=(99,)), "stop_token_ids"),
            (job("abcdefghij"), "messages"),
        ):
            with pytest.raises(InvalidRequest) as error:
                await engine.submit(wrong)
            assert error.value.param == param
        assert not server.requests
        await read(await engine.submit(job("abc", max_tokens=99)))
        assert server.body["max_tokens"] == 7


async def test_first_request_keeps_to_a_length_that_is_told_with_it() -> None:
    server = vllm()
    async with server.serving(), engine_at(server) as engine:
        assert engine.max_length == 64
        await read(await engine.submit(job("abc")))
        assert server.body["max_tokens"] == 45
        assert engine.max_length == 48


# --- several ---


async def test_another_one_answers_before_the_first_token() -> None:
    failing: list[WireServer] = [vllm(status=500), vllm([Cut()]), vllm(status=429)]
    for broken in failing:
        well = vllm()
        async with broken.serving(), well.serving(), engine_at(broken, well) as engine:
            number = 0
            while not broken.requests:  # until a key of it comes
                number += 1
                assert text_of(await read(await engine.submit(keyed(number)))) == "de"


async def test_request_that_is_wrong_is_not_tried_elsewhere() -> None:
    servers = [vllm(status=400, error={}), vllm(status=400, error={})]
    async with servers[0].serving(), servers[1].serving(), engine_at(*servers) as engine:
        with pytest.raises(InvalidRequest):
            await engine.submit(job("abc"))
        assert sum(len(server.requests) for server in servers) == 1


async def test_same_key_goes_to_the_same_server_and_keys_are_spread() -> None:
    servers = [vllm() for _ in range(3)]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.serving())
        engine = await stack.enter_async_context(engine_at(*servers))
        for _ in range(2):
            for number in range(40):
                await read(await engine.submit(keyed(number)))
        counts = [len(server.requests) for server in servers]
        assert sum(counts) == 80
        assert all(count > 0 and count % 2 == 0 for count in counts)
        assert [each.requests for each in engine.stats().upstreams] == counts


def upstreams(number: int) -> list[Upstream]:
    return [Upstream(UpstreamAddress(f"http://host-{i}:8000/v1"), timeout_s=1) for i in range(number)]


def test_only_its_keys_move_when_an_upstream_goes() -> None:
    all_of_them = upstreams(4)
    before = [router.Router(all_of_them).candidates(keyed(number))[0] for number in range(200)]
    after = [router.Router(all_of_them[:3]).candidates(keyed(number))[0] for number in range(200)]
    moved = [number for number in range(200) if before[number] is not after[number]]
    assert moved == [number for number in range(200) if before[number] is all_of_them[3]]
    assert 20 < len(moved) < 90


def test_load_comes_before_affinity_where_the_difference_is_large() -> None:
    busy, idle = upstreams(2)
    routes = router.Router([busy, idle])
    its = next(number for number in range(99) if routes.candidates(keyed(number))[0] is busy)
    busy.running = rendezvous.GAP
    assert routes.candidates(keyed(its)) == [busy, idle]
    busy.running += 1
    assert routes.candidates(keyed(its)) == [idle, busy]
    idle.running = busy.running - 1
    assert routes.candidates(keyed(its)) == [busy, idle]


async def test_errors_that_it_answers_with_do_not_eject_it() -> None:
    for server in (vllm(status=500), vllm([event({"error": {"code": 500}})])):
        async with server.serving(), engine_at(server) as engine:
            for _ in range(5):
                with pytest.raises(Unavailable):
                    await engine.submit(job("abc"))
                await engine.settle()
            (stats,) = engine.stats().upstreams
            assert (stats.healthy, stats.failures) == (True, 5)


@pytest.mark.parametrize("steps", [[Cut()], [], ANSWER[:1]], ids=["cut", "nothing", "short"])
async def test_failing_one_is_ejected_and_taken_back(steps: list[Any]) -> None:
    server = vllm(steps)
    async with server.serving():
        upstream = Upstream(UpstreamAddress(server.url), timeout_s=5)
        engine = engine_of(UpstreamAddress(server.url))
        engine.router.upstreams = [upstream]
        for _ in range(3):
            assert upstream.healthy
            with pytest.raises(Unavailable):
                await read(await engine.submit(job("abc")))
            await engine.settle()
        assert not upstream.healthy
        server.health = 503
        await upstream.check()
        assert not upstream.healthy
        server.health, server.steps = 200, ANSWER
        await upstream.check()
        assert upstream.healthy
        assert text_of(await read(await engine.submit(job("abc")))) == "de"
        await engine.stop()


async def test_ejected_ones_are_tried_behind_the_others() -> None:
    server = vllm()
    async with server.serving():
        engine = engine_of(UpstreamAddress(server.url), UpstreamAddress(f"http://127.0.0.1:{free_port()}"))
        ejected, gone = engine.router.upstreams
        ejected.healthy = False
        assert engine.router.candidates(job("abc")) == [gone, ejected]
        assert text_of(await read(await engine.submit(job("abc")))) == "de"
        await engine.stop()


async def test_ejected_ones_are_tried_where_there_are_no_others() -> None:
    server = vllm()
    async with server.serving(), engine_at(server) as engine:
        (upstream,) = engine.router.upstreams
        upstream.healthy = False
        assert text_of(await read(await engine.submit(job("abc")))) == "de"


async def test_another_server_may_take_the_place_of_one_that_is_gone() -> None:
    server = vllm()
    async with server.serving(), engine_at(server) as engine:
        await read(await engine.submit(job("abc")))
        (upstream,) = engine.router.upstreams
        server.health = 500
        await upstream.check()
        pages, speak = WIRES["llama.cpp"]
        server.pages, server.steps, server.health = pages, speak([3]), 200
        await upstream.check()
        assert text_of(await read(await engine.submit(job("abc")))) == "d"
        assert "n_predict" in server.body


@pytest.mark.parametrize(
    "pages",
    [{}, {"/v1/models": []}, {"/v1/models": models("somebody")}, {"/v1/models": {"data": []}}],
    ids=["none", "no object", "unknown", "empty"],
)
async def test_server_of_no_kind(pages: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    server = WireServer(pages, ANSWER)
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(Unavailable) as error:
            await engine.submit(job("abc"))
        assert_silent(error.value, server)
        assert "upstream 127.0.0.1" in caplog.text


@pytest.mark.parametrize("url", ["gpu1:8000", "ftp://gpu1/v1", "http:///v1"])
def test_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Upstream(UpstreamAddress(url), timeout_s=1)
    assert "secret" not in repr(UpstreamAddress(url, "secret"))


@pytest.mark.parametrize("kind", ["vllm", "parley"])
async def test_callers_do_not_find_each_others_prefixes(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, speak([3]))
    async with server.serving(), engine_at(server) as engine:
        for owner, salt in (("local", ""), ("local", "s"), ("key_1", ""), ("key_1", "s"), ("key_2", "")):
            await read(await engine.submit(replace(job("abc"), owner=owner, cache_salt=salt)))
    salts = [request.body.get("cache_salt") for request in server.requests]
    assert salts[:2] == [None, "s"]
    assert len(set(salts)) == 5
    async with server.serving(), engine_at(server, share_prefixes=True) as engine:
        await read(await engine.submit(replace(job("abc"), owner="key_1")))
        assert "cache_salt" not in server.body


# --- loading ---


@pytest.mark.skipif(not SMOLLM.is_dir(), reason="make run fetches it")
def test_is_loaded_without_torch() -> None:
    code = f"""
import sys
from services.engine import build
from services.engine.base import UpstreamAddress
engine = build("chat", source={str(SMOLLM)!r}, engine="remote", upstreams=[UpstreamAddress("http://gpu1:8000/v1")])
assert (engine.max_length, engine.device) == (8192, "remote")
assert engine.tokenizer.decode(engine.tokenizer.encode("hello")) == "hello"
assert "user" in engine.tokenizer.apply_chat_template([{{"role": "user", "content": "hi"}}], tokenize=False)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_weights_are_needed(tmp_path: Path) -> None:
    if not SMOLLM.is_dir():
        pytest.skip("make run fetches it")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(SMOLLM / name)
    engine = build("chat", source=str(tmp_path), engine="remote", upstreams=[UpstreamAddress("http://gpu1/v1")])
    assert engine.max_length == 10**9
