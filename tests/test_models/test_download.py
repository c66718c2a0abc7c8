import hashlib
import logging
from pathlib import Path

import pytest
import requests

from services.models.download import ATTEMPTS, CHUNK, ChecksumMismatch, download, quarters
from tests.wheels import Index


def fetch(index: Index, target: Path) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    digest = hashlib.sha256(index.data).hexdigest()
    download(index.url, target, digest, lambda have, total: reports.append((have, total)), pause=lambda seconds: None)
    return reports


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "tiny.whl"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "tiny.whl.part"


def test_file_is_downloaded_with_progress(index: Index, target: Path, part: Path) -> None:
    reports = fetch(index, target)
    assert target.read_bytes() == index.data
    assert reports[-1] == (len(index.data), len(index.data))
    assert not part.exists()


def test_broken_download_is_resumed(index: Index, target: Path) -> None:
    index.cut_after = [10 * CHUNK + 1, 20 * CHUNK + 1]
    reports = fetch(index, target)
    assert target.read_bytes() == index.data
    assert index.requested_ranges == [None, f"bytes={10 * CHUNK}-", f"bytes={30 * CHUNK}-"]
    assert reports[-1] == (len(index.data), len(index.data))


def test_server_without_ranges_starts_again(index: Index, target: Path) -> None:
    index.ranges, index.cut_after = False, [300_000]
    fetch(index, target)
    assert target.read_bytes() == index.data


def test_partial_file_is_continued(index: Index, target: Path, part: Path) -> None:
    part.write_bytes(index.data[:1000])
    fetch(index, target)
    assert target.read_bytes() == index.data
    assert index.requested_ranges == ["bytes=1000-"]


@pytest.mark.parametrize("stale", [b"of another file", b"x" * 2_000_000], ids=["shorter", "longer"])
def test_partial_file_of_another_file_is_discarded(index: Index, target: Path, part: Path, stale: bytes) -> None:
    part.write_bytes(stale)
    fetch(index, target)
    assert target.read_bytes() == index.data
    assert index.requested_ranges[-1] is None


def test_complete_partial_file_needs_no_download(index: Index, target: Path, part: Path) -> None:
    part.write_bytes(index.data)
    assert fetch(index, target) == []
    assert target.read_bytes() == index.data


def test_a_wrong_file_is_deleted(index: Index, target: Path, part: Path) -> None:
    with pytest.raises(ChecksumMismatch):
        download(index.url, target, "0" * 64, lambda have, total: None)
    assert not target.exists()
    assert not part.exists()


def test_repeatedly_broken_download_fails_and_keeps_the_partial_file(index: Index, target: Path, part: Path) -> None:
    index.cut_after = [CHUNK] * ATTEMPTS
    with pytest.raises(requests.RequestException):
        fetch(index, target)
    assert part.read_bytes() == index.data[: CHUNK * ATTEMPTS]


def test_error_status_is_not_retried(index: Index, target: Path) -> None:
    index.status = 404
    with pytest.raises(requests.HTTPError):
        fetch(index, target)
    assert len(index.requested_ranges) == 1


def test_file_urls_work(index: Index, target: Path, tmp_path: Path) -> None:
    (tmp_path / "a wheel").write_bytes(index.data)
    index.url = (tmp_path / "a wheel").as_uri()
    fetch(index, target)
    assert target.read_bytes() == index.data


def test_each_quarter_is_logged_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = quarters("tiny")
    for have in range(0, 1001, 10):
        report(have * 1_000_000, 1_000_000_000)
    assert [line.split()[1] for line in caplog.messages] == ["25", "50", "75", "100"]
