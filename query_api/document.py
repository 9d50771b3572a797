"""The OpenAPI document, as it is true for this API."""

from typing import Any, Final

from fastapi import FastAPI

from query_api.schemas import Problem

_METHODS: Final = ("get", "post", "put", "patch", "delete")


def describe(app: FastAPI) -> None:
    """Let `app.openapi` say what its problems look like, and nothing of answers that it never gives."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        # A request that does not fit its model is answered with 400, see `problems`.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operation in operations(document).values():
            operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the extension point that FastAPI documents


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation of a document by (method in capitals, path)."""
    return {
        (method.upper(), path): item[method]
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    }
