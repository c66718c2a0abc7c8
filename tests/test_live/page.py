"""The chat page in a browser: what a user does there, and what is shown."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.test_live.browser import Browser
from tests.test_live.service import Service, until

ENGINE = {
    "MODEL__ENGINE": "tests.test_live.scripted_engine:ScriptedEngine",
    "SERVER__DRAIN_S": "1",  # an answer that a failed test has left would go on
}


USER_KEY, ADMIN_KEY = "user-key-of-the-page", "admin-key-of-the-page"
HELD = {"name": "held", "id": "held", "engine": "tests.test_live.scripted_engine:HeldEngine"}


class Page:
    def __init__(self, browser: Browser, service: Service, url: str | None = None) -> None:
        self._browser = browser
        self.service = service
        self._url = url or service.url

    def open(self, fragment: str = "") -> None:
        self._browser.open("about:blank")  # else a new fragment alone would not load the page again
        self._browser.open(f"{self._url}/{fragment}")
        until(lambda: self.run("return document.querySelector('#model option')"))

    def reload(self) -> None:
        self.run("location.reload()")
        until(lambda: self.run("return document.readyState === 'complete' && document.querySelector('#model option')"))

    def run(self, script: str) -> Any:
        return self._browser.run(script)

    def enter_key(self, key: str) -> None:
        until(lambda: self.run("return document.getElementById('door')?.open"))
        field = f"document.getElementById('key').value = {json.dumps(key)}"
        self.run(f"{field}; document.querySelector('#door form').requestSubmit()")

    def type(self, text: str) -> None:
        self.run(f"{FIELD}value = {json.dumps(text)}; {FIELD}dispatchEvent(new Event('input'))")

    def ask(self, text: str) -> None:
        """Until the answer has begun."""
        before = len(self.texts(".assistant"))
        self.type(text)
        self.run("document.getElementById('ask').requestSubmit()")
        until(lambda: len(self.texts(".assistant .text")) > before or self.texts(".note"))

    def answer(self, text: str) -> str:
        """The answer to it, once it is complete."""
        self.ask(text)
        self.wait()
        text: str = self.run("return [...document.querySelectorAll('.assistant .text')].at(-1).innerText")
        return text

    def wait(self) -> None:
        until(lambda: self.run("return document.getElementById('stop').hidden"))

    def click(self, selector: str) -> None:
        self.run(
            f"const found = [...document.querySelectorAll({json.dumps(selector)})].at(-1); found.focus(); found.click()"
        )

    def texts(self, selector: str) -> list[str]:
        """Of all such elements that have any."""
        script = f"return [...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)"
        return [text for text in self.run(script) if text]

    def value(self) -> str:
        value: str = self.run(f"return {FIELD}value")
        return value

    def press(self, key: str, **more: bool) -> None:
        options = json.dumps({"key": key, "bubbles": True, "cancelable": True, **more})
        self.run(f"(document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent('keydown', {options}))")

    @property
    def conversation(self) -> str:
        found: str = self.run("return location.hash.slice(1)")
        return found

    @contextmanager
    def refusing(self, answer: str) -> Iterator[None]:
        """What the page asks of /v1/responses is answered by the JavaScript expression `answer`."""
        self.run(
            "window.served = window.fetch; window.fetch = (path, options) =>"
            f" path.startsWith('v1/responses') ? {answer} : window.served(path, options)"
        )
        yield
        self.run("if (window.served) window.fetch = window.served")


FIELD = "document.getElementById('prompt')."
AWAY = "Promise.reject(new TypeError('Failed to fetch'))"
NEVER = "new Promise(() => {})"


def refusal(status: int, message: str) -> str:
    body = json.dumps(json.dumps({"error": {"message": message}}))
    return f"Promise.resolve(new Response({body}, {{status: {status}}}))"
