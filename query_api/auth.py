"""Who is asking, what they may do, and whose usage they may touch.

A route names what it needs by the type of its `principal`: `Ingester`, `Reader`, `Validator`,
`Administrator` or `Operator`.
Checking a key reads memory only, so all of this runs on the event loop.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from otel_metering.contract.attributes import API_KEY_HEADER
from otel_metering.contract.event import check_name
from query_api.problems import ForbiddenError, UnauthenticatedError
from query_api.services import ServicesDep
from receiver.store.keys import Principal, Scope

_bearer = HTTPBearer(
    auto_error=False, description="An API key: `otm_…`. Make one with `otel-metering keys create`."
)
_header = APIKeyHeader(
    name=API_KEY_HEADER, auto_error=False, description="The same key, where no bearer can be sent."
)


async def _authenticate(
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Principal:
    key = bearer.credentials if bearer else header
    if not key:
        raise UnauthenticatedError(
            f"the request has no API key; send Authorization: Bearer <key>, or {API_KEY_HEADER}"
        )
    principal = services.keys.authenticate(key)
    if principal is None:
        raise UnauthenticatedError("the API key is unknown, revoked or expired; use another one")
    return principal


def _requires(scope: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(principal: Annotated[Principal, Depends(_authenticate)]) -> Principal:
        if principal.may(scope):
            return principal
        raise ForbiddenError(
            f"this needs the scope {scope}, and key {principal.key_id} has "
            f"{', '.join(sorted(principal.scopes))}; use a key that has it"
        )

    return check


def _check_unbound(principal: Principal) -> None:
    if principal.tenant_id is not None:
        raise ForbiddenError(
            f"this is about the whole service, and key {principal.key_id} is bound to tenant "
            f"{principal.tenant_id!r}; use a key that is bound to none"
        )


async def _operator(
    principal: Annotated[Principal, Depends(_requires(Scope.ADMIN))],
) -> Principal:
    _check_unbound(principal)
    return principal


Ingester = Annotated[Principal, Depends(_requires(Scope.INGEST))]
Reader = Annotated[Principal, Depends(_requires(Scope.QUERY))]
Validator = Annotated[Principal, Depends(_requires(Scope.VALIDATE))]
Administrator = Annotated[Principal, Depends(_requires(Scope.ADMIN))]
Operator = Annotated[Principal, Depends(_operator)]
"""An administrator of all tenants."""


async def check_metrics_access(
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Who reads the numbers of the service may query, and is bound to no tenant; or they are public."""
    if not services.is_metrics_public:
        principal = await _requires(Scope.QUERY)(await _authenticate(services, bearer, header))
        _check_unbound(principal)


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
        f"key {principal.key_id} is bound to tenant {principal.tenant_id!r}, and the request is about "
        f"{asked!r}; leave tenant_id out, or use another key"
    )
