"""The proxies of docs/reverse-proxies.md as configured there: they stream, and pass on long bodies and lost clients."""

import http.client
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from tests.databases import free_port
from tests.test_live.page import ENGINE
from tests.test_live.service import ROOT, SECONDS, Service, running, until

pytestmark = [pytest.mark.live, pytest.mark.extended]

PAGE = (ROOT / "docs" / "reverse-proxies.md").read_text()
NAME = "chat.example.org"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("upstream"), SERVER__ALLOWED_HOSTS=NAME, **ENGINE) as service:
        yield service


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, upstream: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the proxy."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"needs Debian's package {request.param}")
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    command = COMMANDS[request.param](program, folder, upstream.port, port)
    with started(command, folder, port):
        yield port


def documented(heading: str) -> str:
    found = re.search(rf"^## {heading}\n.*?```\w*\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def nginx(program: str, folder: Path, upstream: int, port: int) -> list[str]:
    """TLS is nginx's own matter; all else is as documented."""
    server = re.sub(r" *ssl_.*\n", "", documented("nginx")).replace("443 ssl", f"127.0.0.1:{port}")
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root;\n"  # else its workers cannot write into the folder
    config.write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{server.replace('127.0.0.1:8000', f'127.0.0.1:{upstream}')}}}\n"
    )
    return [program, "-c", str(config), "-e", f"{folder}/error.log"]


def caddy(program: str, folder: Path, upstream: int, port: int) -> list[str]:
    site = (
        documented("Caddy").replace(NAME, f"http://{NAME}:{port}", 1).replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    )
    config = folder / "Caddyfile"
    config.write_text(f"{{\nadmin off\n}}\n{site}")
    return [program, "run", "--config", str(config), "--adapter", "caddyfile"]


COMMANDS = {"nginx": nginx, "caddy": caddy}


@contextmanager
def started(command: list[str], folder: Path, port: int) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/health", headers={"Host": NAME}, timeout=SECONDS).ok
        except requests.ConnectionError:
            return False

    try:
        until(answers)
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextmanager
def asked(port: int, **body: object) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        headers = {"Host": NAME, "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        with connection.getresponse() as response:
            yield response


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_pieces_arrive_one_by_one_and_a_client_that_leaves_ends_the_answer(proxy: int, upstream: Service) -> None:
    with asked(proxy, messages=question("count"), stream=True) as response:
        assert response.status == 200
        parts = [response.read1(1 << 16) for _ in range(8)]
        # a buffer of the proxy would be handed on when it is full, with dozens of events at a time
        assert max(part.count(b"data: ") for part in parts) <= 3
        assert upstream.gauge("num_requests_running") == 1
    until(lambda: upstream.gauge("num_requests_running") == 0)


def test_long_body_passes(proxy: int) -> None:
    padding = {"role": "system", "content": "x" * 8_000_000}
    with asked(proxy, messages=[padding, *question("say:hello")], max_tokens=5) as response:
        assert response.status == 400  # the service's own answer: the model takes fewer tokens
        assert json.loads(response.read())["error"]["code"] == "context_length_exceeded"


def test_plain_answer_and_its_headers_pass(proxy: int) -> None:
    with asked(proxy, messages=question("say:hello")) as response:
        assert json.loads(response.read())["choices"][0]["message"]["content"] == "hello"
        assert response.headers["x-request-id"]
