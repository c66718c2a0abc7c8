"""The default model's engine, without a server around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.engine.local import LocalEngine
from services.models.default_models import DEFAULT_CHAT
from tests.test_live.service import MODELS

SOURCE = str(MODELS / DEFAULT_CHAT)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[LocalEngine]:
    """Once what it compiles is there."""
    engine = LocalEngine.load(source=SOURCE, device="cpu", **options)
    engine.start()
    try:
        if options.get("compile_dir"):
            assert await engine.wait_compiled()
        yield engine
    finally:
        await engine.stop()
