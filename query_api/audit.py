"""Records who ordered an administrative change. Call it before the change: what fails here must not be made."""

import json
from collections.abc import Mapping

from query_api.access_log import current_request_id
from query_api.services import Services
from receiver.store.keys import Principal


def audit(
    services: Services,
    principal: Principal,
    *,
    action: str,
    target: str,
    tenant_id: str | None = None,
    details: Mapping[str, object] | None = None,
) -> None:
    """Write a row of the audit log; it is durable when this returns. Off the event loop: it waits for the disk.

    Args:
        services: What the route has.
        principal: Whose order it is.
        action: What is done: `quota.put`, `event.void`.
        target: The id of what is changed.
        tenant_id: Whose that is; None: the whole service. Its administrator sees the row.
        details: What else there is to know; None values are left out. Never a secret.

    Raises:
        MeteringError: It could not be written. Let it pass; the change must not be made.
    """
    services.audit.record(
        key_id=principal.key_id,
        action=action,
        target=target,
        tenant_id=tenant_id,
        details={
            name: _text(value) for name, value in (details or {}).items() if value is not None
        },
        request_id=current_request_id(),
    )


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # JSON can spell half of a surrogate pair; whether that is allowed is said behind this.
    return text.encode(errors="replace").decode()
