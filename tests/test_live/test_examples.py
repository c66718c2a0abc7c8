"""The examples, as they are in the repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_live.service import ROOT, SECONDS, Service, running

pytestmark = pytest.mark.live


def example(*command: str, **environment: str) -> str:
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_python(service: Service) -> None:
    output = example(sys.executable, "examples/python_openai.py", OPENAI_BASE_URL=f"{service.url}/v1")
    assert "tokens)\n" in output
    assert "cold" in output
    kitten, rates = output.splitlines()[-2:]
    assert float(kitten.split()[0]) > float(rates.split()[0])


def test_a_conversation_goes_on_after_a_restart(folder: Path) -> None:
    def remembers(service: Service, *arguments: str) -> str:
        url = f"{service.url}/v1"
        return example(sys.executable, "examples/remembers.py", *arguments, OPENAI_BASE_URL=url).strip()

    with running(folder) as service:
        conversation = remembers(service)
        service.kill()
    with running(folder) as service:
        answer = remembers(service, conversation)
        told, _, asked, said = service.messages(conversation_id=conversation)
        assert (told["content"], asked["content"]) == ("I am 34 years old.", "How old am I?")
        assert "34" in answer
        assert said["content"].strip() == answer


def test_curl(service: Service) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    lines = example("bash", "examples/curl.sh", service.url).splitlines()
    assert "data: [DONE]" in lines
    models, answer, stored, embedding = (json.loads(line) for line in lines if line.startswith("{"))
    assert models["data"]
    assert "event: done" in lines
    assert "data:  cold" in lines
    assert "7 days" in answer["response"]
    assert stored["data"][-1]["content"] == answer["response"]
    assert len(embedding["data"][0]["embedding"]) == 4
