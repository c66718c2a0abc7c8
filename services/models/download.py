"""Downloads a file: resumable, verified by SHA-256, with progress reports."""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)

ATTEMPTS = 5
CHUNK = 1 << 14  # bytes; at most that much is lost when a connection breaks
TIMEOUT = (15, 60)  # seconds to connect, and between two reads
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)

Report = Callable[[int, int], None]  # bytes so far, bytes in total (0: unknown)
Pause = Callable[[float], None]


class ChecksumMismatch(ValueError): ...


def download(
    url: str,
    target: Path,
    sha256: str,
    report: Report,
    *,
    headers: Mapping[str, str] | None = None,
    pause: Pause = time.sleep,
) -> None:
    """Writes `target` only when it is complete and verified; `<target>.part` keeps a partial download."""
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    _receive(url, part, report, headers or {}, pause)
    if (actual := sha256_of(part)) == sha256:
        part.replace(target)
        return
    part.unlink()
    if not resumed:
        raise ChecksumMismatch(f"expected {sha256}, got {actual}")
    # the partial file was of another file: starts again from nothing
    download(url, target, sha256, report, headers=headers, pause=pause)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(url: str, part: Path, report: Report, headers: Mapping[str, str], pause: Pause) -> None:
    if url.startswith("file:"):  # a package index on this disk, as on machines without a network
        shutil.copyfile(url2pathname(urlsplit(url).path), part)
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, part, report, headers)
            return
        except BROKEN as error:
            if attempt == ATTEMPTS:
                raise
            logger.warning("the connection broke (%s), trying again", type(error).__name__)
            pause(attempt)


def _continue(url: str, part: Path, report: Report, headers: Mapping[str, str]) -> None:
    have = part.stat().st_size if part.exists() else 0
    # "identity": ranges and lengths must be those of the file, not of a compressed form
    ranged = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=ranged, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # complete already; the checksum tells whether it is the right file
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0  # the server ignores ranges and sends the whole file
        _append(response, part, have, report)


def _append(response: requests.Response, part: Path, have: int, report: Report) -> None:
    missing = int(response.headers.get("Content-Length", 0))
    total = have + missing if missing else 0
    with part.open("ab" if have else "wb") as file:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            have += len(chunk)
            report(have, total)


@contextmanager
def reporting(title: str, *, bar: bool) -> Iterator[Report]:
    """A progress bar in a terminal, else a log line per quarter."""
    console = Console(stderr=True)
    if not (bar and console.is_terminal):
        yield quarters(title)
        return
    with Progress(
        TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda have, total: progress.update(task, completed=have, total=total or None)


def quarters(title: str) -> Report:
    logged = 0

    def report(have: int, total: int) -> None:
        nonlocal logged
        quarter = 4 * have // total if total else 0
        if quarter > logged:
            logged = quarter
            logger.info("%s: %d %% of %.0f MB", title, 25 * quarter, total / 1e6)

    return report
