"""Waiting for a server whose model is loading."""

import time

from tools.chat.client import Client
from tools.chat.errors import ChatError
from tools.chat.screen import Screen

POLL_S = 0.3
LOADING = "The model is loading …"
FAILED = "The model could not be loaded: the server's log says why"


def wait_until_ready(client: Client, screen: Screen) -> None:
    """Raises ChatError if the model cannot be loaded."""
    state = client.readiness()
    if state == "loading":
        with screen.waiting(LOADING):
            while state == "loading":
                time.sleep(POLL_S)
                state = client.readiness()
    if state == "failed":
        raise ChatError(FAILED)


def waiting_text(client: Client, model: str | None) -> str:
    """A model that was not loaded at the start is loaded by the first question."""
    return "Thinking …" if client.is_loaded(model) else LOADING
