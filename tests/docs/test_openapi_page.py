"""docs/api/openapi.yaml is that of the code, and says what a reader of an API needs."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from query_api.app import openapi_document
from query_api.document import operations

REPOSITORY = Path(__file__).parents[2]
MADE = runpy.run_path(str(REPOSITORY / "docs" / "_openapi.py"))
DOCUMENT = openapi_document()
OPERATIONS = operations(DOCUMENT)
OPEN = {("GET", "/v1/meter/health")}
"""Operations that need no key."""


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name] if name else schema
    return found


def test_the_file_is_that_of_the_code() -> None:
    shown = (REPOSITORY / "docs" / "api" / "openapi.yaml").read_text()

    assert shown == MADE["page"](), "run python docs/_openapi.py"


@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_every_operation_is_described(key: tuple[str, str]) -> None:
    operation = OPERATIONS[key]

    assert operation["tags"]
    assert operation["summary"]
    assert operation["description"].endswith(".")
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            assert "{" + parameter["name"] + "}" in key[1]


@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_every_operation_says_who_may_and_what_goes_wrong(key: tuple[str, str]) -> None:
    operation = OPERATIONS[key]
    if key in OPEN:
        assert not operation.get("security")
        return

    assert {"HTTPBearer", "APIKeyHeader"} <= {name for one in operation["security"] for name in one}
    assert {"400", "401", "403", "503"} <= operation["responses"].keys()
    for status, response in operation["responses"].items():
        if status >= "400":
            assert list(response["content"]) == ["application/problem+json"], status


@pytest.mark.parametrize("key", OPERATIONS, ids=" ".join)
def test_every_body_has_an_example(key: tuple[str, str]) -> None:
    for media_type, content in OPERATIONS[key].get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        for one in [schema, *schema.get("anyOf", [])]:
            if {"example", "examples"} & (content.keys() | resolved(one).keys()):
                break
        else:
            pytest.fail(f"{media_type} has no example")


def test_operation_ids_are_unique_names() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]

    assert len(set(ids)) == len(ids)
    assert all(one.isidentifier() for one in ids)
