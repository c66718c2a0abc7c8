"""Moves the work of large requests to a thread. For small ones the thread would cost more than the work."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

is_large: ContextVar[bool] = ContextVar("is_large", default=False)  # of the current request


async def offload(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    if is_large.get():
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)
