"""Followers as threads of this process, which need no seconds to begin."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from services.engine.loading.load_options import LoadOptions
from services.engine.loading.loader import Source
from services.engine.parallel import follower, followers
from services.engine.parallel.executor import ParallelExecutor
from services.engine.parallel.leader import load_parallel
from tests.test_engine.tiny_tokenizers import byte_level

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": None,
    "cache_tokens": None,
    "kv_cache_dtype": "auto",
    "gpu_memory_utilization": 0.5,
    "cpu_memory_share": 0.01,
    "warm_up_tokens": None,
}


class FollowerThread:
    pid = 0

    def __init__(self, rank: int, connection: Connection, inherited: tuple[int, ...]) -> None:
        self.connection = connection
        self._thread = threading.Thread(target=follower.follow, args=(connection,))
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def save(model: Any, folder: Path) -> Source:
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return Source(str(folder))


@contextmanager
def ranks(
    source: Source, monkeypatch: pytest.MonkeyPatch, compile_dir: Path | None, size: int = 2, **options: Any
) -> Iterator[ParallelExecutor]:
    with monkeypatch.context() as patch:
        patch.setattr(followers, "start_process", FollowerThread)
        given = {**OPTIONS, "compile_dir": None if compile_dir is None else str(compile_dir), **options}
        _, executor = load_parallel(source, size, LoadOptions(**given))
    try:
        yield executor
    finally:
        executor.close()
