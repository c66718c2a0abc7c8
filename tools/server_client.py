"""How commands reach a running server: its address, a key, and its errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
import typer

from app.common.exits import leave
from tools.chat.client import is_loopback

SERVER = "http://127.0.0.1:8000"
ANSWER_S = 3600.0  # a large model is read from a slow disk, or fetched

Url = Annotated[str, typer.Option(help="The server.")]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar=["PARLEY_ADMIN_KEY", "PARLEY_API_KEY"], show_default=False)
]


@contextmanager
def server(url: str, key: str | None) -> Iterator[httpx2.Client]:
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx2.Timeout(ANSWER_S, connect=5.0)
    try:
        # a proxy of the environment cannot reach this machine's own loopback
        with httpx2.Client(base_url=base, headers=headers, timeout=timeout, trust_env=not is_loopback(base)) as client:
            yield client
    except httpx2.TransportError as error:
        leave(f"{urlsplit(base).netloc or base} cannot be reached: {error}")


def checked(response: httpx2.Response) -> Any:
    if response.is_success:
        return response.json()
    try:
        leave(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        leave(f"the server answered {response.status_code}")
