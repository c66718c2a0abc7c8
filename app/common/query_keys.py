"""Finds unknown query keys of a route; they are reported as ignored, like those of bodies."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.common.auth import STREAM

READS = {"GET", "HEAD"}


class QueryKeys:
    """The query keys of a GET route, or of one that declares some. Nested objects are written `name[key]`."""

    def __init__(self, route: APIRoute) -> None:
        self._route = route

    @cached_property
    def _names(self) -> frozenset[str]:
        token = ["token"] if self._route.path == STREAM else []  # read by AuthMiddleware
        return frozenset([*_declared(self._route.dependant), *token])

    @cached_property
    def _objects(self) -> tuple[str, ...]:
        """Parameters in deepObject style, which FastAPI has no type for and the route declares for OpenAPI only."""
        declared = (self._route.openapi_extra or {}).get("parameters", ())
        return tuple(f"{each['name']}[" for each in declared if each.get("style") == "deepObject")

    def unknown(self, query: Mapping[str, str]) -> list[str]:
        if not self._names and READS.isdisjoint(self._route.methods or ()):
            return []
        return [name for name in query if name not in self._names and not self._is_nested(name)]

    def _is_nested(self, name: str) -> bool:
        return name.startswith(self._objects) and name.endswith("]")


def _declared(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield from _aliases(field.alias, field.field_info.annotation)
    for each in dependant.dependencies:
        yield from _declared(each)


def _aliases(alias: str, annotation: object) -> Iterable[str]:
    """A model declares its fields."""
    if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
        return [alias]
    return [info.alias or name for name, info in annotation.model_fields.items()]
