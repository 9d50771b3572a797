"""Who is asking, what they may do, and whose usage they may touch.

A route names what it needs by the type of its `principal`: `Ingester`, `Reader` or `Administrator`.
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


Ingester = Annotated[Principal, Depends(_requires(Scope.INGEST))]
Reader = Annotated[Principal, Depends(_requires(Scope.QUERY))]
Administrator = Annotated[Principal, Depends(_requires(Scope.ADMIN))]


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
