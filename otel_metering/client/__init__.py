"""Clients of the query API: `MeteringClient`, and `AsyncMeteringClient` for asyncio.

Needs httpx: `pip install 'otel-metering[client]'`.
"""

try:
    from otel_metering.client._async import AsyncHeldReservation, AsyncMeteringClient
except ModuleNotFoundError as _missing:
    if _missing.name != "httpx":
        raise
    raise ModuleNotFoundError(
        "the clients need httpx, which is not installed; run: pip install 'otel-metering[client]'",
        name="httpx",
    ) from _missing
from otel_metering.client._http import Edges
from otel_metering.client._operations import NewEvent
from otel_metering.client._quota_operations import Check
from otel_metering.client._request import Filters, Not, Prefix
from otel_metering.client._sync import HeldReservation, MeteringClient
from otel_metering.client.results import (
    AuditEntry,
    Correction,
    CreatedKey,
    Decision,
    Event,
    Key,
    Meter,
    Quota,
    QuotaStatus,
    Reservation,
    Token,
    Usage,
    UsageRow,
)

__all__ = [
    "AsyncHeldReservation",
    "AsyncMeteringClient",
    "AuditEntry",
    "Check",
    "Correction",
    "CreatedKey",
    "Decision",
    "Edges",
    "Event",
    "Filters",
    "HeldReservation",
    "Key",
    "Meter",
    "MeteringClient",
    "NewEvent",
    "Not",
    "Prefix",
    "Quota",
    "QuotaStatus",
    "Reservation",
    "Token",
    "Usage",
    "UsageRow",
]
