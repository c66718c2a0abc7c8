"""The text of files, and of those that are made to harm."""

import pytest

from services.documents import text
from services.documents.text import Unreadable
from tests import pdfs


async def test_pages_are_paragraphs() -> None:
    assert await text.pdf(pdfs.pdf("Lorn", "Brae")) == "Lorn\n\nBrae"


@pytest.mark.parametrize("data", [b"Lorn \xc3\xa4", b"\xef\xbb\xbfLorn \xc3\xa4"], ids=["plain", "with a mark"])
def test_texts_are_utf8(data: bytes) -> None:
    assert text.plain(data) == "Lorn ä"


@pytest.mark.parametrize("data", [b"\xff\xfeL\0o\0", b"\x89PNG\r\n", b"PK\0\0"])
def test_others_are_not_read(data: bytes) -> None:
    with pytest.raises(Unreadable, match="neither a PDF nor text in UTF-8"):
        text.plain(data)


async def test_a_password_for_changes_is_none_for_reading() -> None:
    assert await text.pdf(pdfs.encrypted(pdfs.pdf("Lorn"), "")) == "Lorn"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pdfs.encrypted(pdfs.pdf("Lorn"), "secret"), "needs a password"),
        (b"%PDF-1.7\nnothing more", "broken"),
        (pdfs.pdf("Lorn")[:300], "broken"),
        (pdfs.pdf(""), "without text"),
        (pdfs.bomb(300_000_000), "too much memory"),
    ],
    ids=["encrypted", "empty", "cut", "no text", "bomb"],
)
async def test_what_cannot_be_read_says_why(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        await text.pdf(data)


async def test_many_pages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_PAGES", 1)
    with pytest.raises(Unreadable, match="more than 1 pages"):
        await text.pdf(pdfs.pdf("a", "b"))


async def test_long_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_CHARACTERS", 3)
    with pytest.raises(Unreadable, match="too much text"):
        await text.pdf(pdfs.pdf("Lorn"))


async def test_its_time_is_bounded() -> None:
    with pytest.raises(Unreadable, match="more than 1 seconds"):
        await text.pdf(pdfs.slow(), cpu_s=1)
