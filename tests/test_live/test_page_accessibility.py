"""axe-core finds no serious fault in the page's states."""

import json

import pytest

from tests import npm_packages
from tests.test_live import page_contents
from tests.test_live.browser import Browser
from tests.test_live.page import ADMIN_KEY, USER_KEY, Page
from tests.test_live.service import Service, until

pytestmark = pytest.mark.live

STRICT = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def conversation(administered: Service) -> str:
    return page_contents.create(administered, USER_KEY)


def faults(page: Page) -> list[str]:
    page.run(npm_packages.axe() + "; window.axe = axe")
    page.run(
        f"window.found = null; axe.run(document, {json.dumps(STRICT)}).then((it) => (window.found = it.violations))"
    )
    found = until(lambda: page.run("return window.found && {faults: window.found}"))["faults"]
    return [
        f"{each['impact']}: {each['help']}: {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


@pytest.fixture(params=[pytest.param("light"), pytest.param("dark", marks=pytest.mark.extended)])
def themed(request: pytest.FixtureRequest, guarded_page: Page) -> Page:
    guarded_page.run(f"localStorage.setItem('parley:theme', JSON.stringify('{request.param}'))")
    guarded_page.run(f"sessionStorage.setItem('parley-admin-key', '{ADMIN_KEY}')")
    return guarded_page


def show(page: Page, conversation: str) -> None:
    page.open(f"#{conversation}")
    until(lambda: len(page.texts("article")) == 5 and page.texts(".hl-keyword") and page.texts("math"))
    page.run("for (const each of document.querySelectorAll('details')) if (each.id !== 'export') each.open = true")


def test_a_conversation(themed: Page, conversation: str) -> None:
    show(themed, conversation)
    assert faults(themed) == []


@pytest.mark.extended
def test_the_empty_page_and_its_dialogs(themed: Page) -> None:
    themed.open()
    assert faults(themed) == []
    for opener, dialog in (("open-settings", "settings"), ("show-keys", "keys"), ("open-admin", "admin")):
        themed.click(f"#{opener}")
        until(
            lambda dialog=dialog: themed.run(f"return document.querySelector('#{dialog} .main')?.offsetParent != null")
        )
        if dialog == "admin":
            until(lambda: themed.texts("#admin dd"))
        assert faults(themed) == [], dialog
        themed.run(f"document.getElementById('{dialog}').close()")
    themed.click("#temporary")
    assert faults(themed) == []


@pytest.mark.extended
def test_the_dialog_for_the_key(themed: Page) -> None:
    themed.run("sessionStorage.clear(); location.reload()")
    until(lambda: themed.run("return document.getElementById('door')?.open"))
    assert faults(themed) == []


@pytest.mark.extended
def test_an_answer_that_runs_an_edited_message_and_an_image(themed: Page) -> None:
    themed.open()
    themed.answer("say:first")
    themed.click("[title='Edit message']")
    assert faults(themed) == []
    themed.click(".editor .main")
    themed.wait()
    themed.ask("Please count")
    assert faults(themed) == []
    themed.click("#stop")
    themed.wait()
    assert faults(themed) == []


@pytest.mark.extended
def test_a_phone(themed: Page, conversation: str, browser: Browser) -> None:
    with browser.sized(360, 740):
        show(themed, conversation)
        assert faults(themed) == []
        themed.click("#menu")
        until(lambda: themed.run("return getComputedStyle(document.getElementById('side')).translate") == "0px")
        assert faults(themed) == []
        themed.click("#open-admin")
        until(lambda: themed.texts("#admin dd"))
        assert faults(themed) == []
        themed.run("document.getElementById('admin').close()")
