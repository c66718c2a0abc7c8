"""Generated requests get only documented responses, and no 500."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.engine import build
from tests.apps import NewSite, Site
from tests.fakes import FakeEngine
from tests.generated import examples
from tests.test_engine import tiny_encoders

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
async def site(new_site: NewSite, engine: FakeEngine, tmp_path: Path) -> Site:
    tiny_encoders.save_embedder(tmp_path)

    def build_most(kind: str, /, **options: Any) -> Any:
        return engine if kind == "chat" else build(kind, **options)

    embedding = {"name": str(tmp_path), "kind": "embedding", "device": "cpu"}
    return await new_site(build=build_most, specs=["anthropic"], embedding=embedding)


def cases(operation: Any, mode: GenerationMode) -> list[Case]:
    """Deterministic."""
    found = []

    @settings(
        max_examples=examples(4, 12),
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(operation.as_strategy(generation_mode=mode).filter(can_be_sent))
    def collect(case: Case) -> None:
        found.append(case)

    with suppress(Unsatisfiable):  # operations without parameters have no invalid requests
        collect()
    return found


def can_be_sent(case: Case) -> bool:
    """The client refuses URLs of more than 64 KiB."""
    try:
        request_of(case)
    except httpx2.InvalidURL:
        return False
    return True


def request_of(case: Case) -> httpx2.Request:
    request = case.as_transport_kwargs(base_url="http://localhost")
    # escaped, so that any text can be sent
    content = json.dumps(request["json"]).encode() if "json" in request else request.get("data")
    headers = {name: value.encode() for name, value in request["headers"].items()}
    return httpx2.Request(request["method"], request["url"], params=request["params"], headers=headers, content=content)


async def faults(site: Site, case: Case) -> list[str]:
    answer = await site.client.send(request_of(case))
    try:
        case.validate_response(answer, checks=CHECKS)
    except (Failure, FailureGroup) as fault:
        return [str(fault)]
    return []


@pytest.mark.hypothesis
@pytest.mark.timeout(900)  # generating requests is slow on a busy machine
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, pytest.param(GenerationMode.NEGATIVE, marks=pytest.mark.extended)]
)
async def test_generated_requests_get_documented_responses(site: Site, mode: GenerationMode) -> None:
    operations = [result.ok() for result in schemathesis.openapi.from_dict(site.app.openapi()).get_all_operations()]
    sent = [case for operation in operations for case in cases(operation, mode)]
    assert len(sent) > examples(80, 150)
    assert [fault for case in sent for fault in await faults(site, case)] == []
