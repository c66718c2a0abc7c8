"""Services that several tests share, and the clients that look at them."""

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from services.models.default_models import DEFAULT_MODELS
from services.models.fetch import fetch, is_complete
from tests.test_live.browser import Browser, browsing, serving
from tests.test_live.page import ADMIN_KEY, ENGINE, HELD, USER_KEY, Page
from tests.test_live.service import MODELS, ROOT, Service, running, until

FOLDER = Path(__file__).parent
KEYS = ("first-key", "second-key")


@pytest.hookimpl(tryfirst=True)  # ahead of -m
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Servers are started, killed and started again on SQLite in `make test`, on PostgreSQL in `make test-all`."""
    for item in items:
        if item.path.parent == FOLDER and "postgresql" in item.name:
            item.add_marker(pytest.mark.extended)


@pytest.fixture(scope="session")
def models() -> None:
    missing = [name for name, model in DEFAULT_MODELS.items() if not is_complete(MODELS / name, model)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"default models are missing, `parley fetch` brings them: {', '.join(missing)}")
    for name in missing:
        fetch(name, MODELS)


@pytest.fixture(scope="session")
def pages() -> Iterator[str]:
    """The origin of the examples' pages."""
    with serving(ROOT / "examples") as origin:
        yield origin


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    with browsing(chromium, chromedriver, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="session")
def service(models: None, pages: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """As it comes, open to one foreign page. Whatever the tests did to it, its log holds no error at the end."""
    with running(tmp_path_factory.mktemp("service"), CORS__ORIGINS=json.dumps([pages])) as service:
        yield service
        assert [line for line in service.complaints() if "no keys: anybody" not in line] == []


@pytest.fixture(scope="session")
def guarded(models: None, pages: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With two keys, and one answer at a time."""
    folder, origins = tmp_path_factory.mktemp("guarded"), json.dumps([pages])
    with running(folder, API_KEYS=",".join(KEYS), ENGINE__MAX_NUM_SEQS="1", CORS__ORIGINS=origins) as service:
        yield service


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The real service with an engine that says what it is asked to say."""
    with running(tmp_path_factory.mktemp("scripted"), **ENGINE) as service:
        yield service


@pytest.fixture(scope="session")
def administered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same with a user's key and an administrator's, and a model whose load the tests hold."""
    keys = {"API_KEYS": USER_KEY, "ADMIN_KEY": ADMIN_KEY}
    with running(tmp_path_factory.mktemp("administered"), **ENGINE, **keys, MODELS=json.dumps([HELD])) as service:
        yield service


@pytest.fixture
def page(browser: Browser, scripted: Service) -> Page:
    page = Page(browser, scripted)
    page.open()
    page.run("localStorage.clear()")
    page.open()
    return page


@pytest.fixture
def guarded_page(browser: Browser, administered: Service) -> Iterator[Page]:
    """Where the user's key was entered."""
    page = Page(browser, administered)
    browser.open(administered.url)
    page.enter_key(USER_KEY)
    until(lambda: page.run("return document.querySelector('#model option')"))
    yield page
    page.run("sessionStorage.clear(); localStorage.clear()")


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(service: Service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def folder(models: None, tmp_path: Path) -> Path:
    """For a service of the test's own."""
    return tmp_path / "service"
