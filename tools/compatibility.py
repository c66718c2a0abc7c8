"""Writes docs/compatibility.md from the code: `python -m tools.compatibility`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from app.common import unserved
from app.common.settings import Settings
from app.main import create_app
from schemas.item_schema import FOREIGN, ITEMS, SEARCHES, UNREAD
from schemas.request_schema import Hints, Request
from services.chat.request import completion, prompt, responses
from services.chat.request.refusals import LEFT_ASIDE, REASONS

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
ONLY_THIS = "is not supported by this server"
REFUSED: dict[str, Mapping[str, tuple[object, ...]]] = {
    "CreateChatCompletionRequest": prompt.UNSUPPORTED,
    "CompletionRequest": completion.UNSUPPORTED,
    "ResponseRequest": responses.UNSUPPORTED,
}
# The method of the official client that calls a route.
CALLED_BY = {
    "POST /v1/chat/completions": "chat.completions.create, .parse, .stream",
    "GET /v1/chat/completions": "chat.completions.list",
    "GET /v1/chat/completions/{completion_id}": "chat.completions.retrieve",
    "POST /v1/chat/completions/{completion_id}": "chat.completions.update",
    "DELETE /v1/chat/completions/{completion_id}": "chat.completions.delete",
    "GET /v1/chat/completions/{completion_id}/messages": "chat.completions.messages.list",
    "POST /v1/completions": "completions.create",
    "POST /v1/embeddings": "embeddings.create",
    "GET /v1/models": "models.list",
    "GET /v1/models/{model}": "models.retrieve",
    "DELETE /v1/models/{model}": "models.delete",
    "POST /v1/conversations": "conversations.create",
    "GET /v1/conversations/{conversation_id}": "conversations.retrieve",
    "POST /v1/conversations/{conversation_id}": "conversations.update",
    "DELETE /v1/conversations/{conversation_id}": "conversations.delete",
    "POST /v1/conversations/{conversation_id}/items": "conversations.items.create",
    "GET /v1/conversations/{conversation_id}/items": "conversations.items.list",
    "GET /v1/conversations/{conversation_id}/items/{item_id}": "conversations.items.retrieve",
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": "conversations.items.delete",
    "POST /v1/files": "files.create",
    "GET /v1/files": "files.list",
    "GET /v1/files/{file_id}": "files.retrieve",
    "DELETE /v1/files/{file_id}": "files.delete",
    "GET /v1/files/{file_id}/content": "files.content",
    "POST /v1/uploads": "uploads.create, .upload_file_chunked",
    "POST /v1/uploads/{upload_id}/parts": "uploads.parts.create",
    "POST /v1/uploads/{upload_id}/complete": "uploads.complete",
    "POST /v1/uploads/{upload_id}/cancel": "uploads.cancel",
    "POST /v1/batches": "batches.create",
    "GET /v1/batches": "batches.list",
    "GET /v1/batches/{batch_id}": "batches.retrieve",
    "POST /v1/batches/{batch_id}/cancel": "batches.cancel",
    "POST /v1/responses": "responses.create, .parse, .stream",
    "GET /v1/responses/{response_id}": "responses.retrieve",
    "DELETE /v1/responses/{response_id}": "responses.delete",
    "POST /v1/responses/{response_id}/cancel": "responses.cancel",
    "GET /v1/responses/{response_id}/input_items": "responses.input_items.list",
    "POST /v1/responses/input_tokens": "responses.input_tokens.count",
    "POST /v1/responses/compact": "responses.compact",
}
PROJECTS = "/v1/organization/projects"
PROJECT, CLIENT = f"{PROJECTS}/{{project_id}}", "admin.organization.projects"
CALLED_BY |= {
    f"GET {PROJECTS}": f"{CLIENT}.list",
    f"POST {PROJECTS}": f"{CLIENT}.create",
    f"GET {PROJECT}": f"{CLIENT}.retrieve",
    f"POST {PROJECT}": f"{CLIENT}.update",
    f"POST {PROJECT}/archive": f"{CLIENT}.archive",
    f"GET {PROJECT}/service_accounts": f"{CLIENT}.service_accounts.list",
    f"POST {PROJECT}/service_accounts": f"{CLIENT}.service_accounts.create",
    f"GET {PROJECT}/service_accounts/{{account_id}}": f"{CLIENT}.service_accounts.retrieve",
    f"POST {PROJECT}/service_accounts/{{account_id}}": f"{CLIENT}.service_accounts.update",
    f"DELETE {PROJECT}/service_accounts/{{account_id}}": f"{CLIENT}.service_accounts.delete",
    f"POST {PROJECT}/service_accounts/{{account_id}}/api_keys": f"{CLIENT}.service_accounts.api_keys.create",
    f"GET {PROJECT}/api_keys": f"{CLIENT}.api_keys.list",
    f"GET {PROJECT}/api_keys/{{key_id}}": f"{CLIENT}.api_keys.retrieve",
    f"POST {PROJECT}/api_keys/{{key_id}}": f"{CLIENT}.api_keys.update",
    f"DELETE {PROJECT}/api_keys/{{key_id}}": f"{CLIENT}.api_keys.delete",
    f"GET {PROJECT}/rate_limits": f"{CLIENT}.rate_limits.list_rate_limits",
    f"POST {PROJECT}/rate_limits/{{rate_limit_id}}": f"{CLIENT}.rate_limits.update_rate_limit",
}
CALLED_BY |= {
    f"GET /v1/organization/usage/{kind}": f"admin.organization.usage.{kind}" for kind in ("completions", "embeddings")
}
RESOURCES = """\
## Resources of the `openai` client

By the first part of their paths. An absent one is answered with 404, the code `unsupported_endpoint` and what it is
about; a method that a served one does not have with 405.
"""
INTRODUCTION = """\
# What is served

Written from the code by `python -m tools.compatibility`, and held to it by a test. A parameter is **honoured**,
**left aside** or **refused**. An explicit `null` is the same as an absent key. Types are JSON's own: `"3"` is no number
and `1` no boolean, while `3.0` is an integer. Each route under `/v1` that OpenAI has also answers without the prefix.

## What is refused, and what is left aside

| what a request brings | what becomes of it |
| --- | --- |
| a parameter that changes the answer and is not served | refused: 400 with its name in `param` |
| a value that asks for nothing | taken, and not named |
| what is only offered, hinted or annotated | left aside, and named in the header `x-parley-ignored` |
| an unknown key, at any depth | left aside, and named: `messages.2.reasoning_details` |
| an effort, of a model that does not think | left aside, and named |
| a tool of a kind that is not served | left aside, and named: `tools.1.web_search` |
| a `tool_choice` that leaves no other tools | refused |
| a key in a JSON schema, in `metadata` or `chat_template_kwargs` | taken: it is the caller's own |

With `PARLEY_STRICT=true` all that would be named is refused. The header has 20 names at most; where there are more, of
those that differ only in their indices the first.
"""

ITEM_TYPES = """\
## Items of a response's input

Each type of the contract is taken. All of an item is kept where it is stored, whatever a model is shown of it.
"""

Json = dict[str, Any]
BEYOND = 2**31


def page(document: Json) -> str:
    schemas = document["components"]["schemas"]
    bodies = dict.fromkeys(name for _, operation in operations(document) if (name := body(operation)) in schemas)
    tables = [f"\n## {name}\n\n{parameters(name, schemas)}" for name in bodies if name]
    parts = [INTRODUCTION, ITEM_TYPES, items(), "## Routes\n", routes(document), RESOURCES, resources(), *tables]
    return "\n".join(parts).rstrip() + "\n"


def items() -> str:
    states: dict[object, str] = {
        **dict.fromkeys(ITEMS, "honoured"),
        "compaction": "honoured where it was sealed here for this owner; else left aside, and named",
        **dict.fromkeys(FOREIGN, "shown to the model as a call of a function, or its result"),
        **dict.fromkeys(UNREAD, "left aside, and named"),
        **dict.fromkeys(SEARCHES, "honoured where the client runs the search; else left aside, and named"),
    }
    return table(("type", "state"), [(f"`{kind}`", state) for kind, state in sorted(states.items(), key=str)])


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def routes(document: Json) -> str:
    rows = [
        (f"`{route}`", _code(CALLED_BY.get(route)), f"[{name}](#{name.lower()})" if (name := body(operation)) else "")
        for route, operation in operations(document)
    ]
    return table(("route", "`openai` client", "parameters"), rows)


def resources() -> str:
    """A row for each resource of the official client, by the first part of its paths."""
    served: dict[str, list[str]] = {}
    for route, methods in CALLED_BY.items():
        served.setdefault(route.removeprefix("/v1").split("/")[2], []).append(methods)
    rows = [(f"`/v1/{part}`", "served", _code(", ".join(methods))) for part, methods in served.items()]
    rows += [(f"`/v1/{part}`", "absent", about) for part, about in unserved.OPENAI.items()]
    return table(("paths", "state", "note"), sorted(rows))


def body(operation: Json) -> str | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref")
    return str(reference).rpartition("/")[2] if reference else None


def parameters(name: str, schemas: Json) -> str:
    schema, refused = schemas[name], REFUSED.get(name, {})
    honoured: Json = schema.get("properties", {})
    rows = [(f"`{field}`", kind(about), "honoured", _note(field, about, schema)) for field, about in honoured.items()]
    rows += [(f"`{field}`", "", "refused", _reason(field, values)) for field, values in refused.items()]
    rows += [(f"`{field}`", "", "refused", why) for field, why in inner_refusals(name).items()]
    rows += [
        (f"`{field}`", "", "left aside", _aside(field, values))
        for field, values in hints(name).items()
        if field not in honoured
    ]
    return table(("parameter", "type", "state", "note"), sorted(rows))


def hints(name: str) -> Hints:
    """Hints of a request and, by dotted paths, of the objects in it."""
    return {path: values for model in _models(Request) if model.__name__ == name for path, values in _hints(model)}


def inner_refusals(name: str) -> dict[str, str]:
    return {path: why for model in _models(Request) if model.__name__ == name for path, why in _refusals(model)}


def _refusals(model: type[Request], path: str = "") -> Iterator[tuple[str, str]]:
    yield from ((path + name, why) for name, why in model.REFUSED.items())
    for name, field in model.model_fields.items():
        for inner in _objects(field.annotation):
            yield from _refusals(inner, f"{path}{name}.")


def _models(base: type[Request]) -> Iterator[type[Request]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _hints(model: type[Request], path: str = "") -> Iterator[tuple[str, tuple[object, ...]]]:
    yield from ((path + name, values) for name, values in model.HINTS.items())
    for name, field in model.model_fields.items():
        for inner in _objects(field.annotation):
            yield from _hints(inner, f"{path}{name}.")


def _objects(annotation: object) -> Iterator[type[Request]]:
    if isinstance(annotation, type) and issubclass(annotation, Request):
        yield annotation
    for inner in get_args(annotation):
        yield from _objects(inner)


def _note(field: str, about: Json, schema: Json) -> str:
    required = ["required"] if field in schema.get("required", ()) else []
    described = [about["description"].replace("\n", " ")] if "description" in about else []
    return "; ".join([*required, *described])


def _reason(field: str, values: tuple[object, ...]) -> str:
    taken = ", ".join(f"`{value}`" for value in values)
    return REASONS.get(field, ONLY_THIS) + (f" (taken: {taken})" if taken else "")


def _aside(field: str, values: tuple[object, ...]) -> str:
    nothing = ", ".join(f"`{value}`" for value in values)
    return LEFT_ASIDE.get(field.rpartition(".")[2], "") + (f" (not named: {nothing})" if nothing else "")


def kind(about: Json) -> str:
    """A short description of a JSON schema."""
    if "$ref" in about:
        return str(about["$ref"]).rpartition("/")[2].rpartition("__")[2]  # without its module
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return ", ".join(f"`{each}`" for each in about["enum"])
    if options := about.get("anyOf") or about.get("oneOf"):
        return " or ".join(dict.fromkeys(kind(each) for each in options if each.get("type") != "null"))
    if about.get("type") == "array":
        return f"list of {kind(about.get('items', {}))}{_span(about, 'minItems', 'maxItems')}"
    return str(about.get("type", "any")) + _span(about, "minimum", "maximum")


def _span(about: Json, least: str, most: str) -> str:
    low = about.get(least, about.get("exclusiveMinimum") if least == "minimum" else None)
    high = about.get(most, about.get("exclusiveMaximum") if most == "maximum" else None)
    return "" if low is None and high is None else f" {_number(low)}..{_number(high)}"


def _number(value: float | None) -> str:
    """Leaves out limits beyond any practical use."""
    return "" if value is None or abs(value) >= BEYOND else f"{value:g}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def current() -> str:
    """The page for the current code and default settings."""
    return page(create_app(Settings(_env_file=None)).openapi())


if __name__ == "__main__":
    PAGE.write_text(current())
