"""Loads specs by name, and checks their routes against all others."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from app.common.routes import Routes
from app.spec.server import Server
from app.spec.spec import Spec

SHIPPED = {"anthropic": "app.spec.anthropic.spec:AnthropicSpec", "ollama": "app.spec.ollama.spec:OllamaSpec"}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def load(name: str) -> Spec[Any]:
    """The spec at `package.module:Class`, or the shipped one of this name; raises ValueError with the reason."""
    module, _, attribute = SHIPPED.get(name, name).partition(":")
    if not module or not attribute:
        raise ValueError(f"PARLEY_SPECS: '{name}' must be 'package.module:Class' or one of {', '.join(SHIPPED)}")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"PARLEY_SPECS: '{name}' cannot be imported: {error}") from error
    spec = found() if isinstance(found, type) else found
    if not isinstance(spec, Spec):
        raise ValueError(f"PARLEY_SPECS: '{name}' is no app.spec.Spec")
    return spec


def install(app: FastAPI, specs: Sequence[Spec[Any]], server: Server, routes: Routes) -> None:
    for spec in specs:
        spec.setup(server)
        owner = f"the spec {type(spec).__module__}:{type(spec).__qualname__}"
        for path, _, methods, _ in spec.endpoints:
            _check(owner, path, methods)
        router = spec.router()
        for route in router.routes:
            assert isinstance(route, Route)
            routes.refuse(owner, route.path, route.path_regex, sorted(route.methods or ()))
            routes.add(
                owner, [route], error_body=spec.error_body, request_id=spec.request_id, rate_headers=spec.rate_headers
            )
        app.router.routes.extend(router.routes)


def _check(owner: str, path: str, methods: Sequence[str]) -> None:
    if not path.startswith("/"):
        raise ValueError(f"{owner} adds '{path}': a path begins with a slash")
    if not methods or set(methods) - METHODS:
        raise ValueError(f"{owner} adds {path} with the methods {list(methods)}: known ones are {sorted(METHODS)}")
