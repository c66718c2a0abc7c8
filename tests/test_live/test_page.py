"""The chat page in a real browser, in front of the real service with a scripted engine."""

import json
from typing import Any

import pytest
import requests

from tests.test_live.browser import Browser
from tests.test_live.page import AWAY, NEVER, USER_KEY, Page, refusal
from tests.test_live.page_weight import MAX_BYTES, weight
from tests.test_live.service import SECONDS, Service, until
from tests.test_live.wire import wired

pytestmark = pytest.mark.live

COUNTING = "document.querySelector('.assistant .text').textContent.length"


def tree(page: Page) -> dict[str, Any]:
    url = f"{page.service.url}/v1/conversations/{page.conversation}/tree"
    found: dict[str, Any] = requests.get(url, timeout=SECONDS).json()
    return found


# --- asking ---


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_question_goes_back_to_its_field(page: Page, status: int) -> None:
    assert page.answer("say:whole") == "whole"
    with page.refusing(refusal(status, "Too many requests")):
        page.type("say:second")
        page.run("document.getElementById('ask').requestSubmit()")
        until(lambda: page.texts("#status") and page.texts("#status")[0].startswith("Too many requests."))
        if status == 503:  # it is tried again, until it is stopped
            page.click("#stop")
        until(lambda: page.value() == "say:second")
    assert page.texts("article .text") == ["say:whole", "whole"]
    assert page.texts(".note") == []
    assert page.answer("say:third") == "third"
    assert page.texts(".note") == []


def test_a_key_that_is_entered_late_asks_once(guarded_page: Page, browser: Browser) -> None:
    page = guarded_page
    page.run("sessionStorage.clear()")
    browser.open("about:blank")
    browser.open(page.service.url)
    until(lambda: page.run("return document.getElementById('door')?.open"))
    page.click("#cancel")
    page.type("say:one")
    page.run("document.getElementById('ask').requestSubmit()")
    page.enter_key(USER_KEY)
    until(lambda: page.texts(".assistant .text") == ["one"])
    page.wait()
    assert page.texts(".note") == []
    assert len(page.texts("article")) == 2


def test_a_reload_before_the_first_word_keeps_the_question(page: Page) -> None:
    with page.refusing(NEVER):
        page.type("say:kept")
        page.run("document.getElementById('ask').requestSubmit()")
        until(lambda: page.conversation)
        assert page.value() == ""
        page.reload()
    assert until(page.value) == "say:kept"
    assert page.answer("say:kept") == "kept"
    page.reload()
    until(lambda: page.texts(".assistant .text") == ["kept"])
    assert page.value() == ""


def test_an_answer_goes_on_over_a_reload_and_is_stopped(page: Page) -> None:
    page.ask("Please count")
    until(lambda: page.run(f"return {COUNTING} > 20"))
    page.reload()
    until(lambda: page.run(f"return document.querySelector('.assistant .text') && {COUNTING} > 40"))
    assert page.texts(".assistant .text")[0].startswith("0, 1, 2, 3, ")
    page.press("Escape")
    page.wait()
    assert page.texts(".note") == ["Stopped: you ended the answer here."]
    (answer,) = tree(page)["answers"]
    assert answer["status"] == "cancelled"
    assert tree(page)["data"][-1]["item"]["content"][0]["text"].strip() == page.texts(".assistant .text")[0].strip()
    assert page.run("return document.activeElement.id") == "prompt"


@pytest.mark.parametrize("num_events", [1, 20])
def test_a_lost_connection_costs_nothing(browser: Browser, scripted: Service, num_events: int) -> None:
    text = "".join(f"{number}, " for number in range(200))
    with wired(scripted.port, cut_at=num_events) as wire:
        page = Page(browser, scripted, wire.url)
        page.open()
        assert page.answer(f"say:{text}").strip() == text.strip()
        assert wire.num_cut == 1
        assert page.texts("#status") == page.texts(".note") == []
        assert len(tree(page)["answers"]) == 1


def test_an_answer_that_was_asked_for_elsewhere_is_shown_and_stopped(page: Page) -> None:
    url = f"{page.service.url}/chat/stream"
    with requests.get(url, {"prompt": "count"}, stream=True, timeout=SECONDS) as stream:
        next(stream.iter_lines())
        page.open("#" + page.service.messages()[0]["conversation_id"])
        until(lambda: page.run("return !document.getElementById('stop').hidden"))
        page.click("#stop")
        until(lambda: page.texts(".note") == ["Stopped: you ended the answer here."])
    assert page.texts(".assistant .text")[0].startswith("0, 1")


@pytest.mark.parametrize("fragment", ["#%", "#conv_nothing", "#%E0%A4%A"])
def test_a_wrong_address_does_no_harm(page: Page, fragment: str) -> None:
    page.open(fragment)
    page.click("#new")
    assert page.answer("say:well") == "well"


def test_a_question_stopped_while_the_service_is_away_is_kept(page: Page) -> None:
    with page.refusing(AWAY):
        page.type("say:away")
        page.click("#send")
        until(lambda: page.texts("#status"))
        assert page.run("return document.activeElement.id") == "prompt"  # `#send` is hidden, the focus is not lost
        page.click("#stop")
        until(lambda: page.value() == "say:away")
        assert page.run("return document.activeElement.id") == "prompt"


def test_an_answer_that_cannot_be_stopped_now_is_found_again(page: Page) -> None:
    page.ask("Please count")
    with page.refusing(AWAY):
        page.click("#stop")
        page.wait()
        assert page.texts("#status") == ["The service cannot be reached: the answer may go on there."]
        assert page.texts(".user .text") == ["Please count"]
    page.reload()
    until(lambda: page.texts(".assistant .text") and page.run("return !document.getElementById('stop').hidden"))
    page.click("#stop")
    until(lambda: page.texts(".note") == ["Stopped: you ended the answer here."])


def test_a_long_text_is_sent_in_a_body(page: Page) -> None:
    text = "a" * 80_000
    assert page.answer(f"{text} say:read") == "read"
    assert "a" * 64 not in page.service.log()


# --- conversations ---


def test_conversations_are_listed_searched_renamed_and_deleted(page: Page) -> None:
    page.answer("say:zebra stripes")
    zebra = page.conversation
    page.click("#new")
    assert page.texts("article") == []
    page.answer("say:giraffe")
    listed = until(lambda: page.texts("#conversations a")[:2])
    assert listed == ["say:giraffe", "say:zebra stripes"]
    page.run("const s = document.getElementById('search'); s.value = 'stripes'; s.dispatchEvent(new Event('input'))")
    until(lambda: len(page.texts("#conversations a")) < 2 and "zebra" in page.texts("#conversations a")[0])
    page.click(f"#conversations a[href='#{zebra}']")
    until(lambda: page.texts(".assistant .text") == ["zebra stripes"])
    page.click("#conversations [title^=Rename]")
    page.run("document.querySelector('dialog[open] input').value = 'Animals'")
    page.click("dialog[open] .main")
    until(lambda: any(text.startswith("Animals") for text in page.texts("#conversations a")))
    page.click("#conversations [title='Delete Animals']")
    assert requests.get(f"{page.service.url}/v1/conversations/{zebra}", timeout=SECONDS).json()["title"] == "Animals"
    page.click("dialog[open] .danger")
    until(lambda: page.conversation == "")
    assert requests.get(f"{page.service.url}/v1/conversations/{zebra}", timeout=SECONDS).status_code == 404


def test_the_list_has_pages(page: Page) -> None:
    url = f"{page.service.url}/v1/conversations"
    for number in range(31):
        requests.post(url, json={"title": f"Number {number}"}, timeout=SECONDS)
    page.open()
    until(lambda: len(page.texts("#conversations a")) == 30)
    page.click("#more")
    until(lambda: "Number 0" in page.texts("#conversations a"))
    listed = page.texts("#conversations a")
    assert [text for text in listed if text.startswith("Number")] == [
        f"Number {number}" for number in range(30, -1, -1)
    ]


def test_a_temporary_conversation_is_not_stored(page: Page) -> None:
    def stored() -> str:
        found: str = requests.get(f"{page.service.url}/v1/conversations", timeout=SECONDS).json()["first_id"]
        return found

    before = stored()
    page.click("#temporary")
    assert page.answer("say:secret") == "secret"
    assert "user|say:secret\nassistant|secret\n" in page.answer("prompt?")  # it goes on, from what the page has
    assert (page.conversation, stored()) == ("", before)
    page.open()
    assert page.texts("article") == []


# --- Markdown ---


def test_markdown_is_shown_and_html_is_not(page: Page) -> None:
    page.answer(
        r"say:# Head\n\n| a | b |\n|---|--:|\n| `c` | 1 |\n\n```python\nx = 1\n```\n\n"
        r"<img src=x onerror=alert(1)> [bad](javascript:alert(1)) [good](https://example.org) ![pic](https://e.org/p.png)"
    )
    assert page.texts(".assistant h3") == ["Head"]
    assert page.texts(".assistant td") == ["c", "1"]
    assert page.texts(".code figcaption span") == ["python"]
    assert page.texts(".code code") == ["x = 1"]
    until(lambda: page.texts(".code .hl-number") == ["1"])
    assert page.run("return document.querySelectorAll('.assistant img').length") == 0
    assert "<img src=x onerror=alert(1)>" in page.texts(".assistant .text")[0]
    links = page.run("return [...document.querySelectorAll('.assistant .text a')].map((each) => each.href)")
    assert links == ["https://example.org/", "https://e.org/p.png"]


def test_blocks_that_are_complete_are_left_alone(page: Page) -> None:
    page.ask(r"count say:# Head\n\nFirst.\n\n")
    until(lambda: len(page.texts(".assistant p:not(.note)")) > 1)
    page.run("for (const each of document.querySelectorAll('.assistant h3, .assistant p')) each.isMarked = true")
    before = page.run(f"return {COUNTING}")
    until(lambda: page.run(f"return {COUNTING}") > before + 20)
    marked = "return [...document.querySelectorAll('.assistant .text > *')].map((each) => Boolean(each.isMarked))"
    assert page.run(marked) == [True, True, False]
    page.click("#stop")
    page.wait()


# --- branches ---


def test_messages_are_edited_and_answers_are_generated_again(page: Page) -> None:
    page.answer("say:first")
    page.answer("say:more")
    page.click(".assistant:last-child [title='Answer again']")
    until(lambda: page.texts(".count") == ["2 of 2"])
    page.wait()
    assert page.run("return document.activeElement.id") == "scroll"  # the button is gone, the focus is not
    page.run("document.getElementById('prompt').focus()")
    page.press("ArrowUp")  # the field is empty: it edits the last message
    page.run("document.querySelector('.editor textarea').value = 'say:other'")
    page.click(".editor .main")
    until(lambda: page.texts(".assistant .text") == ["first", "other"])
    page.wait()
    assert page.texts(".user .count") == ["2 of 2"]
    page.click(".user [title='Earlier version']")
    assert page.texts(".assistant .text") == ["first", "more"]
    assert "user|say:more\nassistant|more\nuser|prompt?" in page.answer("prompt?")
    page.reload()
    until(lambda: len(page.texts("article")) == 6)
    page.click(".user [title='Edit message']")  # of the last one
    page.press("Escape")
    page.run("document.querySelector('.user [title=\"Edit message\"]').click()")
    page.run("document.querySelector('.editor textarea').value = 'prompt?'")
    page.click(".editor .main")
    until(lambda: page.texts(".assistant .text") == ["user|prompt?"])  # the first message: nothing comes before it
    page.wait()


def test_a_broken_answer_is_tried_again(page: Page) -> None:
    page.answer("say:fine")
    url = f"{page.service.url}/v1/responses"
    body = {"conversation": page.conversation, "input": "y" * 120_000, "background": True}
    failed = requests.post(url, json=body, timeout=SECONDS).json()["id"]
    until(lambda: requests.get(f"{url}/{failed}", timeout=SECONDS).json()["status"] == "failed")
    page.reload()
    until(lambda: page.texts(".again") == ["Try again"])
    assert "tokens" in page.texts(".note")[0]
    page.click(".again")
    until(lambda: page.texts(".count") == ["2 of 2"])
    page.wait()


# --- thoughts, calls, settings ---


def test_an_answer_that_was_stopped_or_cut_off_is_continued(page: Page) -> None:
    page.ask("Please count")
    until(lambda: page.run(f"return {COUNTING} > 20"))
    page.click("#stop")
    page.wait()
    page.click(".assistant .again")
    until(lambda: page.texts(".assistant:last-child .text") == ["and on"])
    page.wait()
    assert page.texts(".assistant .again") == []  # the first has been gone on with, the second is whole
    (first, second) = tree(page)["answers"]
    assert (first["status"], second["status"]) == ("cancelled", "completed")
    assert second["parent_item"] == tree(page)["data"][1]["item"]["id"]
    page.reload()
    until(lambda: page.texts(".assistant:last-child .text") == ["and on"])
    assert len(page.texts("article")) == 3


def test_thoughts_and_calls_are_folded(page: Page) -> None:
    assert page.answer("say:<think>Hm, well.</think>Yes.") == "Yes."
    assert page.texts(".thought") == ["Hm, well."]
    assert page.texts("summary:not(.icon)")[0].startswith("Thought for ")
    assert page.run("return document.querySelector('.parts details').open") is False
    items = [
        {"type": "message", "role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"at": "sea"}'},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
    ]
    made = requests.post(f"{page.service.url}/v1/conversations", json={"items": items}, timeout=SECONDS).json()
    page.open(f"#{made['id']}")
    until(lambda: page.texts("article summary") == ["Called weather", "Result"])
    assert page.texts("article .code code") == ['{"at": "sea"}', "rain"]


def test_settings_draft_and_theme_are_kept_with_the_conversation(page: Page) -> None:
    default = page.run("return document.querySelector('[name=temperature]').placeholder")
    models = requests.get(f"{page.service.url}/v1/models", timeout=SECONDS).json()["data"]
    assert float(default) == models[0]["sampling"]["temperature"]
    page.run(
        "const form = document.getElementById('settings-form').elements;"
        "form.instructions.value = 'Be brief.'; form.temperature.value = '0.5'; form.max_output_tokens.value = '40';"
        "document.getElementById('settings-form').dispatchEvent(new Event('input'))"
    )
    page.run(
        "const theme = document.getElementById('theme'); theme.value = 'dark'; theme.dispatchEvent(new Event('change'))"
    )
    assert page.answer("prompt?").startswith("system|Be brief.\nuser|prompt?")
    page.type("a draft")
    page.reload()
    until(lambda: page.texts("article"))
    assert page.value() == "a draft"
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    assert page.run("return document.querySelector('[name=temperature]').value") == "0.5"
    response = requests.get(f"{page.service.url}/v1/responses/{tree(page)['answers'][0]['id']}", timeout=SECONDS).json()
    assert (response["temperature"], response["max_output_tokens"]) == (0.5, 40)
    page.type("say:" + "x" * 60)
    page.run("document.getElementById('ask').requestSubmit()")
    until(lambda: page.texts(".note") == ["Cut off: the longest answer allowed was reached."])
    page.click("#new")
    assert page.value() == ""
    assert page.run("return document.querySelector('[name=temperature]').value") == ""


# --- all the rest ---


def test_the_facts_of_an_answer_are_shown(page: Page) -> None:
    page.answer("say:four")
    (facts,) = page.texts(".facts")
    assert facts.startswith("4 tokens · ")
    assert facts.endswith(" of 100,000")
    assert page.run("return document.getElementById('model').value") == page.texts(".assistant .who")[0]


def test_a_conversation_is_exported(page: Page) -> None:
    page.answer("say:**out**")
    page.run(
        "window.saved = []; URL.createObjectURL = (blob) => (blob.text().then((text) => saved.push(text)), 'data:,');"
        "HTMLAnchorElement.prototype.click = function () { saved.push(this.download) }"
    )
    page.click("#export-markdown")
    page.click("#export-json")
    saved = until(lambda: (found := page.run("return saved")) and len(found) == 4 and found)
    assert {"say-out.md", "say-out.json"} < set(saved)
    assert any(text.endswith("## You\n\nsay:**out**\n\n## default\n\n**out**\n") for text in saved)
    exported = next(json.loads(text) for text in saved if text.startswith("{"))
    assert exported["messages"][0]["children"][0]["items"][0]["content"][0]["text"] == "**out**"


def test_an_exported_conversation_is_imported(page: Page) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": f"{n}?"}], "type": "message"} for n in range(21)
    ]
    answer = {
        "role": "assistant",
        "content": [{"type": "output_text", "text": "No."}],
        "type": "message",
        "id": "msg_x",
    }
    nodes: list[dict[str, Any]] = []
    for item in reversed([*items, answer]):
        nodes = [{"role": item["role"], "items": [item], "answer": None, "children": nodes}]
    choose(page, json.dumps({"title": "Brought along", "messages": nodes}))
    page.click("#import-json")
    until(lambda: page.texts("article .text")[-1:] == ["No."])
    assert len(page.texts("article")) == 22
    until(lambda: page.texts("#conversations [aria-current]") == ["Brought along"])
    choose(page, "{}")
    page.click("#import-json")
    until(lambda: page.texts("#status") == ["This file is no conversation that was exported as JSON."])


def choose(page: Page, text: str) -> None:
    """The next file field that is clicked has this file."""
    page.run(
        f"window.data = new DataTransfer(); data.items.add(new File([{json.dumps(text)}], 'file.json'));"
        "HTMLInputElement.prototype.click = function () {"
        " this.files = data.files; this.dispatchEvent(new Event('change')) }"
    )


def test_images_are_pasted_sent_and_kept(page: Page) -> None:
    page.run("document.querySelector('#attach').hidden || (window.isShown = true)")
    assert page.run("return window.isShown")
    paste(page, "image/png")
    paste(page, "image/png")
    until(lambda: page.run("return document.querySelectorAll('#attachments img').length") == 2)
    page.click("#attachments button")
    assert page.run("return document.querySelectorAll('#attachments img').length") == 1
    assert page.answer("prompt?") == "user|[XXXX]\nprompt?"
    page.reload()
    until(lambda: page.run("return document.querySelector('article.user img')?.naturalWidth") == 2)
    assert page.texts("article.user .text") == ["prompt?"]
    page.click("[title='Edit message']")
    page.run("document.querySelector('.editor textarea').value = 'again: prompt?'")
    page.click(".editor .main")
    page.wait()
    until(lambda: page.texts(".assistant .text") == ["user|[XXXX]again: prompt?"])  # the line end is an element
    paste(page, "text/csv")
    until(lambda: page.texts("#status") == ["Only images can be sent."])


def paste(page: Page, kind: str) -> None:
    """An image of 2 x 2 pixels, as a file of this kind."""
    page.run(
        "const canvas = document.createElement('canvas'); canvas.width = canvas.height = 2;"
        "canvas.toBlob((blob) => { const data = new DataTransfer();"
        f"data.items.add(new File([blob], 'file', {{type: '{kind}'}}));"
        "document.getElementById('prompt').dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))})"
    )


def test_formulas_are_set_and_money_is_text(page: Page) -> None:
    page.answer(r"say:Euler: $e^{i\pi}=-1$ for $5 or $10.\n\n$$\n\frac{1}{2}\n$$\n\n\(\sqrt{x}\) and $\absent$")
    assert page.run("return document.querySelectorAll('.assistant math').length") == 3
    assert page.run("return document.querySelectorAll('.assistant .formula.block mfrac').length") == 1
    assert "for $5 or $10." in page.texts(".assistant .text")[0]
    assert page.texts(".assistant .formula code") == [r"$\absent$"]


def test_other_tabs_see_what_one_changes(page: Page) -> None:
    page.run("window.heard = []; new BroadcastChannel('parley').onmessage = ({data}) => heard.push(data.conversation)")
    page.answer("say:one")
    assert page.conversation in until(lambda: page.run("return heard"))
    body = {"conversation": page.conversation, "input": "say:two", "model": "default"}
    requests.post(f"{page.service.url}/v1/responses", json=body, timeout=SECONDS).raise_for_status()
    page.run(f"new BroadcastChannel('parley').postMessage({{conversation: '{page.conversation}'}})")
    until(lambda: page.texts(".assistant .text") == ["one", "two"])


def test_images_are_dropped_and_chosen(page: Page) -> None:
    image = (
        "const canvas = document.createElement('canvas'); canvas.width = canvas.height = 2;"
        "canvas.toBlob((blob) => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'file', {type: 'image/png'})); "
    )
    page.run(image + "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}))})")
    until(lambda: page.run("return document.querySelectorAll('#attachments img').length") == 1)
    page.run(
        "HTMLInputElement.prototype.click = function () {" + image + "this.files = data.files;"
        "this.dispatchEvent(new Event('change'))})}"
    )
    page.click("#attach")
    until(lambda: page.run("return document.querySelectorAll('#attachments img').length") == 2)
    assert page.answer("prompt?") == "user|[XXXX]\n[XXXX]\nprompt?"


def test_two_real_tabs_see_each_others_turns(page: Page, browser: Browser) -> None:
    page.answer("say:first")
    with browser.tab(f"{page.service.url}/#{page.conversation}"):
        until(lambda: page.texts(".assistant .text") == ["first"])
        page.answer("say:second")
    until(lambda: page.texts(".assistant .text") == ["first", "second"])


def test_keys_search_show_help_and_begin(page: Page) -> None:
    page.answer("say:something")
    page.run("document.getElementById('prompt').focus()")
    page.press("ArrowUp")
    assert page.run("return document.querySelector('.editor textarea').value") == "say:something"
    page.press("Escape")
    assert page.texts(".editor") == []
    page.press("k", ctrlKey=True)
    assert page.run("return document.activeElement.id") == "search"
    page.run("document.getElementById('scroll').focus()")
    page.press("?")
    assert page.run("return document.getElementById('keys').open")
    page.run("document.getElementById('keys').close()")
    page.press("O", ctrlKey=True, shiftKey=True)
    assert page.texts("article") == []
    assert page.run("return document.activeElement.id") == "prompt"


def test_the_first_visit_is_light(page: Page) -> None:
    page.open()
    assert weight(page) < MAX_BYTES


def test_every_control_has_a_name(page: Page) -> None:
    page.answer("say:named")
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea, summary')].filter((each) =>"
        " !(each.getAttribute('aria-label') || each.textContent.trim() || each.closest('label')))"
        ".map((each) => each.outerHTML)"
    )
    assert nameless == []


def test_narrow_screens_have_all_of_it(page: Page, browser: Browser) -> None:
    with browser.sized(320, 600):
        page.answer(r"say:| a | b |\n|---|---|\n| " + "wide" * 40 + r" | 2 |\n\n```\n" + "long " * 60 + r"\n```")
        assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [320, 320]
        assert page.run("return getComputedStyle(document.getElementById('side')).visibility") == "hidden"
        page.click("#menu")
        until(lambda: page.run("return getComputedStyle(document.getElementById('side')).visibility") == "visible")
        page.press("Escape")
        until(lambda: page.run("return getComputedStyle(document.getElementById('side')).visibility") == "hidden")
