"""Protects a server without keys from web pages that call it through a user's browser.

Programs send neither Origin nor Sec-Fetch-Site and are accepted. Browsers always send them, with one exception: to an
address other than loopback without TLS they send no Sec-Fetch-Site (SECURITY.md).
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.common.allowed_hosts import AllowedHosts
from app.common.auth import HEALTH, Keys, is_open
from app.common.errors import HostNotAllowed, problem
from services.errors import Forbidden, ServiceError

SAME_ORIGIN = (None, "none", "same-origin")  # none: typed, or a bookmark


def is_from_another_origin(headers: Headers) -> bool:
    """Whether a page of another origin sent the request. Node's `fetch` sends Sec-Fetch-Mode, but is not a page."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and _authority(origin) != headers.get("host"):
        return True
    if site == "same-site":  # ours if it has our Origin: a TLS proxy in front makes the scheme differ
        return origin is None
    return site not in SAME_ORIGIN


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # unbalanced brackets
        return None


class PageGuard:
    """Rejects unknown host names, and pages of origins that are not configured, while there are no keys."""

    def __init__(self, app: ASGIApp, keys: Keys, hosts: AllowedHosts, origins: Sequence[str]) -> None:
        self._app = app
        self._keys = keys
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._keys:
            try:
                self._check(scope)
            except ServiceError as refused:
                await problem(refused).response(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if path in HEALTH:  # load balancers and kubelets use any name, and learn only that the server is up
            return
        local_address, *_ = scope.get("server") or (None,)
        if not self._hosts.permits(headers.get("host"), local_address):
            raise HostNotAllowed("This server is not known by this name: see PARLEY_SERVER__ALLOWED_HOSTS")
        if not is_open(path) and not self._is_allowed(headers):
            raise Forbidden("This origin is not allowed: see PARLEY_CORS__ORIGINS")

    def _is_allowed(self, headers: Headers) -> bool:
        is_configured = "*" in self._origins or headers.get("origin") in self._origins
        return is_configured or not is_from_another_origin(headers)
