"""Authentication. Every path needs a key except a short list, so that a new route is never open by oversight."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import Request
from itsdangerous import BadData, TimestampSigner
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.errors import problem
from app.common.rate_headers import RATE_HEADERS, RateHeaders, rate_headers
from app.common.settings import ApiKey
from services.callers import ANYBODY, Caller, acting_as, reporting
from services.errors import NotAuthenticated, NotFound, ServiceError
from services.key_service import PREFIX, KeyService

HEALTH = ("/health", "/health/live", "/health/ready")
PAGES = ("/", "/docs", "/redoc")  # files without anything of a caller
OPEN = (*PAGES, "/static/", *HEALTH)
STREAM = "/chat/stream"  # the one route that browsers call without headers


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/static/")


class Keys:
    """The keys of the settings and of the database. Without any, every request is accepted."""

    def __init__(
        self,
        keys: Sequence[ApiKey],
        token_ttl: int,
        *,
        admin: ApiKey | None = None,
        stored: KeyService | None = None,
    ) -> None:
        self._configured = _configured(keys, admin)
        self._stored = stored
        self.token_ttl = token_ttl

    def configure(self, keys: Sequence[ApiKey], admin: ApiKey | None) -> tuple[int, int]:
        """The keys of the settings from now on. Returns how many are new, and how many are refused from now on."""
        before, self._configured = self._configured, _configured(keys, admin)
        return len(self._configured.keys() - before.keys()), len(before.keys() - self._configured.keys())

    def __bool__(self) -> bool:
        return bool(self._configured) or (self._stored is not None and self._stored.has_keys)

    def caller(self, key: str | None) -> Caller | None:
        if not key:
            return None
        digest = hashlib.sha256(key.encode()).digest()
        # compares all of them, so that the time taken reveals nothing
        found = [each for each in self._configured.values() if hmac.compare_digest(each.digest, digest)]
        if found:
            return found[0].caller
        stored = self._stored.find(digest) if self._stored else None
        return stored.caller if stored else None

    async def find_caller(self, key: str | None) -> Caller | None:
        """Also of a key that another process has just made, the first of all keys included."""
        if (caller := self.caller(key)) is not None:
            return caller
        if key and key.startswith(PREFIX) and self._stored:
            await self._stored.look_for(hashlib.sha256(key.encode()).digest())
            return self.caller(key)
        return None

    def token(self, caller: Caller) -> str:
        """`key.timestamp.signature`: verified by any replica with the same keys, stored nowhere."""
        secret = self._secret_of(caller.key_id)
        return _signer(secret).sign(caller.key_id).decode() if secret else caller.owner

    def token_caller(self, token: str) -> Caller | None:
        key_id, _, _ = token.partition(".")
        if (secret := self._secret_of(key_id)) is None:
            return None
        try:
            _signer(secret).unsign(token, max_age=self.token_ttl)
        except BadData:
            return None
        return secret.caller

    def _secret_of(self, key_id: str) -> "_Secret | None":
        if (configured := self._configured.get(key_id)) is not None:
            return configured
        stored = self._stored.by_id(key_id) if self._stored else None
        return _Secret(stored.caller, stored.digest) if stored else None


@dataclass(frozen=True, slots=True)
class _Secret:
    caller: Caller
    digest: bytes


def _configured(keys: Sequence[ApiKey], admin: ApiKey | None) -> Mapping[str, _Secret]:
    configured = {each.owner: _Secret(Caller(each.owner), each.digest) for each in keys}
    if admin:
        configured[admin.owner] = _Secret(Caller(admin.owner, role="admin"), admin.digest)
    return configured


def _signer(secret: _Secret) -> TimestampSigner:
    return TimestampSigner(secret.digest, salt=b"stream", digest_method=hashlib.sha256)


async def require_admin(request: Request) -> Caller:
    """The dependency of every route that administers the server: models, adapters, keys, usage, jobs of others.

    A route takes `Admin` of app/common/dependencies.py as a parameter; a router of such routes is made with
    `dependencies=[Depends(require_admin)]`. It answers 404, in the same words whether or not what is asked for exists,
    unless the key has the role `admin`: `PARLEY_ADMIN_KEY`, or one of `parley keys create --role admin`. A server
    without keys has no administrator: everybody who reaches its port would be one.
    """
    caller: Caller = request.state.caller
    if caller.role != "admin":
        raise NotFound(
            "There is nothing here for this key: administration needs an admin key, PARLEY_ADMIN_KEY or one of "
            "`parley keys create --role admin`"
        )
    return caller


class AuthMiddleware:
    """Puts the Caller into the request's state, or answers 401 before routing."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                caller = await self.caller_of(scope)
            except ServiceError as refused:
                await problem(refused).response(scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
            if caller is not None:
                with acting_as(caller):
                    await (self._with_limits if caller.is_limited else self._app)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _with_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Says in the headers of the answer how much of the key's limits is left."""
        headers_of: RateHeaders = scope["state"].get(RATE_HEADERS, rate_headers)
        with reporting() as report:

            async def send_with_limits(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(headers_of(report))
                await send(message)

            await self._app(scope, receive, send_with_limits)

    async def caller_of(self, scope: Scope) -> Caller | None:
        key = _key(Headers(scope=scope))
        if is_open(scope["path"]):
            return None
        caller = await self._keys.find_caller(key)
        if not self._keys:
            return Caller(ANYBODY)
        caller = caller or self._by_token(scope)
        if caller is None:
            raise NotAuthenticated("Incorrect API key provided" if key else "You did not provide an API key")
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
