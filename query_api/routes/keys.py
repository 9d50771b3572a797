"""`/v1/meter/keys`: make, list, rotate and revoke API keys.

An administrator that is bound to a tenant makes, sees, rotates and revokes the keys of that tenant alone.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from otel_metering.errors import InvalidUsageError
from query_api.audit import audit
from query_api.auth import Administrator, reachable_tenant
from query_api.key_schemas import (
    CreatedKey,
    Key,
    KeysAnswer,
    KeysParameters,
    NewKey,
    Rotation,
)
from query_api.parameters import only
from query_api.periods import format_instant
from query_api.problems import ConflictError, NotFoundError, documented
from query_api.services import Services, ServicesDep
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
        rate_limit_per_second=body.rate_limit_per_second,
        before_save=_recorder(services, principal, "key.create"),
    )
    return CreatedKey(**_key(made, {}).model_dump(), key=text)


@router.get("", responses=documented(), dependencies=[Depends(only(KeysParameters))])
def list_keys(
    services: ServicesDep,
    principal: Administrator,
    parameters: Annotated[KeysParameters, Query()],
) -> KeysAnswer:
    """List keys, oldest first, revoked ones included; never their secrets.

    To read on, send the same request with `cursor` set to `next_cursor`.
    """
    keys = [key for key in services.keys.list() if _is_visible(key, principal)]
    if parameters.cursor is not None:
        keys = _behind(keys, parameters.cursor)
    page = keys[: parameters.limit]
    used = services.keys.use.last_used([key.key_id for key in page])
    return KeysAnswer(
        data=[_key(key, used) for key in page],
        next_cursor=page[-1].key_id if len(keys) > len(page) else None,
    )


@router.post(
    "/{key_id}/rotate", status_code=201, responses=documented(NotFoundError, ConflictError)
)
def rotate_key(
    services: ServicesDep, principal: Administrator, key_id: str, body: Rotation | None = None
) -> CreatedKey:
    """Make a key in place of another: with its name, scopes, tenant, rate limit and end.

    The old one works for `overlap_seconds` more, or until it would have ended anyway. Tokens that it made end
    with it.
    """
    _visible(services, principal, key_id)
    rotated = services.keys.rotate(
        key_id,
        overlap=timedelta(seconds=(body or Rotation()).overlap_seconds),
        before_save=_recorder(services, principal, "key.rotate"),
    )
    if rotated is None:
        raise _unknown(key_id)
    made, text = rotated
    return CreatedKey(**_key(made, {}).model_dump(), key=text)


@router.delete("/{key_id}", responses=documented(NotFoundError))
def revoke_key(services: ServicesDep, principal: Administrator, key_id: str) -> Key:
    """Revoke a key, for ever: at once in this process, and within five seconds everywhere.

    Tokens that it made end with it. Revoking it again changes nothing.
    """
    _visible(services, principal, key_id)
    revoked = services.keys.revoke(key_id, before_save=_recorder(services, principal, "key.revoke"))
    if revoked is None:
        raise _unknown(key_id)
    return _key(revoked, services.keys.use.last_used([key_id]))


def _recorder(services: Services, principal: Principal, action: str) -> Callable[[ApiKey], None]:
    def record(key: ApiKey) -> None:
        """The order goes into the audit log before the key changes; a rotation is about the old one."""
        is_rotation = action == "key.rotate"
        audit(
            services,
            principal,
            action=action,
            target=(key.replaces or key.key_id) if is_rotation else key.key_id,
            tenant_id=key.tenant_id,
            details={
                "name": key.name,
                "scopes": ", ".join(key.scopes),
                "expires_at": _shown_or_none(key.expires_at),
                "rate_limit_per_second": key.rate_limit_per_second,
                "rotated_to": key.key_id if is_rotation else None,
                "old_ends_at": _shown_or_none(key.replaced_ends_at) if is_rotation else None,
            },
        )

    return record


def _visible(services: Services, principal: Principal, key_id: str) -> None:
    key = services.keys.get(key_id)
    if key is None or not _is_visible(key, principal):
        raise _unknown(key_id)


def _unknown(key_id: str) -> NotFoundError:
    return NotFoundError(f"there is no key {key_id[:64]!r}; list them with GET /v1/meter/keys")


def _is_visible(key: ApiKey, principal: Principal) -> bool:
    return principal.tenant_id is None or key.tenant_id == principal.tenant_id


def _behind(keys: list[ApiKey], cursor: str) -> list[ApiKey]:
    """The keys behind that of this id, in the order of `keys`; keys are never deleted, so it is there."""
    places = [place for place, key in enumerate(keys) if key.key_id == cursor]
    if not places:
        raise InvalidUsageError(
            "the cursor is not one of ours; send next_cursor as it was, or start without a cursor"
        )
    return keys[places[0] + 1 :]


def _key(key: ApiKey, last_used: Mapping[str, int]) -> Key:
    used_micros = last_used.get(key.key_id)
    return Key(
        key_id=key.key_id,
        name=key.name,
        scopes=list(key.scopes),
        tenant_id=key.tenant_id,
        created_at=_shown(key.created_at),
        expires_at=_shown_or_none(key.expires_at),
        revoked_at=_shown_or_none(key.revoked_at),
        last_used_at=None if used_micros is None else format_instant(used_micros * 1_000),
        rate_limit_per_second=key.rate_limit_per_second,
        replaces=key.replaces,
        rotated_to=key.rotated_to,
    )


def _shown_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else _shown(moment)


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
