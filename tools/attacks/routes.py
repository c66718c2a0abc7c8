"""All routes of a server: those in its OpenAPI document, and the hidden ones."""

import re
from dataclasses import dataclass
from typing import Any

from tools.attacks.target import Target

# Hidden aliases of documented routes; a test checks that the list is complete.
ALIASES = {
    "/tokenize": "/v1/tokenize",
    "/detokenize": "/v1/detokenize",
    "/tokenizer_info": "/v1/tokenizer_info",
    "/v1/rerank": "/v2/rerank",
}
HIDDEN = ("/openapi.json",)
REFUSING = ("/api/create", "/api/copy", "/api/push")  # Ollama routes that are not served
PAGE = ("/", "/docs", "/redoc", "/static/", "/health", "/health/live", "/health/ready")  # public
METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str  # with parameters in braces
    has_body: bool = False

    def filled(self, value: str = "x") -> str:
        return re.sub(r"{[^}]*}", value, self.path)


def is_open(path: str) -> bool:
    """According to SECURITY.md: the page, its files and the probes."""
    return path in PAGE or path.startswith("/static/")


async def routes(target: Target) -> list[Route]:
    async with target.client(target.alpha if target.keys else None) as client, client.get("/openapi.json") as answer:
        answer.raise_for_status()
        return routes_of(await answer.json())


def routes_of(document: dict[str, Any]) -> list[Route]:
    found = [
        Route(method.upper(), path, "requestBody" in about)
        for path, operations in document["paths"].items()
        for method, about in operations.items()
        if method in METHODS
    ]
    hidden = [Route(each.method, alias, each.has_body) for each in found for alias in _aliases(each.path)]
    others = [*(Route("GET", path) for path in HIDDEN), *(Route("POST", path, True) for path in REFUSING)]
    return list(dict.fromkeys([*found, *hidden, *others]))


def _aliases(path: str) -> list[str]:
    short = [path.removeprefix("/v1")] if path.startswith("/v1/") else []
    return [*short, *([ALIASES[path]] if path in ALIASES else [])]
