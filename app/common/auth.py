"""Who may come in. Everything is closed but a short list, so that a new route is never open by oversight."""

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.common.errors import problem
from app.common.settings import ANYBODY, ApiKey
from services.errors import NotAuthenticated, ServiceError

HEALTH = ("/health", "/health/live", "/health/ready")
OPEN = ("/", "/static/", *HEALTH)
STREAM = "/chat/stream"  # the one route that browsers call without headers


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/static/")


@dataclass(frozen=True, slots=True)
class Caller:
    owner: str


class Keys:
    """The configured keys, as hashes. With none of them, everybody is let in."""

    def __init__(self, keys: Sequence[ApiKey], token_ttl: int) -> None:
        self._keys = keys
        self.token_ttl = token_ttl

    def __bool__(self) -> bool:
        return bool(self._keys)

    def caller(self, key: str | None) -> Caller | None:
        if not key:
            return None
        digest = hashlib.sha256(key.encode()).digest()
        # all of them are compared, so that the time taken tells nothing
        found = [each for each in self._keys if hmac.compare_digest(each.digest, digest)]
        return Caller(found[0].owner) if found else None

    def token(self, caller: Caller) -> str:
        """`owner.expiry.signature`: any replica with the same keys can check it, nobody has to store it."""
        expiry = int(time.time()) + self.token_ttl
        key = next((each for each in self._keys if each.owner == caller.owner), None)
        return f"{caller.owner}.{expiry}.{_sign(key, caller.owner, expiry) if key else ''}"

    def bearer(self, token: str) -> Caller | None:
        owner, _, rest = token.partition(".")
        expiry, _, signature = rest.partition(".")
        if not expiry.isascii() or not expiry.isdigit() or int(expiry[:12]) < time.time():
            return None
        found = [
            key for key in self._keys if key.owner == owner and _equal(_sign(key, owner, int(expiry[:12])), signature)
        ]
        return Caller(found[0].owner) if found else None


def _sign(key: ApiKey, owner: str, expiry: int) -> str:
    return hmac.new(key.digest, f"stream|{owner}|{expiry}".encode(), hashlib.sha256).hexdigest()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


class AuthMiddleware:
    """ASGI: puts the Caller into the request's state, or answers 401 before any route is looked up."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["caller"] = self._caller(scope)
            except ServiceError as refused:
                await problem(refused).response(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        headers = Headers(scope=scope)
        if is_open(scope["path"]):
            return None
        if not self._keys:
            return Caller(ANYBODY)
        caller = self._keys.caller(_key(headers)) or self._by_token(scope)
        if caller is None:
            raise NotAuthenticated("Incorrect API key provided" if _key(headers) else "You did not provide an API key")
        return caller

    def _by_token(self, scope: Scope) -> Caller | None:
        if scope["path"] != STREAM:
            return None
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        return self._keys.bearer(tokens[0])


def _key(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")
