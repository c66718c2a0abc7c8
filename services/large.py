"""Work that grows with a request: off the event loop, wherever the request is a large one.

A thread and back costs more than a small request's work, so those stay where they are.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

is_large: ContextVar[bool] = ContextVar("is_large", default=False)  # of the request that is being answered


async def offload(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    if is_large.get():
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)
