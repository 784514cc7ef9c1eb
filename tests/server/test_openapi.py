"""The API as its own description says: schemathesis finds no 5xx and no answer of an undescribed shape."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.api_server import Server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 40


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
@pytest.mark.filterwarnings("ignore")  # schemathesis and hypothesis-jsonschema have warnings of their own
def test_no_input_breaks_the_server(server_in_thread: Server, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server_in_thread.url}/openapi.json")
    statuses: set[int] = set()
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        if mode is schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing about it can be wrong

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            # A name that is served, so that the rest of the request matters too; what is wrong may be the name itself.
            named = isinstance(case.body, dict) and isinstance(case.body.get("model"), str)
            if named and mode is schemathesis.GenerationMode.POSITIVE:
                case.body["model"] = "tiny"
            response = case.call(timeout=10)
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        check()
    assert 400 in statuses
    assert (200 in statuses) == (mode is schemathesis.GenerationMode.POSITIVE)


async def test_document(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        document = await response.json()
    assert document["openapi"] == "3.1.0"
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["model", "messages"]
    assert chat["additionalProperties"] is False
    assert document["paths"]["/v1/chat/completions"]["post"]["responses"].keys() >= {"200", "400", "413", "503"}
