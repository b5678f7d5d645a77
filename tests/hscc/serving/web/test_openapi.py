"""The server against its own ``/openapi.json``, with requests that Schemathesis makes up."""

from __future__ import annotations

import pytest
import torch
from hscc.serving.engine import Engine
from hscc.serving.web import openapi, rest
from hscc.serving.web.limits import WebLimits
from hscc.serving.web.service import Service

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(autouse=True)
def _subnormal() -> None:
    """Libraries that ``torch.compile`` makes flush subnormal numbers once they are loaded; Hypothesis needs these."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def document(engine: Engine):
    app = rest.application(Service([engine], WebLimits(body=2**20)))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("path", openapi.document([])["paths"])
def test_made_up_requests_get_what_the_document_says(document, path: str) -> None:
    seen = []

    @seed(1)
    @settings(
        max_examples=30, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(case=document[path]["post" if path.endswith("/infer") else "get"].as_strategy())
    def check(case) -> None:
        if len(seen) % 3:  # or nearly all would ask for another model
            case.path_parameters.update({key: {"name": "small", "version": "1"}[key] for key in case.path_parameters})
        response = case.call()
        seen.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    assert {400} & {*seen} if path.endswith("/infer") else 200 in seen
