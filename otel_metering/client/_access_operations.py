"""What a client can do with API keys, tokens and the audit log."""

from collections.abc import Sequence
from urllib.parse import quote

from otel_metering.client import _answers as answers
from otel_metering.client._operations import Listing, one
from otel_metering.client._request import Operation, Time, get, given, moment, present, send
from otel_metering.client.results import AuditEntry, CreatedKey, Key, Token


def create_key(
    name: str,
    scopes: Sequence[str],
    *,
    tenant_id: str | None = None,
    expires_at: Time | None = None,
    rate_limit_per_second: int | None = None,
) -> Operation[CreatedKey]:
    """Make an API key.

    Args:
        name: For people.
        scopes: Of `ingest`, `query`, `validate` and `admin`.
        tenant_id: Bind it to this tenant.
        expires_at: None: never.
        rate_limit_per_second: Requests; None: no limit of its own.
    """
    body = present(
        name=name,
        scopes=list(scopes),
        tenant_id=tenant_id,
        expires_at=moment(expires_at),
        rate_limit_per_second=rate_limit_per_second,
    )
    return one(send("POST", "/keys", body, is_repeatable=False), answers.created_key)


def keys() -> Operation[tuple[Key, ...]]:
    """List the keys, oldest first, revoked ones included."""
    found = yield from one(get("/keys"), answers.page_of(answers.key))
    return found.items


def rotate_key(key_id: str, *, overlap_seconds: int | None = None) -> Operation[CreatedKey]:
    """Make a key that takes the place of another, which expires after the overlap.

    Args:
        key_id: Of the old one.
        overlap_seconds: How long both work; None: an hour.
    """
    body = present(overlap_seconds=overlap_seconds)
    path = f"/keys/{quote(key_id, safe='')}/rotate"
    return one(send("POST", path, body, is_repeatable=False), answers.created_key)


def revoke_key(key_id: str) -> Operation[Key]:
    """Stop the key `key_id`, for ever. Repeating it changes nothing."""
    path = f"/keys/{quote(key_id, safe='')}"
    return one(send("DELETE", path, is_repeatable=True), answers.key)


def create_token(
    tenant_id: str, *, ttl_seconds: int, meters: Sequence[str] = ()
) -> Operation[Token]:
    """Make a token that reads the usage of one tenant.

    Args:
        tenant_id: Whose.
        ttl_seconds: At most a day.
        meters: It reads these alone; none: all.
    """
    body = present(
        tenant_id=tenant_id, ttl_seconds=ttl_seconds, meters=list(meters) if meters else None
    )
    # A token that nobody got harms nobody, and ends by itself.
    return one(send("POST", "/tokens", body, is_repeatable=True), answers.token)


def iter_audit(
    *,
    from_: Time | None = None,
    to: Time | None = None,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    tenant_id: str | None = None,
) -> Listing[AuditEntry]:
    """Iterate over administrative changes.

    Args:
        from_: Start, inclusive.
        to: End, exclusive.
        actor: Only those of this key id.
        action: Only this kind.
        target: Only those of this.
        tenant_id: Only those of this tenant.
    """
    parameters = given(
        from_=moment(from_),
        to=moment(to),
        actor=actor,
        action=action,
        target=target,
        tenant_id=tenant_id,
    )
    return Listing(request=get("/audit", parameters), parse=answers.audit_entry)
