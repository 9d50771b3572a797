"""SQL of the audit log."""

from dataclasses import dataclass
from typing import Final

from query_api.periods import Range
from query_api.queries import Statement

_PAGE: Final = (
    "SELECT toString(audit_id), toUnixTimestamp64Micro(at), key_id, action, target, tenant_id, "
    "request_id, details FROM metering.audit_log WHERE "
    "at >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND at < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)
_BEHIND: Final = (
    " AND (at, audit_id) < (fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC'), {after_id:UUID})"
)
_ORDER: Final = " ORDER BY at DESC, audit_id DESC LIMIT {limit:UInt32}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """Which rows.

    Attributes:
        range: When they were written.
        limit: How many.
        key_id: Only orders of this key, and so on.
        after: (time in ns, id) of the last row of the page before.
    """

    range: Range
    limit: int
    key_id: str | None = None
    action: str | None = None
    target: str | None = None
    tenant_id: str | None = None
    after: tuple[int, str] | None = None


def audit_page(request: AuditRequest) -> Statement:
    """Rows, newest first: (id, time in µs, key id, action, target, tenant, request id, details)."""
    sql = _PAGE
    parameters: dict[str, object] = {
        "start_ns": request.range.start_ns,
        "end_ns": request.range.end_ns,
        "limit": request.limit,
    }
    for name in ("key_id", "action", "target", "tenant_id"):
        value = getattr(request, name)
        if value is not None:
            sql += f" AND {name} = {{{name}:String}}"
            parameters[name] = value
    if request.after is not None:
        sql += _BEHIND
        parameters |= {"after_ns": request.after[0], "after_id": request.after[1]}
    return Statement(sql + _ORDER, parameters)
