"""The Java examples, as they are in the repository, run from their source."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from openai import OpenAI

from tests.test_live.conftest import KEYS
from tests.test_live.service import ENDLESS, ROOT, SECONDS, Service, text_of, until
from tests.test_live.wire import wired

pytestmark = pytest.mark.live

JARS = [Path("/usr/share/java/okhttp.jar"), Path("/usr/share/java/okio.jar")]
KEEP_ALIVE = b": keep-alive"


@pytest.fixture(scope="session")
def java() -> str:
    found = shutil.which("java")
    if found is None:
        pytest.skip("needs java, 17 or later")
    return found


@pytest.fixture(scope="session")
def okhttp(java: str) -> list[str]:
    """How a source file is run with it."""
    if not all(jar.exists() for jar in JARS):
        pytest.skip("needs Debian's package libokhttp-java")
    return [java, "-cp", os.pathsep.join(map(str, JARS))]


def run(command: list[str], source: str, url: str, key: str = "none") -> subprocess.CompletedProcess[str]:
    command = [*command, f"examples/java/{source}", url]
    environment = os.environ | {"PARLEY_API_KEY": key}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def objects(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_jdk_s_client_which_asks_for_http_2_each_time(service: Service, java: str) -> None:
    complaints = service.complaints()
    done = run([java], "JdkChat.java", service.url)
    assert done.stderr.splitlines() == ["HTTP_1_1 200"] * 4
    plain = [each for each in objects(done.stdout) if each["object"] == "chat.completion"]
    chunks = [each for each in objects(done.stdout) if each["object"] == "chat.completion.chunk"]
    assert len(plain) == 3
    assert all(each["choices"][0]["message"]["content"] for each in plain)
    assert text_of(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert service.complaints() == complaints


def test_okhttp(service: Service, okhttp: list[str]) -> None:
    events = objects(run(okhttp, "OkHttpChat.java", service.url).stdout)
    chunks = [event for event in events if "choices" in event]
    pieces = [event for event in events if "text" in event]
    assert text_of(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    reply = service.messages()[-1]
    assert {piece["message_id"] for piece in pieces} == {reply["id"]}
    assert "".join(piece["text"] for piece in pieces) == reply["content"]


def test_okhttp_waits_for_its_turn_longer_than_it_waits_for_a_byte(guarded: Service, okhttp: list[str]) -> None:
    """Its read timeout is 10 s, and nothing is said for longer than that: until the third keep-alive has come.

    Both are of one key: between two the waiting one would get its turn sooner.
    """
    with OpenAI(base_url=guarded.url, api_key=KEYS[0]) as client, wired(guarded.port) as wire:
        outputs: list[str] = []
        with busy(client):
            example = Thread(target=lambda: outputs.append(run(okhttp, "OkHttpChat.java", wire.url, KEYS[0]).stdout))
            example.start()
            until(lambda: any(heard.count(KEEP_ALIVE) >= 3 for heard in wire.heard))
            assert all(heard.count(b"data: ") <= 1 for heard in wire.heard)  # the role, said at its admission
        example.join(SECONDS)
    (output,) = outputs
    assert text_of([event for event in objects(output) if "choices" in event])
    assert [event for event in objects(output) if "text" in event]


@contextmanager
def busy(client: OpenAI) -> Iterator[None]:
    """The only place in the batch taken, by an answer that would go on for minutes."""
    with client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": ENDLESS}], temperature=0, stream=True
    ) as stream:
        next(iter(stream))
        yield
