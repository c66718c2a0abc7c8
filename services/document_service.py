"""Reads the files of a request for its prompt: texts and PDFs as text, and images by their file's id."""

import asyncio
import base64
import binascii
import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from schemas.chat_schema import ChatMessage
from services.chat.request import files
from services.chat.request.files import Content, FileRef, ReadFiles
from services.documents import text
from services.documents.text import Unreadable
from services.engine.base import Message
from services.engine.scheduling.fair_slots import FairSlots
from services.errors import InvalidRequest, NotFound
from services.fetch_service import Fetcher
from services.file_service import FileService, file_not_found

MAX_FILES = 64  # of a request, those of its conversation included
MAX_CONCURRENT = 3  # PDFs: each may take a processor and a gigabyte
SHARE = 2  # of them, of one owner
MAX_CACHED = 16_777_216  # characters of PDFs: a conversation brings its files with each turn
MAX_BYTES = 32 * 1024 * 1024
DATA_URL = re.compile(r"data:[a-z0-9.+/-]{0,128}(;[a-z0-9=._-]{1,64}){0,8};base64,", re.IGNORECASE)
UNNAMED = "unnamed"


class DocumentService:
    """`files`: None: there are none by id. `fetcher`: None: nothing is fetched."""

    def __init__(
        self, files: FileService | None = None, *, max_bytes: int = MAX_BYTES, fetcher: Fetcher | None = None
    ) -> None:
        self._files = files
        self._max_bytes = max_bytes
        self._fetcher = fetcher
        self._turns = FairSlots(MAX_CONCURRENT, SHARE)
        self._texts = _TextCache(MAX_CACHED)

    async def read(self, messages: list[Message], num_own: int, owner: str, read: ReadFiles) -> list[Message]:
        """The messages with what stands for their files. Raises for the first wrong one, by its parameter; `read` is
        not read again, and gets what is."""
        found = [each.get("content") for each in messages]
        if not (refs := files.refs(found, num_own)):
            return messages
        changed = await self._replaced(found, refs, owner, read)
        return [{**each, "content": changed.get(place, each.get("content"))} for place, each in enumerate(messages)]

    async def read_messages(self, messages: Sequence[ChatMessage], owner: str) -> list[ChatMessage]:
        """The same, but images stay as they are."""
        found = [each.content for each in messages]
        refs = [ref for ref in files.refs(found, len(found)) if ref.source[0] != "image_id"]
        changed = await self._replaced(found, refs, owner, {})
        return [
            each.model_copy(update={"content": changed[place]}) if place in changed else each
            for place, each in enumerate(messages)
        ]

    async def _replaced(
        self, found: Sequence[Content], refs: Sequence[FileRef], owner: str, read: ReadFiles
    ) -> dict[int, Content]:
        if len(refs) > MAX_FILES:
            raise InvalidRequest(f"There are more than {MAX_FILES} files", param=refs[MAX_FILES].param)
        for ref in refs:
            if ref.source not in read:
                read[ref.source] = await self._read(ref, owner)
        return files.replaced(found, {ref.place: ref.replacement(read[ref.source]) for ref in refs})

    async def _read(self, ref: FileRef, owner: str) -> str:
        match ref.source:
            case ("file_data", sent):
                data, filename = await asyncio.to_thread(self._decoded, sent, ref), UNNAMED
            case ("file_url", url):
                data, filename = await self._fetched(url, ref), PurePosixPath(urlsplit(url).path).name
            case (_, file_id):
                data, filename = await self._stored(file_id, ref, owner)
        if ref.source[0] == "image_id":
            return await asyncio.to_thread(_data_url, data)
        try:
            return files.as_text(ref.filename or filename or UNNAMED, await self._text(data, owner))
        except Unreadable as error:
            raise InvalidRequest(f"'%s' {error}", ref.param) from error

    async def _text(self, data: bytes, owner: str) -> str:
        if not text.is_pdf(data):
            return await asyncio.to_thread(text.plain, data)
        key = (owner, await asyncio.to_thread(_digest, data))
        if (known := self._texts.get(key)) is None:
            async with self._turns.slot(owner):
                known = await text.pdf(data)
            self._texts.add(key, known)
        return known

    def _decoded(self, sent: str, ref: FileRef) -> bytes:
        begin = DATA_URL.match(sent)
        start = begin.end() if begin else 0
        if len(sent) - start > self._max_bytes // 3 * 4 + 4:
            raise self._too_large(ref)
        try:
            return base64.b64decode(sent[start:], validate=True)
        except (binascii.Error, ValueError):  # the latter for what is not ASCII
            raise InvalidRequest("'%s' is neither base64 nor a data URL in base64", ref.param) from None

    async def _fetched(self, url: str, ref: FileRef) -> bytes:
        if self._fetcher is None:
            raise InvalidRequest(
                "'%s' is a URL, and this server fetches no files: upload it, or send its data", ref.param
            )
        return await self._fetcher.get(url, ref.param)

    async def _stored(self, file_id: str, ref: FileRef, owner: str) -> tuple[bytes, str]:
        try:
            if self._files is None:
                raise file_not_found(file_id)
            content = await self._files.content(file_id, owner)
        except NotFound as error:
            raise NotFound(error.text, param=ref.param) from None
        async with content.file as file:
            if content.bytes > self._max_bytes:
                raise self._too_large(ref)
            return await file.read(content.bytes), content.filename

    def _too_large(self, ref: FileRef) -> InvalidRequest:
        return InvalidRequest(f"'%s' has more than {self._max_bytes} bytes", ref.param)


def _data_url(image: bytes) -> str:
    return "data:image/any;base64," + base64.b64encode(image).decode()  # what it is, its first bytes say


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class _TextCache:
    """Least recently used texts go first."""

    def __init__(self, max_characters: int) -> None:
        self._left = max_characters
        self._texts: OrderedDict[tuple[str, bytes], str] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> str | None:
        if (found := self._texts.get(key)) is not None:
            self._texts.move_to_end(key)
        return found

    def add(self, key: tuple[str, bytes], text: str) -> None:
        if key in self._texts:  # two requests have read it
            return
        self._texts[key] = text
        self._left -= len(text)
        while self._left < 0:
            self._left += len(self._texts.popitem(last=False)[1])
