"""The text of a file, whatever its name says: UTF-8 as it is, and that of a PDF."""

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).parent.parent.parent
HEAD = 1024  # bytes in which a PDF's mark is
MARK = b"%PDF-"

MAX_PAGES = 2_000
MAX_CHARACTERS = 8_000_000
CPU_S = 20
WALL_S = 60.0  # on a busy machine, too


class Unreadable(Exception):
    """Its text says why, after the name of the file's parameter."""


def is_pdf(data: bytes) -> bool:
    return MARK in data[:HEAD]


def plain(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is neither a PDF nor text in UTF-8") from None
    if "\0" in text:
        raise Unreadable("is neither a PDF nor text in UTF-8")
    return text


async def pdf(data: bytes, cpu_s: int = CPU_S) -> str:
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(_fill, file, data)
        outcome = await _read(file, cpu_s)
    if (error := outcome.get("error")) is not None:
        raise Unreadable(error)
    return outcome["text"]


def _fill(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.seek(0)


async def _read(file: BinaryIO, cpu_s: int) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.documents.pdf_process", str(MAX_PAGES), str(MAX_CHARACTERS), str(cpu_s)),
        cwd=HERE,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        stdin=file,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        async with asyncio.timeout(WALL_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise Unreadable("is a PDF that takes too long to read") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    if process.returncode:
        raise Unreadable(f"is a PDF that takes more than {cpu_s} seconds, or too much memory, to read")
    outcome: dict[str, str] = await asyncio.to_thread(json.loads, output)
    return outcome
