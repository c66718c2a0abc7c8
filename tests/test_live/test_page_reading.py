"""What is around an answer in the page: copies, figures, what a screen reader is told, thinking as it was asked for."""

import pytest
import requests

from tests.test_live.page import Page
from tests.test_live.service import SECONDS, until

pytestmark = pytest.mark.live

CLIPBOARD = (
    "window.copied = []; Object.defineProperty(navigator, 'clipboard',"
    " {value: {writeText: async (text) => { copied.push(text) }}})"
)


def test_answers_messages_and_code_are_copied_as_they_were_written(page: Page) -> None:
    answer = "**Two** lines:\n\n```python\nx = 1\ny = 2\n```"
    asked = "say:" + answer.replace("\n", r"\n")
    page.answer(asked)
    page.run(CLIPBOARD)
    for label in ("Copy answer", "Copy code", "Copy message"):
        page.click(f"[aria-label='{label}']")
    assert page.run("return copied") == [answer, "x = 1\ny = 2", asked]
    until(lambda: "Copied" in page.texts("[aria-label='Copy code']"))


def test_code_is_copied_where_there_is_no_clipboard(page: Page) -> None:
    """Its API exists over TLS and on loopback only."""
    page.answer(r"say:```\nhere\n```")
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.execCommand = (command) => { window.copied = [command, getSelection().toString()"
        " || document.activeElement.value]; return true }"
    )
    page.click("[aria-label='Copy code']")
    assert until(lambda: page.run("return window.copied")) == ["copy", "here"]
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "Copy code"


def test_the_speed_of_an_answer_is_shown(page: Page) -> None:
    page.answer("say:" + "word " * 400)
    (facts,) = page.texts(".facts")
    tokens, speed, context = facts.split(" · ")
    assert tokens == "2,000 tokens"
    assert float(speed.removesuffix(" tokens/s")) > 0
    assert context.startswith("context ")


def test_a_screen_reader_is_told_of_the_end_and_not_of_each_piece(page: Page) -> None:
    page.ask("Please count")
    assert page.run("return document.getElementById('log').getAttribute('role')") == "log"
    assert page.run("return document.querySelector('article.assistant').getAttribute('aria-busy')") == "true"
    assert page.texts("#announcement") == []
    page.click("#stop")
    page.wait()
    assert page.run("return document.querySelector('article.assistant').getAttribute('aria-busy')") == "false"
    assert page.texts("#announcement") == ["The answer was stopped."]
    assert page.run("return document.activeElement.id") == "prompt"  # `#stop` is hidden
    page.answer("say:whole")
    assert page.texts("#announcement") == ["The answer is complete."]


def test_all_keys_are_shown(page: Page) -> None:
    page.run("document.getElementById('scroll').focus()")
    page.press("?")
    shown = page.texts("#keys dt")
    assert shown == ["Enter", "Shift+Enter", "↑", "Esc", "Ctrl+K", "Ctrl+Shift+O", "?"]
    assert len(page.texts("#keys dd")) == len(shown)


def test_thinking_is_asked_for_as_it_is_set(page: Page) -> None:
    page.run(
        "const form = document.getElementById('settings-form'); form.elements.effort.value = 'high';"
        "form.dispatchEvent(new Event('input'))"
    )
    page.answer("say:thought over")
    tree = requests.get(f"{page.service.url}/v1/conversations/{page.conversation}/tree", timeout=SECONDS).json()
    response = requests.get(f"{page.service.url}/v1/responses/{tree['answers'][0]['id']}", timeout=SECONDS).json()
    assert response["reasoning"]["effort"] == "high"
    page.click("#open-settings")
    page.click("#settings-reset")
    assert page.run("return document.querySelector('[name=effort]').value") == ""
    assert page.run("return JSON.parse(localStorage.getItem('parley:settings:' + location.hash.slice(1)))") in (
        None,
        {},
    )
