"""sentence-transformers as a benchmark target, with a fake library of that name."""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.test_tools.openai_server import Peer, answering
from tests.test_tools.test_benchmark import bench
from tools.bench.command import parse
from tools.bench.load import EmbeddingLoad
from tools.bench.rounds import Plan, run

LIBRARY = """
print("something about itself")
class SentenceTransformer:
    def __init__(self, source):
        self.source = source
    def bfloat16(self):
        return self
    def encode(self, texts, batch_size, show_progress_bar):
        print("something else")
        {encode}
"""
GOOD = "return [[0.5]] * len(texts)"
LOAD = EmbeddingLoad(streams=2, texts=8, batch=4)

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda text: (tmp_path / "sentence_transformers.py").write_text(text) and None


@pytest.fixture
def peer() -> Iterator[Peer]:
    with answering(Peer()) as peer:
        yield peer


def compare(peer: Peer, tmp_path: Path, *options: str) -> str:
    targets = ["--target", "st=sentence-transformers:a-folder", "--target", f"a={peer.at('a')}"]
    load = ["--embeddings", "--texts", "8", "--batch", "4", "--streams", "2", "--rounds", "2"]
    return bench(*targets, *load, *options, "--output", f"{tmp_path}/x").output.replace("\n", "")


def test_it_takes_turns_with_servers(install: Install, peer: Peer, tmp_path: Path) -> None:
    install(LIBRARY.format(encode=f"assert batch_size == 4 and self.source == 'a-folder'; {GOOD}"))
    assert "Ratios to st" in compare(peer, tmp_path)
    rounds = json.loads((tmp_path / "x.json").read_bytes())["rounds"]
    assert [name for name, _ in groupby(each["target"] for each in rounds)] == ["st", "a"] * 3
    assert {(answer["units"], answer["error"]) for each in rounds[::2] for answer in each["answers"]} == {(8, None)}


async def test_it_gets_the_same_texts_as_servers(install: Install, peer: Peer, tmp_path: Path) -> None:
    install(
        LIBRARY.format(encode=f"open({str(tmp_path / 'texts')!r}, 'a').writelines(t + chr(10) for t in texts); {GOOD}")
    )
    targets = [parse("st=sentence-transformers:x", {}), parse(f"a={peer.at('a')}", {})]
    rounds = [each async for each in run(Plan(targets, [LOAD], 1, 60, 0))]
    assert len(rounds) == 4
    sent = [text for sent in peer.requests for text in sent.body["input"]]
    assert sorted((tmp_path / "texts").read_text().splitlines()) == sorted(sent)


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("raise ModuleNotFoundError('No module named sentence_transformers')", "No module named sentence_transformers"),
        ("class SentenceTransformer:\n    def __init__(self, source): raise OSError('no such model')", "no such model"),
    ],
)
def test_missing_library_is_reported_before_measuring(
    install: Install, peer: Peer, tmp_path: Path, library: str, message: str
) -> None:
    install(library)
    output = compare(peer, tmp_path)
    assert message in output
    assert sys.executable in output
    assert peer.requests == []


def test_missing_python_is_reported(peer: Peer, tmp_path: Path) -> None:
    assert "nowhere/python cannot be run" in compare(peer, tmp_path, "--python", "nowhere/python")


@pytest.mark.parametrize(
    ("encode", "error"),
    [("raise ValueError('too long')", "ValueError: too long"), ("import os; os._exit(3)", "its process ended with 3")],
)
def test_its_errors_are_counted(install: Install, peer: Peer, tmp_path: Path, encode: str, error: str) -> None:
    install(LIBRARY.format(encode=encode))
    output = compare(peer, tmp_path)
    assert error in output
    assert "a:" not in output
    counted = json.loads((tmp_path / "x.json").read_bytes())["figures"]
    assert {each["target"]: each["errors"] for each in counted} == {"st": 2, "a": 0}


async def test_round_ends_at_its_limit(install: Install) -> None:
    install(LIBRARY.format(encode="import threading; threading.Event().wait()"))
    plan = Plan([parse("st=sentence-transformers:x", {})], [LOAD], 1, 0.1, 0)
    errors = [answer.error async for each in run(plan) for answer in each.answers]
    assert errors == ["cut off at the end of its round's time", "its process ended with -9"]
