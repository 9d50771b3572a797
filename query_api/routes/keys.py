"""`/v1/meter/keys`: make, list and revoke API keys.

An administrator that is bound to a tenant makes, sees and revokes the keys of that tenant alone.
"""

from datetime import UTC, datetime

from fastapi import APIRouter

from otel_metering.errors import InvalidUsageError
from query_api.auth import Administrator, reachable_tenant
from query_api.problems import NotFoundError, documented
from query_api.schemas import CreatedKey, Key, KeysAnswer, NewKey
from query_api.services import ServicesDep
from receiver.store.keys import ApiKey, Principal

router = APIRouter(prefix="/v1/meter/keys", tags=["keys"])


@router.post("", status_code=201, responses=documented())
def create_key(services: ServicesDep, principal: Administrator, body: NewKey) -> CreatedKey:
    """Make a key. `key` is shown in this answer alone; only a hash of it is kept."""
    now = datetime.fromtimestamp(services.clock.now_ns() // 1_000_000_000, UTC)
    if body.expires_at is not None and body.expires_at <= now:
        raise InvalidUsageError(f"expires_at is {_shown(body.expires_at)}, which is past; move it")
    made, text = services.keys.create(
        name=body.name,
        scopes=body.scopes,
        tenant_id=reachable_tenant(principal, body.tenant_id),
        expires_at=body.expires_at,
    )
    return CreatedKey(**_key(made).model_dump(), key=text)


@router.get("", responses=documented())
def list_keys(services: ServicesDep, principal: Administrator) -> KeysAnswer:
    """List keys, oldest first, revoked ones included; never their secrets."""
    return KeysAnswer(
        data=[_key(key) for key in services.keys.list() if _is_visible(key, principal)]
    )


@router.delete("/{key_id}", responses=documented(NotFoundError))
def revoke_key(services: ServicesDep, principal: Administrator, key_id: str) -> Key:
    """Revoke a key, at once and for ever. Revoking it again changes nothing."""
    visible = {key.key_id for key in services.keys.list() if _is_visible(key, principal)}
    revoked = services.keys.revoke(key_id) if key_id in visible else None
    if revoked is None:
        raise NotFoundError(f"there is no key {key_id[:64]!r}; list them with GET /v1/meter/keys")
    return _key(revoked)


def _is_visible(key: ApiKey, principal: Principal) -> bool:
    return principal.tenant_id is None or key.tenant_id == principal.tenant_id


def _key(key: ApiKey) -> Key:
    return Key(
        key_id=key.key_id,
        name=key.name,
        scopes=list(key.scopes),
        tenant_id=key.tenant_id,
        created_at=_shown(key.created_at),
        expires_at=_shown(key.expires_at) if key.expires_at else None,
        revoked_at=_shown(key.revoked_at) if key.revoked_at else None,
    )


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
