"""Pictures of the page for the documents: `python -m tests.test_live.screenshots docs`; `--all`: of more states.

The answers are those of the default model, as it gives them at temperature 0.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.test_live import page_contents
from tests.test_live.browser import Browser, browsing
from tests.test_live.page import ADMIN_KEY, Page
from tests.test_live.service import Service, running, until

DESKTOP, PHONE = (1200, 760), (390, 760)
COLOURS = 256
QUESTION = "Write a short Python function that sorts words by their length."
SETTINGS = {"temperature": 0, "max_output_tokens": 200}


def main(folder: Path, *, all_states: bool) -> None:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        raise SystemExit("needs Debian's packages chromium and chromium-driver")
    with (
        tempfile.TemporaryDirectory() as work,
        running(Path(work, "service"), ADMIN_KEY=ADMIN_KEY) as service,
        browsing(chromium, chromedriver, Path(work, "profile")) as browser,
    ):
        Pictures(browser, service, folder).take(all_states=all_states)


class Pictures:
    def __init__(self, browser: Browser, service: Service, folder: Path) -> None:
        self._browser = browser
        self._page = Page(browser, service)
        self._folder = folder
        self._rich = page_contents.create(service, ADMIN_KEY)
        browser.open(service.url)
        self._page.enter_key(ADMIN_KEY)
        until(lambda: self._page.run("return document.querySelector('#model option')"))
        self._page.run(f"localStorage.setItem('parley:settings:new', JSON.stringify({json.dumps(SETTINGS)}))")
        self._page.open()
        self._page.answer(QUESTION)
        self._asked = self._page.conversation

    def take(self, *, all_states: bool) -> None:
        self._take("chat-page", DESKTOP, "light")  # not read again: its tokens a second are known
        self._take("chat-page-dark", DESKTOP, "dark")
        self._take("chat-page-phone", PHONE, "dark", self._rich)
        if not all_states:
            return
        self._take("contents", DESKTOP, "light", self._rich)
        self._take("phone-list", PHONE, "light", self._rich, self._open_list)
        self._take("administration", DESKTOP, "light", self._asked, self._open_administration)
        self._take("phone-administration", PHONE, "dark", self._asked, self._open_administration)
        self._take("settings", DESKTOP, "dark", self._asked, self._open_settings)

    def _take(
        self,
        name: str,
        size: tuple[int, int],
        theme: str,
        conversation: str | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        with self._browser.sized(*size, is_phone=size == PHONE):
            self._page.run(
                f"const theme = document.getElementById('theme'); theme.value = '{theme}';"
                "theme.dispatchEvent(new Event('change'))"
            )
            if conversation:
                self._page.open(f"#{conversation}")
            until(lambda: self._page.texts("article") and self._page.texts("#conversations a"))
            until(lambda: self._page.texts(".code .hl-keyword"))
            self._page.run("document.getElementById('scroll').scrollTop = 0")
            prepare()
            save(self._browser.picture(), self._folder / f"{name}.png")

    def _open_list(self) -> None:
        self._page.click("#menu")
        until(lambda: self._page.run("return getComputedStyle(document.getElementById('side')).translate") == "0px")

    def _open_administration(self) -> None:
        self._page.run("document.getElementById('open-admin').click()")
        until(lambda: self._page.texts("#admin dd") and self._page.texts("#admin td"))

    def _open_settings(self) -> None:
        self._page.click("#open-settings")


def save(picture: bytes, path: Path) -> None:
    """With few colours: a picture of text is a third as large."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path} {path.stat().st_size}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), all_states="--all" in sys.argv)
