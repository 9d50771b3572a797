"""The query API: puts routes, problems and services together, and holds no rule."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import Route
from starlette.types import ASGIApp

from otel_metering.errors import ConfigurationError
from query_api import document, problems
from query_api.access_log import AccessLog
from query_api.body import BodyLimit
from query_api.cors import with_cors
from query_api.forwarding import Forwarder
from query_api.key_requests import KeyRequests
from query_api.placement import PLACES, Place
from query_api.rate_limits import RateLimits
from query_api.routes import (
    aggregates,
    audit,
    corrections,
    events,
    health,
    keys,
    meters,
    metrics,
    openmeter_events,
    openmeter_meters,
    openmeter_query,
    openmeter_subjects,
    quarantine,
    quotas,
    reservations,
    tokens,
    validate,
)
from query_api.services import Services

_DESCRIPTION: Final = """
Usage per tenant and meter, exact to the last decimal.

- **Times** are RFC 3339; ranges and windows are half open, `[from, to)`, in UTC.
- **Quantities and values** are strings with exact decimals.
- **Keys** go into `Authorization: Bearer <key>` or `x-api-key`. A key has scopes (`ingest`, `query`,
  `validate`, `admin`) and may be bound to one tenant, which it then writes and reads without naming it.
- **Errors** are RFC 9457 problems; `detail` says the fact, the limit and the remedy. After 503, send the
  same request again; after 429, when `Retry-After` says so.
- **Request ids**: `X-Request-Id` of a request (1 to 128 of `A-Za-z0-9._-`), or one that is made up, is on
  each answer, in each problem and in the audit log.
"""

_OPENMETER: Final = (openmeter_events, openmeter_query, openmeter_meters, openmeter_subjects)
"""Queries before meters: a slug may have a slash in it, and takes what is left of a path."""


def create_app(
    services: Services,
    *,
    cors_origins: Sequence[str] = (),
    has_access_log: bool = False,
    forwarder: Forwarder | None = None,
) -> FastAPI:
    """Make the ASGI application; it opens nothing, and closes nothing that it was given.

    Args:
        services: What it works with.
        cors_origins: Web pages that may read, as `receiver.cors` writes them.
        has_access_log: Whether each request is a line of log.
        forwarder: To the receiver, if that is another process; see `query_api.placement`.

    Raises:
        ConfigurationError: Where a route is answered is not said.
    """
    app = _routes()
    if forwarder is not None:
        _hand_on(app, services, forwarder)
    app.state.services = services
    app.state.rate_limits = RateLimits(services.clock)
    app.wrap = lambda inner: AccessLog(
        KeyRequests(with_cors(inner, cors_origins), services.keys.counts),
        services.clock,
        is_on=has_access_log,
    )
    app.add_middleware(BodyLimit)
    problems.install(app)
    return app


def openapi_document() -> dict[str, Any]:
    """What the API takes and answers, as OpenAPI."""
    return _routes().openapi()


def _routes() -> "_Api":
    app = _Api(
        title="otel-metering",
        summary="Usage metering native to OpenTelemetry",
        description=_DESCRIPTION,
        version="1",
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    for resource in (
        # Before events: an event id takes what is left of a path.
        corrections,
        events,
        aggregates,
        meters,
        quotas,
        validate,
        reservations,
        quarantine,
        keys,
        tokens,
        audit,
        health,
        metrics,
        *_OPENMETER,
    ):
        app.include_router(resource.router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    # Ahead of all others, and without what FastAPI does for a route; that one is the document.
    path = validate.router.prefix
    app.router.routes.insert(0, Route(path, validate.validate, methods=["POST"]))
    document.describe(app)
    return app


def _hand_on(app: FastAPI, services: Services, forwarder: Forwarder) -> None:
    """Put ahead of all routes those that the receiver answers; the document is still that of the others."""
    to_receiver = {
        Place.RECEIVER: forwarder.route(),
        Place.RECEIVER_KEYS: forwarder.route(services.keys.refresh),
    }
    if services.made_meters is not None:
        to_receiver[Place.RECEIVER_METERS] = forwarder.route(services.made_meters.refresh)
    routes = []
    for route in iter_route_contexts(app.routes):
        place = place_of(route)
        if place is not Place.HERE:
            handed_on = Route(
                str(route.path), to_receiver[place], methods=list(route.methods or ())
            )
            # Starlette adds HEAD to GET, FastAPI does not.
            handed_on.methods = set(route.methods or ())
            routes.append(handed_on)
    app.router.routes[:0] = routes


def place_of(route: RouteContext) -> Place:
    """Who answers a route where receiver and query API are two processes.

    Raises:
        ConfigurationError: The table does not say.
    """
    place = PLACES.get(route.name or "")
    if place is None:
        raise ConfigurationError(f"query_api.placement does not say where {route.path} is answered")
    return place


class _Api(FastAPI):
    """FastAPI, with middleware around what answers bugs; `add_middleware` only goes inside of that."""

    wrap: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        """Everything, and `wrap` around it."""
        return self.wrap(super().build_middleware_stack())


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
