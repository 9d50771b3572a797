"""The audit log: which key ordered which administrative change.

A change is recorded before it is made. So a change without a row cannot be; a row without its change can,
when it failed afterwards: its answer was an error then.
"""

import secrets
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import pyarrow as pa

from otel_metering.clock import Clock
from receiver.store import tables
from receiver.store.client import Store

AT_START: Final = "(start)"
"""Whose order it is when nobody asked: the start of the service."""


class AuditLog:
    """Writes to `metering.audit_log`. Any thread may call it; it holds nothing."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def record(
        self,
        *,
        key_id: str,
        action: str,
        target: str,
        tenant_id: str | None,
        details: Mapping[str, str],
        request_id: str = "",
    ) -> None:
        """Write a row; it is durable when this returns. Call it before the change, and off the event loop.

        Args:
            key_id: Whose order it is.
            action: What is done, as `key.create`.
            target: The id of what is changed.
            tenant_id: Whose that is; None: the whole service.
            details: What else there is to know; never a secret.
            request_id: The request that asked for it.

        Raises:
            MeteringError: It could not be written: the change must not be made.
        """
        at = pa.array([self._clock.now_ns() // 1_000], pa.timestamp("us", "UTC"))
        audit_id = UUID(bytes=secrets.token_bytes(16), version=4)
        row = pa.table(
            {
                "at": at,
                "audit_id": pa.array([audit_id.bytes], pa.binary(16)),
                "key_id": pa.array([key_id]),
                "action": pa.array([action]),
                "target": pa.array([target]),
                "tenant_id": pa.array([tenant_id or ""]),
                "request_id": pa.array([request_id]),
                "details": pa.array([list(details.items())], pa.map_(pa.string(), pa.string())),
            }
        )
        self._store.insert(tables.AUDIT_LOG, row, token=audit_id.hex)
