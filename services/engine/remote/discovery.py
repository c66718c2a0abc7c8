"""What a server is: the owner in its list of models names the kind, which may have further pages that describe it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from services.engine.remote.kinds import KINDS, kind_of
from services.engine.remote.kinds.base import Kind, RemoteModel

MODELS = "/v1/models"


class UnknownServer(ValueError):
    """It answers, but not as any kind does; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Server:
    kind: Kind
    model: RemoteModel


async def describe(client: httpx2.AsyncClient, root: str, kind: str | None, model: str | None) -> Server:
    """`kind` and `model`: as the settings name them. Raises UnknownServer and httpx2's errors."""
    cards = _cards(await _page(client, root + MODELS))
    card = next((each for each in cards if model in (None, each.get("id"))), None)
    if card is None:
        raise UnknownServer(f"it has no model '{model}'" if cards else "it lists no models")
    found = KINDS[kind] if kind else kind_of(str(card.get("owned_by")))
    if found is None:
        raise UnknownServer("its list of models has an unknown owner: name its kind")
    pages = {path: await _page(client, root + path, optional=True) for path in found.more}
    return Server(found, found.model(card, pages))


async def _page(client: httpx2.AsyncClient, url: str, *, optional: bool = False) -> Mapping[str, Any]:
    """`optional`: nothing where the server does not have it."""
    response = await client.get(url)
    if optional and response.status_code == 404:
        return {}
    if response.status_code >= 500:
        raise httpx2.HTTPStatusError("not ready", request=response.request, response=response)
    if response.status_code != 200:
        raise UnknownServer(f"{response.request.url.path} answers with status {response.status_code}")
    try:
        page = orjson.loads(response.content)
    except ValueError:
        raise UnknownServer(f"{response.request.url.path} is no JSON") from None
    return page if isinstance(page, dict) else {}


def _cards(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = page.get("data")
    return [each for each in data if isinstance(each, dict) and "id" in each] if isinstance(data, list) else []
