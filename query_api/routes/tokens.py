"""`/v1/meter/tokens`: short rights to read one tenant's usage, for a page that its customers see."""

from fastapi import APIRouter

from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError
from query_api.audit import audit
from query_api.auth import TokenMaker, reachable_tenant
from query_api.key_schemas import CreatedToken, NewToken
from query_api.periods import SECOND_NS, format_instant
from query_api.problems import UnauthenticatedError, documented
from query_api.services import ServicesDep
from query_api.tokens import make_token

router = APIRouter(prefix="/v1/meter/tokens", tags=["keys"])


@router.post("", status_code=201, responses=documented())
def create_token(services: ServicesDep, principal: TokenMaker, body: NewToken) -> CreatedToken:
    """Make a token that may read the usage of one tenant. It is shown in this answer alone.

    Needs a key with scope `query` or `admin`. The token is sent as a key would be, also by a browser (see
    METERING_API_CORS_ALLOWED_ORIGINS); only reads take it. It ends after `ttl_seconds`, or with the key that
    made it. Restricted to meters, it reads where one of them is named by the parameter `meter`, and lists them.
    """
    tenant_id = reachable_tenant(principal, body.tenant_id)
    if tenant_id is None:
        raise InvalidUsageError("tenant_id is missing, and a token is for one tenant; add it")
    meters = sorted({check_name("meters", meter) for meter in body.meters}) if body.meters else None
    key = services.keys.active(principal.key_id)
    if key is None:
        raise UnauthenticatedError("the API key was revoked, or expired; use another one")
    expires_at = services.clock.now_ns() // SECOND_NS + body.ttl_seconds
    if key.expires_at is not None:
        expires_at = min(expires_at, int(key.expires_at.timestamp()))
    shown = format_instant(expires_at * SECOND_NS)
    audit(
        services,
        principal,
        action="token.create",
        target=key.key_id,
        tenant_id=tenant_id,
        details={"expires_at": shown, "meters": meters},
    )
    token = make_token(key, tenant_id=tenant_id, meters=meters, expires_at_seconds=expires_at)
    return CreatedToken(token=token, expires_at=shown)
