"""A real browser's `EventSource`: it reconnects by itself, and must neither lose, repeat nor ask again."""

from urllib.parse import urlencode

import pytest
import requests

from tests.test_live.browser import Browser
from tests.test_live.conftest import KEYS
from tests.test_live.service import SECONDS, Service, until
from tests.test_live.wire import wired

pytestmark = pytest.mark.live

CLOSED = 2


def ask(browser: Browser, pages: str, **query: object) -> tuple[str, str]:
    """What the page shows and its state, once the browser has given up on reconnecting."""
    browser.open(f"{pages}/browser.html?{urlencode(query)}")
    until(lambda: browser.run("return events.readyState") == CLOSED)
    answer, state = browser.run("return [answer.textContent, state.textContent]")
    return answer, state


def test_a_dropped_connection_costs_nothing_and_no_second_answer_comes(
    service: Service, browser: Browser, pages: str
) -> None:
    before = len(service.log())
    with wired(service.port, cut_at=8) as wire:
        answer, state = ask(browser, pages, server=wire.url, prompt="Write a poem.", max_tokens=60, temperature=0.7)
        assert wire.num_cut == 1
    question, reply = service.messages()
    assert answer == reply["content"]
    assert question["content"] == "Write a poem."
    assert reply["status"] == "completed"
    assert reply["id"] in state
    # asked, cut; gone on; told not to come back
    log = service.log()[before:]
    assert log.count("GET /chat/stream 200") == 2
    assert log.count("GET /chat/stream 204") == 1


def test_a_token_stands_in_for_the_key(guarded: Service, browser: Browser, pages: str) -> None:
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    token = requests.post(f"{guarded.url}/chat/token", headers=headers, timeout=SECONDS).json()["token"]
    query = {"server": guarded.url, "prompt": "Name\na colour.", "max_tokens": 8}
    answer, state = ask(browser, pages, **query, token=token)
    stored = requests.get(f"{guarded.url}/chat/get/messages/", headers=headers, timeout=SECONDS).json()["data"]
    assert [each["content"] for each in stored] == ["Name\na colour.", answer]
    assert stored[1]["id"] in state
    assert ask(browser, pages, **query, token=token[:-1]) == ("", "")
