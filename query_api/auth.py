"""Who is asking, what they may do, and whose usage they may touch.

A route names what it needs by the type of its `principal`: `Ingester`, `Reader`, `Validator`,
`Administrator` or `Operator`.
Checking a key reads memory only, so all of this runs on the event loop.

Read tokens may be restricted to meters. No route has to remember that: a `Reader` that is restricted comes
through only if the route has a query parameter `meter`, and it names one of them; else it is refused. A route
that answers about many meters says `MeterFilteringReader`, and then has to leave the others out.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from otel_metering.contract.attributes import API_KEY_HEADER
from otel_metering.contract.event import check_name
from query_api.access_log import name_key
from query_api.key_requests import TRANSPORT
from query_api.problems import ForbiddenError, UnauthenticatedError
from query_api.rate_limits import RateLimits
from query_api.services import Services, ServicesDep
from query_api.tokens import authenticate, refusal
from receiver.store.keys import Principal, Refused, Scope

_METER: Final = "meter"

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key: `otm_…`. Make one with `otel-metering keys create`. Reads also take a read "
    "token: `ott_…`, of POST /v1/meter/tokens.",
)
_header = APIKeyHeader(
    name=API_KEY_HEADER, auto_error=False, description="The same key, where no bearer can be sent."
)


async def _authenticate(
    request: Request,
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Principal:
    return identify(request, services, bearer.credentials if bearer else header)


def identify(request: Request, services: Services, key: str | None) -> Principal:
    """Who asks by this key or read token; counts the request against the rate of the key.

    Raises:
        UnauthenticatedError: There is no key, or nobody is known by it.
        RateLimitedError: The key sends too much now.
        UnavailableError: The keys cannot be read.
    """
    if not key:
        raise UnauthenticatedError(
            f"the request has no API key; send Authorization: Bearer <key>, or {API_KEY_HEADER}"
        )
    principal = authenticate(key, services.keys, services.clock)
    if principal is None:
        services.keys.counts.refused(TRANSPORT, refusal(key, services.keys))
        raise UnauthenticatedError("the API key is unknown, revoked or expired; use another one")
    name_key(request, principal.key_id)
    limits = request.app.state.rate_limits
    assert isinstance(limits, RateLimits)  # noqa: S101 - create_app put it there
    limits.check(principal)
    return principal


def check_scope(principal: Principal, *scopes: Scope) -> None:
    """Refuse who has none of these scopes.

    Raises:
        ForbiddenError: Names those that are needed, and those that there are.
    """
    if not any(principal.may(scope) for scope in scopes):
        raise ForbiddenError(
            f"this needs the scope {' or '.join(scopes)}, and {_named(principal)} has "
            f"{', '.join(sorted(principal.scopes))}; use a key that has it"
        )


def _requires(*scopes: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency: who is asking has one of these scopes."""

    async def check(principal: Annotated[Principal, Depends(_authenticate)]) -> Principal:
        check_scope(principal, *scopes)
        return principal

    return check


async def _reader(
    request: Request, principal: Annotated[Principal, Depends(_requires(Scope.QUERY))]
) -> Principal:
    if principal.meters is None:
        return principal
    meters = ", ".join(sorted(principal.meters))
    path = getattr(request.scope.get("route"), "path", "")
    if (request.method, path) not in _operations_of_one_meter(request.app):
        raise ForbiddenError(
            f"the token may read the meters {meters}, and this is not about one meter; "
            "use a token that is not restricted"
        )
    asked = request.query_params.getlist(_METER)
    if len(asked) != 1 or asked[0] not in principal.meters:
        raise ForbiddenError(
            f"the token may read the meters {meters}; name one of them by the parameter {_METER}"
        )
    return principal


async def _key_holder(
    principal: Annotated[Principal, Depends(_requires(Scope.QUERY, Scope.ADMIN))],
) -> Principal:
    if principal.is_token:
        raise ForbiddenError("a read token makes no further ones; use the key that made it")
    return principal


def _check_unbound(principal: Principal) -> None:
    if principal.tenant_id is not None:
        raise ForbiddenError(
            f"this is about the whole service, and {_named(principal)} is bound to tenant "
            f"{principal.tenant_id!r}; use a key that is bound to none",
            Refused.TENANT,
        )


async def _operator(
    principal: Annotated[Principal, Depends(_requires(Scope.ADMIN))],
) -> Principal:
    _check_unbound(principal)
    return principal


Ingester = Annotated[Principal, Depends(_requires(Scope.INGEST))]
Reader = Annotated[Principal, Depends(_reader)]
MeterFilteringReader = Annotated[Principal, Depends(_requires(Scope.QUERY))]
"""A reader that may be restricted to `principal.meters`; the route leaves all others out."""
Validator = Annotated[Principal, Depends(_requires(Scope.VALIDATE))]
Administrator = Annotated[Principal, Depends(_requires(Scope.ADMIN))]
Operator = Annotated[Principal, Depends(_operator)]
"""An administrator of all tenants."""
TokenMaker = Annotated[Principal, Depends(_key_holder)]


async def check_metrics_access(
    request: Request,
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Who reads the numbers of the service may query, and is bound to no tenant; or they are public."""
    if not services.is_metrics_public:
        principal = await _authenticate(request, services, bearer, header)
        _check_unbound(await _requires(Scope.QUERY)(principal))


def reachable_tenant(principal: Principal, asked: str | None) -> str | None:
    """The tenant that a request is about; None: any, and the key reaches all.

    Raises:
        ForbiddenError: The key is bound to another tenant.
        InvalidUsageError: It is no tenant id.
    """
    if asked is not None:
        check_name("tenant_id", asked)
    if principal.tenant_id is None or asked == principal.tenant_id:
        return asked
    if asked is None:
        return principal.tenant_id
    raise ForbiddenError(
        f"{_named(principal)} is bound to tenant {principal.tenant_id!r}, and the request is about "
        f"{asked!r}; leave tenant_id out, or use another key",
        Refused.TENANT,
    )


def _named(principal: Principal) -> str:
    return f"{'a token of ' if principal.is_token else ''}key {principal.key_id}"


@lru_cache(maxsize=1)
def _operations_of_one_meter(app: FastAPI) -> frozenset[tuple[str, str]]:
    """(method, path) of what is documented to read the query parameter `meter`."""
    return frozenset(
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        if any(
            (parameter["name"], parameter["in"]) == (_METER, "query")
            for parameter in operation.get("parameters", ())
        )
    )
