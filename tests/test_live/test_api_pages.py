"""/docs and /redoc in a real browser, without internet and with keys."""

from pathlib import Path

import pytest

from tests.test_live.browser import Browser
from tests.test_live.page import ENGINE
from tests.test_live.service import running, until

pytestmark = [pytest.mark.live, pytest.mark.extended]

KEY = "page-key"
ENTER = f"document.getElementById('key').value = '{KEY}'; document.querySelector('#door form').requestSubmit()"
MODELS = "document.querySelector('[id*=list_models]')"


def test_documents_are_read_and_requests_are_made_with_a_key(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path / "guarded", **ENGINE, API_KEYS=KEY) as service:
        browser.open(f"{service.url}/docs")
        until(lambda: browser.run("return document.getElementById('door').open"))
        browser.run(ENTER)
        until(lambda: browser.run(f"return {MODELS} !== null"))
        assert browser.run("return document.querySelectorAll('.opblock').length") > 50
        browser.run(f"{MODELS}.querySelector('.opblock-summary-control').click()")
        until(lambda: browser.run(f"return {MODELS}.querySelector('.try-out__btn') !== null"))
        browser.run(f"{MODELS}.querySelector('.try-out__btn').click()")
        until(lambda: browser.run(f"return {MODELS}.querySelector('.execute') !== null"))
        browser.run(f"{MODELS}.querySelector('.execute').click()")
        until(lambda: browser.run(f"return {MODELS}.querySelector('.live-responses-table') !== null"))
        assert '"object": "list"' in browser.run(f"return {MODELS}.querySelector('.live-responses-table').innerText")
        browser.open(f"{service.url}/redoc")  # the tab has the key
        until(lambda: "List Models" in browser.run("return document.body.innerText"))
