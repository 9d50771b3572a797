"""The query API: puts routes, problems and services together, and holds no rule."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.routing import Route

from query_api import problems
from query_api.body import BodyLimit
from query_api.routes import (
    aggregates,
    events,
    health,
    keys,
    meters,
    metrics,
    quarantine,
    quotas,
    reservations,
    validate,
)
from query_api.schemas import Problem
from query_api.services import Services

_DESCRIPTION: Final = """
Usage per tenant and meter, exact to the last decimal.

- **Times** are RFC 3339; ranges and windows are half open, `[from, to)`, in UTC.
- **Quantities and values** are strings with exact decimals.
- **Keys** go into `Authorization: Bearer <key>` or `x-api-key`. A key has scopes (`ingest`, `query`,
  `validate`, `admin`) and may be bound to one tenant, which it then writes and reads without naming it.
- **Errors** are RFC 9457 problems; `detail` says the fact, the limit and the remedy. After 503, send the
  same request again.
"""


def create_app(services: Services) -> FastAPI:
    """Make the ASGI application; it opens nothing, and closes nothing that it was given."""
    app = FastAPI(
        title="otel-metering",
        summary="Usage metering native to OpenTelemetry",
        description=_DESCRIPTION,
        version="1",
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.services = services
    app.add_middleware(BodyLimit)
    problems.install(app)
    resources = (events, aggregates, meters, quotas, validate, reservations, quarantine, keys)
    for resource in (*resources, health, metrics):
        app.include_router(resource.router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    # Ahead of all others, and without what FastAPI does for a route; that one is the document.
    path = validate.router.prefix
    app.router.routes.insert(0, Route(path, validate.validate, methods=["POST"]))
    _document_problems(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


def _document_problems(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the extension point that FastAPI documents
