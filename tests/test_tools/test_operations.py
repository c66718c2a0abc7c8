"""The commands of docs/operations.md run as they are written."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_they_run_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_DATABASE__URL", f"sqlite:///{tmp_path}/parley.db")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in BLOCK.findall(PAGE) for line in block.splitlines()]
    assert len(lines) >= 11
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("parley", 0), (line, result.output)


def test_named_files_and_targets_are_there() -> None:
    paths = set(re.findall(r"(?<![\w/])deploy/[\w./-]*\w", PAGE))
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert [name for name in re.findall(r"`make (\w+)`", PAGE) if f"\n{name}:" not in makefile] == []


def test_it_names_every_alert() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "parley.rules.yml").read_text("utf-8")
    assert [name for name in re.findall(r"alert: (\w+)", rules) if f"`{name}`" not in PAGE] == []
