"""The OpenAPI document, and the errors that all its operations share."""

from typing import Any

import pytest

from schemas.error_schema import ErrorBody
from tests.apps import NewSite, Site

JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    """Without other protocols, which have their own errors."""
    return await new_site(specs=[])


def operations(site: Site) -> list[tuple[str, str, dict[str, Any]]]:
    paths = site.app.openapi()["paths"]
    return [(method, path, found) for path, item in paths.items() for method, found in item.items()]


def with_body(site: Site) -> list[str]:
    found = [path for _, path, operation in operations(site) if "requestBody" in operation]
    assert len(found) > 8
    return found


def test_every_operation_documents_its_errors(site: Site) -> None:
    for _, path, operation in operations(site):
        if path.startswith("/health"):
            continue
        assert {"401", "403", "500", "503"} <= set(operation["responses"]), path
        assert ("413" in operation["responses"]) == ("requestBody" in operation), path
        assert "422" not in operation["responses"], path
        schema = operation["responses"]["500"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    schemas = site.app.openapi()["components"]["schemas"]
    assert set(schemas["ErrorBody"]["properties"]) == {"error"}
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_streams_are_documented(site: Site) -> None:
    paths = site.app.openapi()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/chat/new/message/"):
        assert set(paths[path]["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(paths["/chat/stream"]["get"]["responses"]["200"]["content"]) == {"text/event-stream"}


async def test_keys_are_documented_if_needed(new_site: NewSite) -> None:
    guarded = await new_site(api_keys="secret")
    assert set(guarded.app.openapi()["components"]["securitySchemes"]) == {"bearer", "header", "token"}
    for _, path, operation in operations(guarded):
        assert ("security" in operation) == (not path.startswith("/health")), path
    anybody = await new_site()
    assert "securitySchemes" not in anybody.app.openapi()["components"]
    assert not any("security" in operation for _, _, operation in operations(anybody))


async def test_other_protocols_have_their_own_errors(new_site: NewSite) -> None:
    site = await new_site(specs=["anthropic"])
    responses = site.app.openapi()["paths"]["/v1/messages"]["post"]["responses"]
    assert responses["400"]["content"]["application/json"]["schema"] == {"type": "object"}
    assert "text/event-stream" in responses["200"]["content"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b""])
async def test_malformed_bodies(new_site: NewSite, body: bytes) -> None:
    admin = "admin-key-of-this-test"
    site = await new_site(admin_key=admin, specs=[])
    for path in with_body(site):
        answer = await site.client.post(path, content=body, headers={**JSON, "X-API-Key": admin})
        assert answer.status_code == 400, path
        assert ErrorBody.model_validate(answer.json()).error.type == "invalid_request_error"


async def test_wrong_methods(site: Site) -> None:
    paths = site.app.openapi()["paths"]
    for path in paths:
        answer = await site.client.patch(path)
        assert answer.status_code == 405, path
        assert ErrorBody.model_validate(answer.json()).error.message
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/engines/x/completions", "/%00"])
async def test_unknown_routes(site: Site, path: str) -> None:
    answer = await site.client.post(path, json={})
    assert answer.status_code == 404
    ErrorBody.model_validate(answer.json())


async def test_every_body_and_needed_parameter_has_an_example_that_is_valid(new_site: NewSite) -> None:
    site = await new_site()
    for method, path, operation in operations(site):
        needed = [each for each in operation.get("parameters", ()) if each.get("required")]
        assert [each["name"] for each in needed if "example" not in each] == [], path
        for content_type, content in operation.get("requestBody", {"content": {}})["content"].items():
            assert content_type == "multipart/form-data" or "example" in content, path
            if content_type == JSON["Content-Type"]:
                url = path.format_map({each["name"]: each["example"] for each in needed})
                answer = await site.client.request(method, url, json=content["example"])
                assert answer.status_code not in (400, 422) or is_about_the_site(answer.json()), (path, answer.text)
                assert "x-parley-ignored" not in answer.headers, path


def is_about_the_site(error: dict[str, Any]) -> bool:
    """The test's has no reranker, and no engine that takes adapters."""
    return any(word in str(error) for word in ("rerank", "adapter"))
