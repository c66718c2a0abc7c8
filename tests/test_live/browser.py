"""Chromium without a screen, through the WebDriver protocol: a few HTTP calls, so no package to install for them."""

import base64
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import requests

from tests.databases import free_port
from tests.test_live.service import SECONDS, until

# it finds no network here, so whatever would look for one is off
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        _call("POST", f"{self._session}/url", url=url)

    def run(self, script: str) -> Any:
        return _call("POST", f"{self._session}/execute/sync", script=script, args=[])

    @contextmanager
    def sized(self, width: int, height: int, *, is_phone: bool = True) -> Iterator[None]:
        """A phone's screen, by default; a window cannot be as narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self._command("Emulation.setDeviceMetricsOverride", **metrics)
        try:
            yield
        finally:
            self._command("Emulation.clearDeviceMetricsOverride")

    @contextmanager
    def tab(self, url: str) -> Iterator[None]:
        """Another one, which is closed in the end."""
        first = _call("GET", f"{self._session}/window")
        second = _call("POST", f"{self._session}/window/new", type="tab")["handle"]
        _call("POST", f"{self._session}/window", handle=second)
        try:
            self.open(url)
            yield
        finally:
            _call("DELETE", f"{self._session}/window")
            _call("POST", f"{self._session}/window", handle=first)

    def picture(self) -> bytes:
        """Of what is shown, as PNG."""
        return base64.b64decode(_call("GET", f"{self._session}/screenshot"))

    def _command(self, name: str, **params: Any) -> None:
        _call("POST", f"{self._session}/goog/cdp/execute", cmd=name, params=params)


@contextmanager
def browsing(chromium: str, chromedriver: str, profile: Path) -> Iterator[Browser]:
    port = free_port()
    driver = subprocess.Popen([chromedriver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _is_ready(port))
        chrome = {"binary": chromium, "args": [*OPTIONS, f"--user-data-dir={profile}"]}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": chrome}}
        session = f"http://127.0.0.1:{port}/session"
        session += "/" + _call("POST", session, capabilities=wanted)["sessionId"]
        yield Browser(session)
        _call("DELETE", session)
    finally:
        driver.terminate()
        driver.wait(SECONDS)


def _is_ready(port: int) -> bool:
    try:
        return bool(_call("GET", f"http://127.0.0.1:{port}/status")["ready"])
    except requests.ConnectionError:
        return False


def _call(method: str, address: str, /, **body: Any) -> Any:
    answer = requests.request(method, address, json=body or None, timeout=SECONDS)
    assert answer.ok, answer.text
    return answer.json()["value"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Pages from an origin of their own, as a front end's server has one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
