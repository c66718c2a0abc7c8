"""OpenAI's own client for JavaScript against the real service and the real model."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.test_live.service import CHAT, SECONDS, Service

pytestmark = pytest.mark.live

CLIENT = "openai@6.49.0"  # the last that runs on Debian's node
SCRIPT = Path(__file__).with_name("npm_openai.mjs")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which the client can be imported; npm keeps what it fetched for the next time."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--prefer-offline", CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {CLIENT}: {done.stderr[-300:]}")
    shutil.copy(SCRIPT, folder)
    return folder


def test_it_chats_streams_calls_and_parses(service: Service, installed: Path) -> None:
    done = subprocess.run(
        ["node", str(installed / SCRIPT.name), service.url, CHAT],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = {each["what"]: each["value"] for each in map(json.loads, done.stdout.splitlines())}
    assert "".join(said["pieces"]) == said["plain"] != ""
    assert len(said["pieces"]) > 6
    assert said["call"]["name"] == "weather"
    for weather in (json.loads(said["call"]["arguments"]), said["parsed"]):
        assert weather["sky"] in ("clear", "cloudy", "rainy")
        assert isinstance(weather["is_cold"], bool)
    assert said["streamed call"].items() >= said["call"].items()  # the helper adds the parsed arguments
    assert said["error"] == ["NotFoundError", 404, "model_not_found"]
