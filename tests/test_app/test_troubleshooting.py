"""docs/troubleshooting.md quotes texts that the code has: all warnings and errors of its log, all refusals at start."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANY = "…"  # in the page for what differs
LOGGED = {"warning", "error", "exception", "critical"}
REFUSALS = {"UnusableModel", "CommandError", "WrongSettings"}
SET_UP = ("app/", "database/")  # where a ValueError, too, is one of the set-up


def quoted() -> list[str]:
    """The messages in the tables: in the first column, and in the second of those that begin with a status."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\|(?: \d{3} \|)? (`[^|]+`) \|", page, re.MULTILINE)
    quotes = [quote for cell in cells for quote in re.findall("`([^`]+)`", cell)]
    assert len(quotes) > 100
    return quotes


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values):
                yield "".join(each.value if isinstance(each, ast.Constant) else ANY for each in values)
            case ast.Constant(str() as value):
                yield re.sub(r"%[\d.]*[a-z]|\{\w+\}", ANY, value)


@pytest.fixture(scope="module")
def code() -> list[str]:
    files = [path for name in ("app", "services", "database", "tools") for path in (ROOT / name).rglob("*.py")]
    return [text for path in files for text in texts(ast.parse(path.read_text()))]


def spoken(tree: ast.AST, *, is_set_up: bool) -> Iterator[str]:
    """The texts of calls that log and refuse; those without a word of their own are left out."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=[text, *_]) if name in LOGGED:
                pass
            case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in REFUSALS or (
                is_set_up and name == "ValueError"
            ):
                pass
            case _:
                continue
        yield from (found for found in itertools.islice(texts(text), 1) if re.search("[a-z]{3}", found))


def all_spoken() -> set[str]:
    files = [path for name in ("app", "services", "database") for path in (ROOT / name).rglob("*.py")]
    return {
        text
        for path in files
        for text in spoken(ast.parse(path.read_text()), is_set_up=str(path.relative_to(ROOT)).startswith(SET_UP))
    }


@pytest.mark.parametrize("text", sorted(all_spoken()))
def test_what_is_logged_and_refused_is_in_the_page(text: str) -> None:
    patterns = [".*".join(map(re.escape, quote.split(ANY))) for quote in quoted() if quote.strip(ANY + " :'")]
    assert any(re.match(pattern, text, re.DOTALL) for pattern in patterns)


@pytest.mark.parametrize("quote", quoted())
def test_text_is_in_the_code(quote: str, code: list[str]) -> None:
    parts = [part for part in quote.split(ANY) if part.strip(" :'()")]
    # a text and what stands around it may be joined from several literals
    assert any(all(part.strip() in text for part in parts) for text in code)
