"""The page's view of administration, and the progress of a model that loads, in a real browser."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from tests.test_live.browser import Browser
from tests.test_live.page import ADMIN_KEY, HELD, Page
from tests.test_live.scripted_engine import HOLD
from tests.test_live.service import SECONDS, Service, until

pytestmark = pytest.mark.live

ID = HELD["id"]
ROWS = (
    "return [...document.querySelectorAll('#admin tbody tr')].map(({cells}) => [...cells].map((it) => it.textContent))"
)
FITS = (
    "const it = document.getElementById('admin');"
    "return it.scrollWidth <= it.clientWidth && it.getBoundingClientRect().right <= innerWidth"
)


@contextmanager
def held(service: Service) -> Iterator[None]:
    """Loads of the model stand still within."""
    file = service.folder / HOLD
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def unload(service: Service) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{service.url}/v1/models/{ID}/unload"
    requests.post(url, headers=headers, timeout=SECONDS).raise_for_status()


def state(page: Page, name: str) -> str:
    shown: list[list[str]] = page.run(
        "return [...document.querySelectorAll('#admin li')].map((each) =>"
        " [each.querySelector('h4').textContent, each.querySelector('.state').textContent])"
    )
    return dict(shown).get(name, "")


def fact(page: Page, name: str) -> str:
    """Of the chat model that is loaded."""
    found: str = page.run(
        f"return [...document.querySelectorAll('#admin dt')].find((each) => each.textContent === '{name}')"
        "?.nextElementSibling.textContent"
    )
    return found


def press(page: Page, label: str) -> None:
    page.click(f"#admin [aria-label='{label}']")


def test_administrators_load_unload_and_see_what_runs(guarded_page: Page) -> None:
    page = guarded_page
    unload(page.service)
    page.ask("Please count")
    page.click("#open-admin")
    until(lambda: page.texts("#admin .problem"))
    assert "needs an admin key" in page.texts("#admin .problem")[0]
    assert page.run("return document.querySelector('#admin .models').offsetParent") is None
    page.click("#admin form > .row button:first-child")
    page.enter_key(ADMIN_KEY)
    until(lambda: state(page, ID) == "not loaded")
    until(lambda: not page.texts("#admin .problem"))
    until(lambda: fact(page, "Answering") == "1")
    until(lambda: float(fact(page, "Tokens/s")) > 0)
    with held(page.service):
        press(page, f"Load {ID}")
        until(lambda: state(page, ID) == "reading weights, 50 %")
        bar = page.run(
            "const bar = document.querySelector('#admin progress:not([hidden])'); return [bar.value, bar.ariaLabel]"
        )
        assert bar == [0.5, f"Loading {ID}: reading weights"]
    until(lambda: state(page, ID) == "loaded")
    assert page.texts("#admin [role=status]") == [f"{ID}: loaded"]
    assert page.run("return document.activeElement.ariaLabel") == f"Unload {ID}"
    press(page, f"Unload {ID}")
    until(lambda: state(page, ID) == "not loaded")
    page.run("document.getElementById('admin').close()")
    page.click("#stop")
    page.wait()


def test_the_usage_of_the_day_is_shown_by_key(guarded_page: Page) -> None:
    page = guarded_page
    page.run(f"sessionStorage.setItem('parley-admin-key', '{ADMIN_KEY}')")
    assert page.answer("say:used") == "used"
    page.click("#open-admin")
    (row, *_) = until(lambda: page.run(ROWS))
    assert int(row[2]) >= 1
    assert int(row[4].replace(",", "")) > 0


def test_the_picker_shows_the_progress_of_a_model_that_loads(guarded_page: Page) -> None:
    page = guarded_page
    unload(page.service)
    page.open()
    assert f"{ID} (not loaded)" in page.texts("#model option")
    page.run(
        f"const model = document.getElementById('model'); model.value = '{ID}';model.dispatchEvent(new Event('change'))"
    )
    with held(page.service):
        page.type("say:loaded now")
        page.run("document.getElementById('ask').requestSubmit()")
        until(lambda: f"{ID} (reading weights, 50 %)" in page.texts("#model option"))
        assert page.run("const bar = document.getElementById('loading'); return [bar.hidden, bar.value]") == [
            False,
            0.5,
        ]
        until(lambda: page.texts("#status") == [f"{ID} is being loaded: reading weights …"])
    until(lambda: page.texts(".assistant .text") == ["loaded now"])
    page.wait()
    until(lambda: ID in page.texts("#model option"))
    assert page.run("return document.getElementById('loading').hidden")
    assert page.texts("#status") == []


def test_administration_needs_no_more_than_a_phone_and_a_keyboard(guarded_page: Page, browser: Browser) -> None:
    page = guarded_page
    page.run(f"sessionStorage.setItem('parley-admin-key', '{ADMIN_KEY}')")
    with browser.sized(320, 600):
        page.click("#menu")
        page.click("#open-admin")
        until(lambda: state(page, "default") == "loaded")
        assert page.run(FITS)
        assert page.run("return document.getElementById('admin').contains(document.activeElement)")
        page.run("document.querySelector('#admin .main').click()")
        assert page.run("return document.activeElement.id") == "open-admin"


def test_a_model_that_is_deleted_leaves_the_list(guarded_page: Page) -> None:
    shown = guarded_page.run(
        "return (async () => {"
        "  const { AdminModels } = await import('/static/admin-models.js');"
        "  const [models, status] = [new AdminModels(() => {}), { value: 'unloaded' }];"
        "  const ids = () => [...models.list.querySelectorAll('h4')].map((it) => it.textContent);"
        "  models.show([{ id: 'a', status }, { id: 'b', status }]);"
        "  const before = ids();"
        "  models.show([{ id: 'b', status }, { id: 'c', status }]);"
        "  return [before, ids()];"
        "})()"
    )
    assert shown == [["a", "b"], ["b", "c"]]
