"""Authentication. Every path needs a key except a short list, so that a new route is never open by oversight."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from itsdangerous import BadData, TimestampSigner
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
    """The configured keys, as hashes. Without any, every request is accepted."""

    def __init__(self, keys: Sequence[ApiKey], token_ttl: int) -> None:
        self._keys = keys
        self.token_ttl = token_ttl

    def __bool__(self) -> bool:
        return bool(self._keys)

    def caller(self, key: str | None) -> Caller | None:
        if not key:
            return None
        digest = hashlib.sha256(key.encode()).digest()
        # compares all of them, so that the time taken reveals nothing
        found = [each for each in self._keys if hmac.compare_digest(each.digest, digest)]
        return Caller(found[0].owner) if found else None

    def token(self, caller: Caller) -> str:
        """`owner.timestamp.signature`: verified by any replica with the same keys, stored nowhere."""
        key = self._key_of(caller.owner)
        return _signer(key).sign(caller.owner).decode() if key else caller.owner

    def token_caller(self, token: str) -> Caller | None:
        owner, _, _ = token.partition(".")
        if (key := self._key_of(owner)) is None:
            return None
        try:
            _signer(key).unsign(token, max_age=self.token_ttl)
        except BadData:
            return None
        return Caller(owner)

    def _key_of(self, owner: str) -> ApiKey | None:
        return next((each for each in self._keys if each.owner == owner), None)


def _signer(key: ApiKey) -> TimestampSigner:
    return TimestampSigner(key.digest, salt=b"stream", digest_method=hashlib.sha256)


class AuthMiddleware:
    """Puts the Caller into the request's state, or answers 401 before routing."""

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
        return self._keys.token_caller(tokens[0])


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")
